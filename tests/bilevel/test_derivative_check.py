"""Healthy students pass the check of their derivatives, and what autograd would silently take for zero does not."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from l2t_ray.bilevel.derivative_check import check_derivatives, not_finite_advice
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import Batch, StudentState, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.students.lenet import LeNet
from l2t_ray.students.resnet import ResNet
from l2t_ray.students.wide_resnet import WideResNet
from l2t_ray.tasks.classification import Classification

NUM_CLASSES, NUM_INPUTS, WIDTH = 3, 192, 16


class By(nn.Module):
    """A module given by its forward pass, a function of itself and the images, and its parts."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def around(function):
    """Two linear layers with a function between them."""
    first, last = nn.Linear(NUM_INPUTS, WIDTH), nn.Linear(WIDTH, NUM_CLASSES)
    return By(lambda self, x: self.last(function(self.first(x.flatten(1)))), first=first, last=last)


def mlp(activation, norm=lambda width: nn.Identity(), depth=2):
    layers = [nn.Flatten(), nn.Linear(NUM_INPUTS, WIDTH), norm(WIDTH), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(WIDTH, WIDTH), norm(WIDTH), activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, NUM_CLASSES))


def convolutional(norm=lambda channels: nn.Identity(), pool=nn.AvgPool2d):
    features = nn.Conv2d(3, 12, 3, padding=1), norm(12), nn.ReLU(), pool(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(192, NUM_CLASSES))


def sequence(x):
    return x.flatten(2).transpose(1, 2).reshape(len(x), 8, 24)


def recurrent(kind, **options):
    cells, last = kind(24, WIDTH, batch_first=True, **options), nn.Linear(WIDTH, NUM_CLASSES)
    return By(lambda self, x: self.last(self.cells(sequence(x))[0][:, -1]), cells=cells, last=last)


def attention(dropout=0.0, backend=SDPBackend.MATH):
    def function(self, x):
        with sdpa_kernel(backend):
            return self.last(self.layer(sequence(x)).mean(1))

    layer = nn.TransformerEncoderLayer(24, 2, 32, dropout=dropout, batch_first=True)
    return By(function, layer=layer, last=nn.Linear(24, NUM_CLASSES))


class SinglePrecision(nn.Module):
    """Casts, and keeps a constant that is no buffer."""

    def __init__(self):
        super().__init__()
        self.constant = torch.randn(NUM_INPUTS, 24) / 14
        self.first, self.last = nn.Linear(24, WIDTH), nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, x):
        return self.last(self.first(x.flatten(1).float() @ self.constant).relu()).to(torch.float32)


def autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.net(x).float()


class Square(Function):
    """A function with a backward pass of its own that is as it should be."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


HEALTHY = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(NUM_INPUTS, NUM_CLASSES)),
    "tanh": lambda: mlp(nn.Tanh),
    "relu": lambda: mlp(nn.ReLU),
    "deep relu": lambda: mlp(nn.ReLU, depth=8),
    "gelu, layer norm": lambda: mlp(nn.GELU, nn.LayerNorm),
    "leaky relu, batch norm": lambda: mlp(nn.LeakyReLU, nn.BatchNorm1d),
    "prelu, rms norm": lambda: mlp(nn.PReLU, nn.RMSNorm),
    "hardswish": lambda: mlp(nn.Hardswish),
    "dropout": lambda: mlp(nn.ReLU, lambda width: nn.Dropout(0.5)),
    "convolution": convolutional,
    "batch norm, max pooling": lambda: convolutional(nn.BatchNorm2d, nn.MaxPool2d),
    "group norm": lambda: convolutional(lambda channels: nn.GroupNorm(3, channels)),
    "instance norm, dropout of maps": lambda: convolutional(
        lambda channels: nn.Sequential(nn.InstanceNorm2d(channels, affine=True), nn.Dropout2d(0.3))
    ),
    "rnn": lambda: recurrent(nn.RNN, nonlinearity="relu"),
    "lstm": lambda: recurrent(nn.LSTM),
    "gru": lambda: recurrent(nn.GRU, num_layers=2, dropout=0.2),
    "attention": attention,
    "attention, dropout": lambda: attention(0.1),
    "weight norm": lambda: By(
        lambda self, x: self.last(self.first(x.flatten(1)).relu()),
        first=nn.utils.parametrizations.weight_norm(nn.Linear(NUM_INPUTS, WIDTH)),
        last=nn.Linear(WIDTH, NUM_CLASSES),
    ),
    "orthogonal": lambda: around(nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))),
    "spectral norm": lambda: around(nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "sign and abs": lambda: around(lambda z: z.abs() * (1 + z.sign())),
    "maximum less itself": lambda: around(lambda z: (z - z.amax(dim=1, keepdim=True).detach()).softmax(dim=1)),
    "function of its own": lambda: around(Square.apply),
    "single precision": SinglePrecision,
    "autocast": lambda: By(autocast, net=convolutional(nn.BatchNorm2d)),
    "resnet, batch norm": lambda: ResNet(8, num_classes=NUM_CLASSES, norm="batch"),
    "resnet, group norm": lambda: ResNet(8, num_classes=NUM_CLASSES, norm="group"),
    "wide resnet": lambda: WideResNet(10, 1, num_classes=NUM_CLASSES),
    "lenet": lambda: LeNet(num_classes=NUM_CLASSES, in_channels=3, image_size=8),
}


def setting(make, seed=0, dtype=torch.float32, inputs=None, group=None):
    """An inner problem of a student, and where it starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = FlatModule(make())
    network = DynamicLossNetwork(init="linear", pairs="softmax", activation="silu", channel=NUM_CLASSES, hidden=8)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(9, 3, 8, 8, generator=generator) if inputs is None else inputs
    batch = Batch(
        inputs.to(dtype), torch.arange(9) % NUM_CLASSES, torch.full((9,), 1 / 9, dtype=dtype), torch.arange(9)
    )
    task = Classification()

    def inner_loss(theta, phi, buffers, batch):
        logits = student(theta, buffers, batch.inputs, training=True)
        return (batch.weights * network.losses_at(phi, logits, batch.targets)).sum(), logits

    def outer_error(theta, buffers, batch):
        return task.error(student(theta, buffers, batch.inputs, training=True), batch, group or SingleProcess())

    theta = student.initial()
    start = StudentState(theta, torch.zeros_like(theta), student.initial_buffers())
    phi = network.phi.detach() + 0.1 * torch.randn(network.phi.shape, generator=generator)
    return InnerProblem(inner_loss, outer_error, group or SingleProcess()), start, phi.to(dtype), batch


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_student_passes(name):
    check = check_derivatives(*setting(HEALTHY[name]))
    assert (check.verdict, check.sentence) == ("sound", "")
    assert max(check[:3]) < (1e-5 if name != "spectral norm" else 0.02)


@pytest.mark.parametrize("engine", ["recompute", "forward_over_reverse", "one_step", "finite_difference"])
def test_it_passes_with_every_engine(engine):
    check = check_derivatives(*setting(HEALTHY["dropout"]), engine=engine)
    assert check.verdict == "sound" and max(check[:3]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_passes_in_every_precision(dtype):
    check = check_derivatives(*setting(lambda: mlp(nn.Tanh).to(dtype), dtype=dtype))
    assert check.verdict == "sound" and max(check[:3]) < 1e-5


def test_it_changes_nothing_and_keeps_nothing():
    made = []

    def noted(z):
        made.append(weakref.ref(z))
        return Square.apply(z)

    problem, start, phi, batch = setting(
        lambda: nn.Sequential(around(noted), nn.BatchNorm1d(NUM_CLASSES), nn.Dropout())
    )
    before = [start.theta.clone(), phi.clone(), *(buffer.clone() for buffer in start.buffers.values())]
    drawn_before = torch.get_rng_state()
    check_derivatives(problem, start, phi, batch)
    assert torch.equal(torch.get_rng_state(), drawn_before)
    for tensor, copy in zip([start.theta, phi, *start.buffers.values()], before, strict=True):
        assert torch.equal(tensor, copy) and not tensor.requires_grad
    assert made and all(reference() is None for reference in made)  # a graph that its own hooks hold is never freed


# -- what is missing


def tanh_with(backward):
    """tanh with a backward pass `(x, gradient) -> gradient`."""

    class Tanh(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx, gradient):
            return backward(ctx.saved_tensors[0], gradient)

    return Tanh


class OnceDifferentiable(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class InNumPy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 1 - np.tanh(x.detach().numpy()) ** 2
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(gradient.detach().numpy() * ctx.slope)


class Tripled(Function):
    """Linear, and yet the derivative of its backward pass is needed: in the gradient that enters it."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 3 * gradient


class InNumPyButLinear(Function):
    """Its slope is kept as a number, so that its backward pass is linear and on the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = torch.from_numpy(1 - np.tanh(x.detach().numpy()) ** 2)
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.slope


def without_graph(x, gradient):
    with torch.no_grad():
        return gradient * (1 - x.tanh() ** 2)


OffTheGraph = tanh_with(without_graph)
Detached = tanh_with(lambda x, gradient: gradient * (1 - x.detach().tanh() ** 2))


def hooked(z):
    z = z.tanh()
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient.detach().clamp(-1, 1))
    return z


def of_some(function, number):
    return lambda z: torch.cat((function(z[:, :number]), z[:, number:].tanh()), dim=1)


@torch.library.custom_op("derivative_check::tanh", mutates_args=())
def registered(x: torch.Tensor) -> torch.Tensor:
    return x.tanh()


def keep_output(ctx, inputs, output):
    ctx.slope = 1 - output.detach() ** 2


registered.register_autograd(lambda ctx, gradient: gradient * ctx.slope, setup_context=keep_output)


def bag(self, x):
    return self.last(self.bag((x.flatten(1)[:, :8].abs() * 5).long().clamp(0, 9)))


MISSING = {
    "once differentiable": (
        lambda: around(OnceDifferentiable.apply),
        r"that of \S*OnceDifferentiable .*write its back",
    ),
    "NumPy": (lambda: around(InNumPy.apply), r"InNumPy \(test_derivative_check.py:\d+: .*without NumPy"),
    "backward off the graph": (lambda: around(OffTheGraph.apply), r"Tanh \(test_derivative_check.py:\d+: "),
    "backward detached": (lambda: around(Detached.apply), r"Tanh .*products are off by [4-9]\d%"),
    "backward detached, 1 unit of 16": (lambda: around(of_some(Detached.apply, 1)), r"Tanh .*are off by \d+%"),
    "linear, once differentiable": (lambda: around(lambda z: Tripled.apply(z).tanh()), r"Tripled"),
    "hook": (lambda: around(hooked), r"a hook on what tanh \("),
    "registered operator": (lambda: around(registered), r"that of derivative_check_tanh.*off by \d+%"),
    "attention": (
        lambda: attention(backend=SDPBackend.FLASH_ATTENTION),
        r"scaled_dot_product_flash_attention_for_cpu .*sdpa_kernel\(SDPBackend.MATH\)",
    ),
    "embedding bag": (
        lambda: By(bag, bag=nn.EmbeddingBag(10, WIDTH), last=nn.Linear(WIDTH, NUM_CLASSES)),
        r"embedding_bag .*use torch.nn.Embedding",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_derivative_is_refused_by_name(name):
    make, said = MISSING[name]
    with pytest.raises(UserError, match=said) as refused:
        check_derivatives(*setting(make), otherwise="set engine=finite_difference")
    assert str(refused.value).startswith("a second derivative is missing, and a hypergradient needs it: that of ")
    assert str(refused.value).endswith(", or set engine=finite_difference.")


@pytest.mark.parametrize("function", [OnceDifferentiable, InNumPy, OffTheGraph])
@pytest.mark.parametrize("engine", ["store", "recompute", "naive"])
def test_the_hypergradient_itself_is_refused_where_a_function_cuts_it(function, engine):
    problem, start, phi, batch = setting(lambda: around(function.apply))
    options = {"rates": [0.1, 0.1]} | ({} if engine == "naive" else {"engine": engine})
    take = naive_hypergradient if engine == "naive" else hypergradient
    with pytest.raises(UserError, match=r"a second derivative is missing"):
        take(problem, start, phi, [batch, batch], batch, **options)


def test_finite_differences_need_no_second_derivative():
    given = setting(lambda: around(OnceDifferentiable.apply))
    assert check_derivatives(*given, engine="finite_difference").verdict == "sound"
    problem, start, phi, batch = given
    actual = hypergradient(problem, start, phi, [batch], batch, rates=[0.1], engine="finite_difference").gradient
    same, *_ = setting(lambda: around(torch.tanh))
    expected = hypergradient(same, start, phi, [batch], batch, rates=[0.1]).gradient
    assert (actual - expected).norm() < 1e-2 * expected.norm()


def test_forward_over_reverse_is_refused_where_a_function_has_no_forward_derivative():
    with pytest.raises(UserError, match=r"engine forward_over_reverse cannot be used .*take store or recompute"):
        check_derivatives(*setting(HEALTHY["function of its own"]), engine="forward_over_reverse")


# -- what is not finite


def with_zeros():
    inputs = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs[::4] = 0
    return inputs


def cosine():
    first, last = nn.Linear(NUM_INPUTS, WIDTH, bias=False), nn.Linear(WIDTH, NUM_CLASSES)
    return By(lambda self, x: self.last(F.normalize(self.first(x.flatten(1)))), first=first, last=last)


def test_a_second_derivative_that_is_not_finite_is_named():
    with pytest.raises(UserError, match=r"^the second derivative of linalg_vector_norm \(test_\S+: .*add an epsilon"):
        check_derivatives(*setting(cosine, inputs=with_zeros()))
    assert check_derivatives(*setting(cosine)).verdict == "sound"


def test_a_first_derivative_that_is_not_finite_is_named():
    with pytest.raises(UserError, match=r"^the derivative of sqrt \(test_\S+: .*add an epsilon"):
        check_derivatives(*setting(lambda: around(lambda z: (z - z.detach()).square().sqrt())))


def test_a_loss_that_is_not_finite_is_no_matter_of_derivatives():
    with pytest.raises(UserError, match=r"loss is nan before its first step; look for inputs that are not finite"):
        check_derivatives(*setting(HEALTHY["tanh"], inputs=with_zeros() / 0))


def test_advice_about_a_hypergradient_that_is_not_finite_names_the_function():
    problem, start, phi, batch = setting(cosine)
    black = batch._replace(inputs=with_zeros())
    advice = not_finite_advice(problem, start, phi, [batch, black], [0.1, 0.1])
    assert advice is not None and advice.startswith("the second derivative of linalg_vector_norm (test_")
    assert not_finite_advice(problem, start, phi, [batch, batch], [0.1, 0.1]) is None


# -- what is no mistake


class StraightThrough(Function):
    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_gradients_that_stand_in_for_others_are_said_to():
    check = check_derivatives(*setting(lambda: around(lambda z: StraightThrough.apply(z).tanh())))
    assert check.verdict == "surrogate" and check.first > 0.5
    assert "off by" in check.sentence and "StraightThrough" in check.sentence


@pytest.mark.parametrize("opaque", [Detached, InNumPyButLinear])
def test_an_opaque_function_beside_a_straight_through_estimator_is_refused_by_name(opaque):
    """The differences of the whole say nothing, and those of the function alone do."""
    with pytest.raises(UserError, match=r"that of \S*(Tanh|InNumPyButLinear) .*by finite differences of it alone"):
        check_derivatives(*setting(lambda: around(lambda z: opaque.apply(StraightThrough.apply(z)))))


def test_a_sound_function_beside_a_straight_through_estimator_is_let_be():
    check = check_derivatives(*setting(lambda: around(lambda z: Square.apply(StraightThrough.apply(z)))))
    assert check.verdict == "surrogate"
    assert "apply" not in vars(Square) and "apply" not in vars(StraightThrough)


class AveragedWeights(nn.Module):
    """Computes with a running mean of its weights as well."""

    def __init__(self, decay):
        super().__init__()
        self.first, self.last, self.decay = nn.Linear(NUM_INPUTS, WIDTH), nn.Linear(WIDTH, NUM_CLASSES), decay
        self.register_buffer("mean", self.first.weight.detach().clone())

    def forward(self, x):
        weight = self.first.weight + self.mean
        with torch.no_grad():
            self.mean = self.decay * self.mean + (1 - self.decay) * self.first.weight
        return self.last(F.linear(x.flatten(1), weight).tanh())


@pytest.mark.parametrize("decay", [0.9, 0.98])
def test_an_average_of_weights_that_the_next_pass_computes_with_is_said(decay):
    check = check_derivatives(*setting(lambda: AveragedWeights(decay)))
    assert check.verdict == "constant"
    assert "the model keeps mean from pass to pass, which follow its weights" in check.sentence


def test_a_detached_part_is_said_to_count_as_a_constant():
    check = check_derivatives(*setting(lambda: around(lambda z: z * z.sigmoid().detach())))
    assert check.verdict == "surrogate" and "a detached part;" in check.sentence


def test_a_norm_that_is_estimated_off_the_graph_is_said_to_count_as_a_constant():
    """As spectral normalisation's power iteration is, as long as it has not converged."""
    check = check_derivatives(*setting(lambda: around(normalised)))
    assert check.verdict == "constant" and "off by" in check.sentence
    assert max(check.first, check.mixed) < 0.02 < check.hessian


def normalised(z):
    with torch.no_grad():
        direction = F.normalize(z, dim=1)  # that the length is along: its own derivative does not change the first
    return z.tanh() / (1 + (z * direction).sum(dim=1, keepdim=True))


def test_a_model_that_gives_another_gradient_each_time_suits_one_engine_only():
    own = torch.Generator().manual_seed(0)
    given = setting(lambda: around(lambda z: z * (torch.rand(z.shape, generator=own) < 0.5)))
    check = check_derivatives(*given)
    assert check.verdict == "unsettled" and "another one each time" in check.sentence
    with pytest.raises(UserError, match=r"another one each time.*engine recompute takes a step's pass more than once"):
        check_derivatives(*given, engine="recompute")


def on_a_slice(givens):
    """A worker's check of its own slice. Modules are made before: threads share the stream of their first weights."""

    def work(group):
        problem, start, phi, batch = givens[group.rank]
        part = slice(0, 4) if group.rank == 0 else slice(4, None)
        own = Batch(*(field[part] for field in batch))
        return check_derivatives(replace(problem, group=group), start, phi, own)

    return work


def test_workers_come_to_one_verdict(run_on_two_workers):
    """Each has its own slice; products and differences are those of all."""
    first, second = run_on_two_workers(on_a_slice([setting(HEALTHY["gelu, layer norm"]) for _ in range(2)]))
    assert first == second and first.verdict == "sound"


class SingleAbove(nn.Module):
    """Refuses double precision where its inputs are large, as a table of constants might."""

    def forward(self, x):
        if x.dtype == torch.float64 and x.max() > 100:
            raise RuntimeError("expected Float but found Double")
        return x.tanh()


def test_a_worker_alone_whose_slice_knows_no_double_precision_leaves_nobody_waiting(run_on_two_workers):
    inputs = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    inputs[0] *= 1000
    givens = [setting(lambda: nn.Sequential(SingleAbove(), mlp(nn.Tanh)), inputs=inputs) for _ in range(2)]
    first, second = run_on_two_workers(on_a_slice(givens))
    assert first == second
