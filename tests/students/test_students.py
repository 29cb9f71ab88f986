"""What every student keeps. A new one joins by one line in STUDENTS."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jvp

from l2t_ray.students.initialise import seeded
from l2t_ray.students.lenet import LeNet
from l2t_ray.students.resnet import ResNet
from l2t_ray.students.wide_resnet import WideResNet

STUDENTS = {  # build(in_channels, image_size), embedding length
    "resnet": (lambda c, s: ResNet(8, num_classes=10, in_channels=c), 64),
    "resnet-group": (lambda c, s: ResNet(8, num_classes=10, in_channels=c, norm="group"), 64),
    "resnet-pad": (lambda c, s: ResNet(8, num_classes=10, in_channels=c, shortcut="pad"), 64),
    "resnet-wide": (lambda c, s: ResNet(8, num_classes=10, in_channels=c, widths="wide"), 1024),
    "wide-resnet": (lambda c, s: WideResNet(10, 2, num_classes=10, in_channels=c), 128),
    "wide-resnet-group": (lambda c, s: WideResNet(10, 2, num_classes=10, in_channels=c, norm="group"), 128),
    "lenet": (lambda c, s: LeNet(num_classes=10, in_channels=c, image_size=s), 500),
}


@pytest.fixture(params=STUDENTS)
def student(request):
    return STUDENTS[request.param]


def images(n, channels, size, dtype=torch.float32):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("channels, size", [(1, 8), (3, 8), (1, 28), (3, 32)])
def test_logits_and_embedding(student, channels, size):
    build, length = student
    net = seeded(lambda: build(channels, size), 0).eval()
    x = images(2, channels, size)
    logits, embedding = net(x, with_embedding=True)
    assert logits.shape == (2, 10) and embedding.shape == (2, length)
    assert torch.equal(net(x), logits)
    assert torch.equal(net.linear(embedding), logits)  # the embedding is what the last layer reads


def test_seeded_leaves_the_generator_alone(student):
    build, _ = student
    before = torch.random.get_rng_state()
    first, again, other = (seeded(lambda: build(1, 8), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # PyTorch's own use, at first jvp
def test_second_derivatives_both_ways(student):
    """A Hessian-vector product by double backward and by forward over reverse: the engines of the hypergradient."""
    build, _ = student
    net = seeded(lambda: build(1, 8), 0).double()
    params = {name: p.detach() for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    x, labels = images(4, 1, 8, torch.float64), torch.tensor([0, 3, 5, 9])

    def loss(params):
        return F.cross_entropy(functional_call(net, (params, {k: b.clone() for k, b in buffers.items()}), (x,)), labels)

    generator = torch.Generator().manual_seed(2)
    v = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}
    _, forward = jvp(grad(loss), (params,), (v,))
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    first = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    product = sum((g * v[name]).sum() for g, name in zip(first, leaves, strict=True))
    backward = torch.autograd.grad(product, list(leaves.values()), materialize_grads=True)
    for name, b in zip(leaves, backward, strict=True):
        torch.testing.assert_close(forward[name], b, rtol=1e-8, atol=1e-10)  # float64, two orders of summation


@pytest.mark.parametrize("name", ["resnet-group", "wide-resnet-group", "lenet"])
def test_without_batch_statistics_an_image_is_on_its_own(name):
    """What makes one worker with 2B images equal two with B."""
    net = seeded(lambda: STUDENTS[name][0](1, 8), 0).train().double()
    x = images(6, 1, 8, torch.float64)
    torch.testing.assert_close(net(x), torch.cat([net(x[:2]), net(x[2:])]))
    assert not list(net.buffers())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu(student):
    build, _ = student
    net, x = seeded(lambda: build(3, 32), 0).eval(), images(4, 3, 32)
    # Convolutions may use TF32 there: ten bits of mantissa through ten layers.
    torch.testing.assert_close(net.cuda()(x.cuda()).cpu(), net.cpu()(x), rtol=2e-2, atol=2e-2)
