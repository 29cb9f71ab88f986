"""What models cannot do is said before anything is trained; what a setting can mend is mended."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_ray.assembly.fit import fit
from l2t_ray.bilevel.draws import unmoved_draws
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import Batch, DivergenceError, RoundBatches, UserError
from l2t_ray.training.dry_round import shortened, with_remedies

EXACT = {"name": "recommended", "engine": "store"}
WIDTH = 8
CPU = torch.device("cpu")
UNFITTED = DynamicLossNetwork(pairs="softmax", activation="silu")
"""A fitted one takes most of a second."""


def examples(num, dtype=torch.float32):
    generator = torch.Generator().manual_seed(num)
    labels = torch.arange(num) % 3
    return (torch.randn(num, WIDTH, generator=generator) + 2 * F.one_hot(labels, WIDTH)).to(dtype), labels


def tokens(num):
    labels = torch.arange(num) % 3
    return torch.stack([labels, (labels + 1) % 5, (labels * 2) % 5], dim=1), labels


def test_a_shortened_round_keeps_what_belongs_together_and_whole_weights():
    targets = {"mask": torch.arange(24).reshape(6, 2, 2), "chosen": torch.arange(12).reshape(6, 2)}
    rows = Batch(torch.arange(6.0)[:, None], targets, torch.full((6,), 1 / 12), torch.arange(6))
    plain = Batch(torch.arange(6.0), torch.arange(6), torch.full((6,), 1 / 6), torch.arange(6))
    train, val = shortened(RoundBatches([rows, rows, rows], plain), 4, 3)
    assert len(train) == 2 and train[0].targets["mask"].equal(targets["mask"][:4])
    assert train[0].targets["chosen"].equal(targets["chosen"][:4]) and train[0].indices.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(train[0].weights, torch.full((4,), 1 / 8))  # two rows an example
    torch.testing.assert_close(val.weights, torch.full((3,), 1 / 3))


def train_a_little(model, rows, **arguments):
    sizes = {
        "loss": UNFITTED,
        "num_rounds": 2,
        "num_steps": 2,
        "batch_size": 6,
        "val_batch_size": 6,
        "warm_share": 0.0,
    }
    sets = {"train": examples(12), "validation": examples(9)}
    return fit(model, on_row=rows.append, **(sets | sizes | arguments))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


class Wrapped(nn.Module):
    """A linear layer, and something done with its inputs and outputs."""

    def __init__(self, forward, outputs=3, width=WIDTH):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self._forward = forward

    def forward(self, x):
        return self._forward(self.linear, x)


class TwoInputs(nn.Linear):
    def forward(self, x, mask):
        return super().forward(x * mask)


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.bag(x))


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, 3)
        self.lock = threading.Lock()


class OtherInTraining(nn.Linear):
    """As torchvision's Inception: more than logits while it is trained."""

    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


def linear():
    return nn.Linear(WIDTH, 3)


def frozen():
    return linear().requires_grad_(False)


def mixed():
    return nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 3).double())


def scattered():
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 3))
    model[1].to("meta")
    return model


def normed(x):
    return F.normalize(x, dim=1)


def black(num):
    inputs, labels = examples(num)
    inputs[-1] = 0
    return inputs, labels


IN_TOKENS = {"train": tokens(12), "validation": tokens(9)}
RARE_TOKEN = {
    name: (
        torch.cat([torch.zeros(5 * n, 3), torch.full((1, 3), last), torch.zeros(5 * n, 3)]).long(),
        torch.arange(10 * n + 1) % 3,
    )
    for name, n, last in (("train", 12, 4), ("validation", 9, 3))
}
BLACK = {"train": black(90)}
IN_DOUBLE = {"train": examples(12, torch.float64), "validation": examples(9, torch.float64)}
IN_BYTES = {
    name: (torch.ones(n, WIDTH, dtype=torch.uint8), torch.arange(n) % 3)
    for name, n in (("train", 12), ("validation", 9))
}

REFUSED = {
    "a function": (lambda: F.relu, {}, "model must be a torch.nn.Module, got a function"),
    "a class": (lambda: nn.Linear, {}, "model must be a torch.nn.Module, got a type"),
    "no copy": (Locked, {}, "model cannot be copied.*lock"),
    "all frozen": (frozen, {}, "no parameter with requires_grad=True.*unfreeze"),
    "no parameters": (nn.Flatten, {}, "no parameter with requires_grad=True"),
    "two types": (mixed, {}, "float32 and float64, and one real type is needed"),
    "meta": (lambda: linear().to("meta"), {}, "meta device"),
    "TorchScript": (lambda: torch.jit.trace(linear(), torch.zeros(1, WIDTH)), {}, "TorchScript"),
    "tuple": (lambda: Wrapped(lambda f, x: (f(x), x)), {}, r"gives a tuple .*outputs\[0\]"),
    "dictionary": (lambda: Wrapped(lambda f, x: {"logits": f(x)}), {}, r'gives a dict .*outputs\["logits"\]'),
    "other dictionary": (lambda: Wrapped(lambda f, x: {"scores": f(x)}), {}, "the logits among 'scores'"),
    "record": (lambda: Wrapped(lambda f, x: SimpleNamespace(logits=f(x))), {}, r"SimpleNamespace.*outputs\.logits"),
    "tuple in training": (lambda: OtherInTraining(WIDTH, 3), {}, r"gives a tuple .*outputs\[0\]"),
    "nothing": (lambda: Wrapped(lambda f, x: None), {}, "gives a NoneType"),
    "one axis": (lambda: Wrapped(lambda f, x: f(x)[:, 0]), {}, r"shape \[6\] for 6 inputs.*one score for each class"),
    "positions": (
        lambda: Wrapped(lambda f, x: f(x)[:, :, None, None].expand(-1, -1, 2, 2)),
        {},
        r"\[6, 3, 2, 2\].*flatten",
    ),
    "other rows": (
        lambda: Wrapped(lambda f, x: f(x).t()),
        {},
        r"shape \[3, 6\] for 6 inputs.*keep the first dimension",
    ),
    "classes": (lambda: Wrapped(lambda f, x: f(x).round().long()), {}, "gives int64 where logits"),
    "one output": (lambda: nn.Linear(WIDTH, 1), {}, "gives one output an example"),
    "too few outputs": (lambda: nn.Linear(WIDTH, 2), {}, "train has the label 2, and model gives 2 outputs"),
    "NaN outputs": (
        lambda: Wrapped(lambda f, x: f(x) + x[:, :1].sub(9).log()),
        {},
        "not finite for 6 of 6 examples of validation",
    ),
    "several inputs": (lambda: TwoInputs(WIDTH, 3), {}, r"its forward needs more \(.*'mask'\)"),
    "other width": (
        lambda: nn.Linear(WIDTH + 1, 3),
        {},
        r"cannot be evaluated with inputs \[6, 8\] of float32 from validation: .*shapes",
    ),
    "a token too many": (
        lambda: nn.Sequential(nn.Embedding(4, 4), nn.Flatten(), nn.Linear(12, 3)),
        RARE_TOKEN,
        "cannot be differentiated with inputs .* from train: IndexError",
    ),
    "raises": (lambda: Wrapped(lambda f, x: {}["weights"]), {}, "cannot be evaluated.*KeyError: 'weights'"),
    "double inputs": (linear, IN_DOUBLE, r"model are float32; give all inputs .*astype\('float32'\)"),
    "pixels": (linear, IN_BYTES, r"inputs of validation are uint8.*scaled"),
    "whole numbers": (linear, IN_TOKENS, "inputs of validation are int64.*embedding"),
    "detached": (lambda: Wrapped(lambda f, x: f(x).detach()), {}, "depends on none of its trained parameters"),
    "detour": (
        lambda: Wrapped(lambda f, x: torch.tensor(f(x).tolist())),
        {},
        "depends on none of its trained parameters",
    ),
    "embedding bag": (Bag, IN_TOKENS, r"uses embedding_bag, which cannot be differentiated twice.*nn\.Embedding"),
    "batch norm": (
        lambda: nn.Sequential(linear(), nn.BatchNorm1d(3)),
        {"batch_size": 1},
        "batch_size=1 gives a batch norm",
    ),
    "batch norm, validation": (
        lambda: nn.Sequential(linear(), nn.BatchNorm1d(3)),
        {"val_batch_size": 1},
        "val_batch_size=1 gives a batch norm",
    ),
    "norm at zero": (
        lambda: Wrapped(lambda f, x: f(normed(F.linear(x, torch.eye(WIDTH) * f.weight[:1])))),
        BLACK,
        "second derivative of .* is not finite.*sqrt",
    ),
    "root at zero": (
        lambda: Wrapped(lambda f, x: f.bias + F.linear(x, f.weight).square().sum(1, keepdim=True).sqrt()),
        BLACK,
        "the gradient of model is not finite .*rsqrt",
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_is_refused_in_a_sentence_before_it_is(kind):
    make, arguments, sentence = REFUSED[kind]
    rows = []
    with pytest.raises(UserError, match=sentence) as refusal:
        train_a_little(seeded(make), rows, **arguments)
    assert rows == []
    assert "\n" not in str(refusal.value)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.block(x.view(-1, 2, 4)).mean(1))


class KeepsAux(nn.Linear):
    def forward(self, x):
        z = super().forward(x)
        self.aux, self.history = z.square().mean(), {"last": [z]}
        return z


class Counting(nn.Linear):
    """Its forward passes are counted on it."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def compiled():
    return torch.compile(linear(), backend="aot_eager")


def half_compiled():
    return nn.Sequential(nn.Linear(WIDTH, 4), torch.compile(nn.Linear(4, 3), backend="aot_eager"))


MENDED = {
    "attention": (Attention, {}, "plain attention"),
    "compiled": (compiled, {}, "without its torch.compile"),
    "compiled in part": (half_compiled, {}, "without its torch.compile"),
    "auxiliary loss": (lambda: KeepsAux(WIDTH, 3), {"num_rounds": 3}, ""),
    "double": (lambda: linear().double(), IN_DOUBLE, ""),
    "bfloat16": (
        lambda: linear().bfloat16(),
        {"train": examples(12, torch.bfloat16), "validation": examples(9, torch.bfloat16)},
        "",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3)), {}, ""),
    "more outputs": (lambda: nn.Linear(WIDTH, 7), {"loss": None}, "7 outputs for 3 classes"),
    "probabilities": (lambda: nn.Sequential(linear(), nn.Softmax(dim=1)), {}, "leave its softmax out"),
    "tokens": (lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)), IN_TOKENS, ""),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("teacher_at_once", [True, False], ids=["learned at once", "after warm rounds"])
@pytest.mark.parametrize("kind", MENDED)
def test_what_a_setting_can_mend_is_mended_and_said_once(kind, teacher_at_once, caplog):
    make, arguments, note = MENDED[kind]
    rows = []
    with caplog.at_level("WARNING", logger="l2t_ray"):
        fitted = train_a_little(seeded(make), rows, **(arguments | {"warm_share": 0.0 if teacher_at_once else 0.5}))
    assert rows[-1]["hypergradient_norm"] > 0
    assert all(parameter.isfinite().all() for parameter in fitted.model.parameters())
    notes = [said for record in caplog.records if (said := record.getMessage()).startswith("model ")]
    assert len(notes) == bool(note) and all(note in said for said in notes)


def test_attention_is_as_it_was_outside_of_fit():
    before = torch.backends.cuda.flash_sdp_enabled()
    train_a_little(seeded(Attention), [])
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_a_dry_round_leaves_the_users_and_the_trained_module_alone():
    calls = []
    for rounds in (1, 2):
        model = seeded(lambda: Counting(WIDTH, 3))
        calls.append(train_a_little(model, [], num_rounds=rounds).model.calls)
        assert model.calls == 0
    assert calls[1] - calls[0] == 2 + 1  # a round is two steps and a validation pass: all else is once
    assert calls[0] == 3 + 1 + 1  # a first look for the number of outputs, and the evaluation at the end


def test_an_attempt_may_draw_from_the_global_generators_and_leaves_them_where_they_stood():
    def draws():  # not from Python's: the type checker of these tests draws from it too
        return torch.rand(1).item(), np.random.rand()  # noqa: NPY002

    with unmoved_draws(CPU):
        expected = draws()
    with_remedies(draws, CPU)
    with unmoved_draws(CPU):
        assert draws() == expected


class Rounded(torch.autograd.Function):
    """A straight-through estimator: its derivative is that of what it rounds."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Quantised(nn.Linear):
    def forward(self, x):
        return super().forward(Rounded.apply(x * self.weight.mean()))


def test_gradients_that_are_not_those_of_the_loss_are_trained_with_and_said(caplog):
    with caplog.at_level("WARNING", logger="l2t_ray"):
        train_a_little(seeded(lambda: Quantised(WIDTH, 3)), rows := [], warm_share=0.0)
    assert len(rows) == 2
    assert any("gradients are not those of its loss" in record.getMessage() for record in caplog.records)


def test_without_a_learned_loss_no_second_derivative_is_asked_for():
    fitted = train_a_little(Bag(), rows := [], **IN_TOKENS, warm_share=1.0)
    assert len(rows) == 2 and "hypergradient_norm" not in fitted.rows[-1]


def test_the_trial_can_be_skipped():
    """What it would have found is then found where it fails."""
    sizes = {"num_rounds": 1, "num_steps": 2, "batch_size": 6, "val_batch_size": 6, "warm_share": 0.0}
    labels = torch.arange(12) % 2
    data = (torch.zeros(12, 4), labels)
    with pytest.raises(UserError, match="not finite"):
        fit(Norm(), train=data, validation=data, **sizes)
    with pytest.raises(DivergenceError):
        fit(Norm(), train=data, validation=data, try_first=False, **sizes, method=EXACT)


class Norm(nn.Module):
    """A norm, which has no derivative at zero."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(1, 2)

    def forward(self, x):
        return self.last(self.first(x).norm(dim=1, keepdim=True))
