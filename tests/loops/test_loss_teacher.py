"""A loss that is learned in a loop of one's own: criterion and optimizer are all that the loop calls."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_ray.interfaces import UserError
from l2t_ray.loops.loss_teacher import LossTeacher

QUICK = {"layers": 0, "label_entries": "channel", "memory": None}


def trained(model, blobs, steps, *, begin=0, begun=None, optimizer=None, index=False, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.3, momentum=0.5)
    teacher = begun or LossTeacher(model, optimizer, blobs.clean, **options)
    for inputs, labels, rows in list(blobs.batches(steps))[begin:]:
        optimizer.zero_grad()
        more = {"index": rows} if index else {}
        teacher.criterion(model(inputs), labels, **more).backward()
        optimizer.step()
    return teacher, optimizer


def accuracy(model, blobs):
    return (model(blobs.inputs).argmax(dim=1) == blobs.true).float().mean().item()


def test_it_finds_how_labels_were_turned(blobs, make_net):
    model = make_net()
    teacher, _ = trained(model, blobs, 60, warm_steps=20, every=2)
    channel = teacher.loss.family.spec.parts.channel
    noise = channel.log_matrix(teacher.loss.family.spec.parts.split(teacher.loss.phi).channel).exp()
    assert all(0.15 < noise[c, (c + 1) % 3] < 0.45 and noise[c, (c + 2) % 3] < 0.15 for c in range(3))
    assert accuracy(model, blobs) > 0.85 > (blobs.labels == blobs.true).float().mean()
    assert teacher.num_changes == 20
    assert {"validation_error", "hypergradient_norm", "phi_step_norm"} <= teacher.metrics.keys()


def test_without_warm_steps_the_hypergradient_alone_moves_the_loss_towards_the_noise(blobs, make_net):
    teacher, _ = trained(make_net(), blobs, 20, every=2, loss=QUICK)
    assert teacher.num_changes == 10 and teacher.loss.phi.norm() > 0
    assert not teacher.loss.phi.requires_grad


def test_warm_steps_are_those_of_cross_entropy_to_the_bit(blobs, make_net):
    own, other = make_net(), make_net()
    trained(own, blobs, 6, warm_steps=10)
    optimizer = torch.optim.SGD(other.parameters(), 0.3, momentum=0.5)
    for inputs, labels, _ in blobs.batches(6):
        optimizer.zero_grad()
        F.cross_entropy(other(inputs), labels).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


def test_a_step_of_the_loop_moves_neither_buffers_nor_random_numbers_beyond_its_own(blobs, make_net):
    """Batch-norm statistics and dropout are as in a loop whose loss is taught at no step."""
    ends = []
    for every in (1, 10**6):
        model = make_net(nn.BatchNorm1d(16), nn.Dropout(0.5))
        torch.manual_seed(0)
        trained(model, blobs, 1, every=every, loss=QUICK)
        ends.append((torch.rand(1), *model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", ["adam", "lstm"])
def test_going_on_from_a_state_repeats_the_undisturbed_loop_to_the_bit(blobs, make_net, kind):
    options = {"warm_steps": 6, "every": 2, "num_examples": 300, "teacher": kind}
    whole = make_net(nn.Dropout(0.2))
    torch.manual_seed(1)
    expected, _ = trained(whole, blobs, 26, index=True, **options)
    half = make_net(nn.Dropout(0.2))
    torch.manual_seed(1)
    teacher, optimizer = trained(half, blobs, 11, index=True, **options)
    saved = [teacher.state_dict(), {k: v.clone() for k, v in half.state_dict().items()}, optimizer.state_dict()]
    draws = torch.get_rng_state()
    teacher.close()
    model = make_net(nn.Dropout(0.2))
    model.load_state_dict(saved[1])
    again = torch.optim.SGD(model.parameters(), 0.3, momentum=0.5)
    again.load_state_dict(saved[2])
    resumed = LossTeacher(model, again, blobs.clean, **options)
    resumed.load_state_dict(saved[0])
    torch.set_rng_state(draws)
    trained(model, blobs, 26, begin=11, begun=resumed, optimizer=again, index=True)
    assert resumed.num_changes == expected.num_changes == 10
    assert torch.equal(resumed.loss.phi, expected.loss.phi) and resumed.metrics == expected.metrics
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_state_of_another_loss_is_refused(blobs, make_net):
    teacher, _ = trained(make_net(), blobs, 0, loss=QUICK)
    other, _ = trained(make_net(), blobs, 0, num_examples=300)
    with pytest.raises(UserError, match="the checkpoint's loss has 9 weights, and this one 10"):
        other.load_state_dict(teacher.state_dict())


def test_a_closure_is_as_good_as_a_step_without_one(blobs, make_net):
    ends = []
    for with_closure in (False, True):
        model = make_net()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        teacher = LossTeacher(model, optimizer, blobs.clean, every=1, loss=QUICK)
        for inputs, labels, _ in blobs.batches(3):

            def closure(model=model, optimizer=optimizer, teacher=teacher, inputs=inputs, labels=labels):
                optimizer.zero_grad()
                loss = teacher.criterion(model(inputs), labels)
                loss.backward()
                return loss

            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        ends.append(teacher.loss.phi)
    assert torch.equal(*ends) and ends[0].any()


def test_bf16_autocast_gives_nearly_the_same_and_a_loss_in_single_precision(blobs, make_net):
    norms = []
    for autocast in (False, True):
        model = make_net()
        optimizer = torch.optim.SGD(model.parameters(), 0.3)
        teacher = LossTeacher(model, optimizer, blobs.clean, every=1, loss=QUICK)
        inputs, labels, _ = next(blobs.batches(1))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = teacher.criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        assert loss.dtype == teacher.loss.phi.dtype == torch.float32
        norms.append(teacher.metrics["hypergradient_norm"])
    assert norms[0] != norms[1] and norms[1] == pytest.approx(norms[0], rel=0.05)


class Attending(nn.Module):
    """Attention by the fused kernel, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.query, self.out = nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x):
        q = self.query(x).view(len(x), 2, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, q, q).reshape(len(x), 8))


def test_a_model_with_fused_attention_is_taught_by_the_plain_one(blobs):
    torch.manual_seed(0)
    teacher, _ = trained(Attending(), blobs, 4, every=2, loss=QUICK)
    assert teacher.num_changes == 2 and teacher.metrics["hypergradient_norm"] > 0
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_a_loop_that_does_not_call_the_criterion_is_told_so(blobs, make_net):
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    teacher = LossTeacher(model, optimizer, blobs.clean, every=1, loss=QUICK)
    teacher.criterion(model(blobs.inputs), blobs.labels)  # its value is not used
    F.cross_entropy(model(blobs.inputs), blobs.labels).backward()
    with pytest.raises(UserError, match=r"no loss of teacher\.criterion has come to backward\(\)"):
        optimizer.step()


def test_an_estimate_waits_for_a_model_that_knows_enough(blobs, make_net, caplog):
    model = make_net()
    frozen = torch.optim.SGD(model.parameters(), 0.0)
    nn.init.zeros_(model[-1].weight)
    with caplog.at_level(logging.WARNING):
        teacher, _ = trained(model, blobs, 9, warm_steps=8, optimizer=frozen)
    assert "after 8 steps the model's answers tell too little to estimate the label noise" in caplog.text
    assert not teacher.loss.phi.any()


def test_half_precision_is_refused(blobs, make_net):
    model = make_net()
    teacher, _ = trained(model, blobs, 0, every=1, loss=QUICK)
    with pytest.raises(UserError, match="the loop trains in float16"):
        teacher.criterion(model(blobs.inputs).half(), blobs.labels)


def test_after_it_is_closed_the_criterion_is_the_loss_as_it_is(blobs, make_net):
    model = make_net()
    teacher, optimizer = trained(model, blobs, 4, every=2, loss=QUICK)
    phi = teacher.loss.phi
    teacher.close()
    trained(model, blobs, 4, begun=teacher, optimizer=optimizer)
    assert torch.equal(teacher.loss.phi, phi) and phi.any()
    logits = model(blobs.inputs)
    assert torch.equal(teacher.criterion(logits, blobs.labels), teacher.loss(logits, blobs.labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be 1 or more and warm_steps 0 or more, got 0 and 0"),
        ({"val_batch_size": 61}, "validation has 60 examples, fewer than val_batch_size=61"),
        ({"loss": {"name": "adjusted", "memory": 1.0}}, "loss has a memory of each training example"),
        ({"teacher": {"name": "adam", "stp": 1}}, "unknown key method.teacher.stp|unknown key teacher.stp"),
        ({"warm": 3}, "warm is no option of LossTeacher; beside every, warm_steps, .* there are weight, ignore_index"),
        ({"answer": lambda model, inputs: (model(inputs),)}, r"the model must give logits \[n, c\].*got a tuple"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_anything_is_trained(blobs, make_net, options, message):
    model = make_net()
    with pytest.raises(UserError, match=message):
        LossTeacher(model, torch.optim.SGD(model.parameters(), 0.1), blobs.clean, **options)


def test_clean_inputs_that_the_model_does_not_take_are_refused_in_a_sentence(blobs, make_net):
    model = make_net()
    inputs, labels = blobs.clean
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UserError, match=r"inputs of validation are float64 and parameters of model are float32"):
        LossTeacher(model, optimizer, (inputs.double(), labels))
    with pytest.raises(UserError, match="model"):
        LossTeacher(model, optimizer, (inputs[:, :1], labels))


def test_labels_beyond_the_models_outputs_are_refused(blobs, make_net):
    model = make_net()
    inputs, labels = blobs.clean
    with pytest.raises(UserError, match="validation has the label 3, and model gives 3 outputs"):
        LossTeacher(model, torch.optim.SGD(model.parameters(), 0.1), (inputs, labels + 1))
