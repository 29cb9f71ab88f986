import pytest
import torch
import torch.nn.functional as F
from small_problem import NUM_STEPS, small_round, small_student, small_trainee
from torch.optim import SGD

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.student import cross_entropy
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.forward_correction import forward_correction
from l2t_ray.methods.gce import generalised_cross_entropy

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 2])


def test_round_is_torchs_own_sgd_on_torchs_cross_entropy():
    trainee, batches = small_trainee(), small_round()
    method = FixedLoss(trainee, cross_entropy)

    state, metrics = method.round(method.init(), batches, 0)

    net = small_student().double()
    losses, optimizer = [], SGD(net.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-2)
    for step, batch in enumerate(batches.train):
        optimizer.param_groups[0]["lr"] = 0.3 / (1 + step)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(batch.inputs), batch.targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])
    torch.testing.assert_close(state.student.theta, expected)
    assert metrics["train_loss"] == pytest.approx(sum(losses) / NUM_STEPS)
    val = batches.val
    assert metrics["val_error"] == pytest.approx(F.cross_entropy(net(val.inputs), val.targets).item())


def test_gce_between_cross_entropy_and_absolute_error():
    p_label = LOGITS.softmax(1).gather(1, LABELS[:, None])[:, 0]
    small = generalised_cross_entropy(1e-6)(LOGITS, LABELS)
    torch.testing.assert_close(small, F.cross_entropy(LOGITS, LABELS, reduction="none"), rtol=1e-5, atol=0)  # O(q)
    absolute = (LOGITS.softmax(1) - F.one_hot(LABELS, 4)).abs().sum(1) / 2
    torch.testing.assert_close(generalised_cross_entropy(1.0)(LOGITS, LABELS), absolute)
    torch.testing.assert_close(generalised_cross_entropy(0.7)(LOGITS, LABELS), (1 - p_label**0.7) / 0.7)


def test_gce_has_a_gradient_where_the_probability_underflows():
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    generalised_cross_entropy(0.7)(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("q", [0.0, -1.0, 1.1])
def test_gce_outside_its_range(q):
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        generalised_cross_entropy(q)


def test_forward_correction_is_cross_entropy_of_the_mixed_probabilities():
    matrix = torch.tensor([[0.6, 0.2, 0.2, 0], [0, 1, 0, 0], [0.1, 0, 0.9, 0], [0.3, 0.3, 0, 0.4]], dtype=torch.float64)
    expected = F.nll_loss((LOGITS.softmax(1) @ matrix).log(), LABELS, reduction="none")
    torch.testing.assert_close(forward_correction(matrix)(LOGITS, LABELS), expected)
    identity = forward_correction(torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(identity(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_zeros_of_the_matrix_leave_gradients_finite():
    logits = LOGITS.clone().requires_grad_()
    forward_correction(torch.eye(4))(logits, LABELS).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, LOGITS.softmax(1) - F.one_hot(LABELS, 4))


def test_a_loss_network_without_a_teacher_is_a_fixed_loss():
    network = DynamicLossNetwork(5, 3, pairs="softmax").double().requires_grad_(False)
    method, first = FixedLoss(small_trainee(), network.losses), small_round().train[:1]
    state, metrics = method.round(method.init(), small_round()._replace(train=first), 0)
    expected = network.loss(small_student().double()(first[0].inputs), first[0].targets)
    assert state.extra == {} and metrics["train_loss"] == pytest.approx(expected.item())
