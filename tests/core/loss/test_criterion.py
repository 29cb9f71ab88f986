"""A learned loss is called as `torch.nn.CrossEntropyLoss`. Where its phi is cross-entropy's own, it equals it: under
every option, and so do its gradients. Where it is another, options mean what they mean there."""

import copy
import io
import itertools
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.memory import DECAY
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.terms import TermLoss

CLASSES = 5
WEIGHT = (0.3, 2.0, 1.0, 0.0, 0.7)
SHAPES = {"one example": (5,), "rows": (6, 5), "sequence": (3, 5, 4), "volume": (2, 5, 2, 3, 2)}
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def plain(**options):
    """Cross-entropy as a learned loss: its memory is not used."""
    return LearnedLoss(PairLoss(DynamicLossNetwork(layers=0, pairs="softmax", memory=1.0)), **options)


def uneven(**options):
    """A network that is far from cross-entropy."""
    network = DynamicLossNetwork(hidden=4, layers=3, pairs="softmax", activation="silu", memory=1.0, seed=3)
    return LearnedLoss(PairLoss(network), **options)


def logits_of(shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(shape, seed=0, ignored=None):
    target = shape[:1] + shape[2:] if len(shape) > 1 else ()
    labels = torch.randint(CLASSES, target, generator=torch.Generator().manual_seed(seed))
    if ignored is not None and labels.ndim:
        labels[0] = ignored
    return labels


def soft_of(shape, seed=1):
    return logits_of(shape, seed).softmax(dim=min(1, len(shape) - 1))


def same(ours, torchs, logits, targets, **closeness):
    """Value, dtype and gradient."""
    given = [logits.clone().requires_grad_() for _ in range(2)]
    mine, theirs = ours(given[0], targets), torchs(given[1], targets)
    torch.testing.assert_close(mine, theirs, **(closeness or CLOSE), equal_nan=True)
    seed = torch.ones_like(theirs)
    mine.backward(seed), theirs.backward(seed)
    torch.testing.assert_close(given[0].grad, given[1].grad, **(closeness or CLOSE), equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_equals_torchs_under_every_option(shape, reduction):
    for weight, smoothing in itertools.product((None, WEIGHT), (0.0, 0.1)):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        theirs = {"weight": None if weight is None else torch.tensor(weight), **options}
        for ignore_index in (-100, 1):
            ours, torchs = (
                plain(weight=weight, ignore_index=ignore_index, **options),
                nn.CrossEntropyLoss(ignore_index=ignore_index, **theirs),
            )
            same(ours, torchs, logits_of(shape), labels_of(shape, ignored=ignore_index))
        same(plain(weight=weight, **options), nn.CrossEntropyLoss(**theirs), logits_of(shape), soft_of(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_that_of_torchs_and_the_sum_is_taken_in_single_precision(dtype):
    logits, labels = logits_of((64, CLASSES)).to(dtype), labels_of((64, CLASSES))
    for targets in (labels, soft_of((64, CLASSES)).to(dtype)):
        ours, theirs = plain()(logits, targets), nn.functional.cross_entropy(logits, targets)
        assert ours.dtype == theirs.dtype
        exact = nn.functional.cross_entropy(
            logits.double(), targets.double() if targets.is_floating_point() else targets
        )
        torch.testing.assert_close(ours, exact.to(dtype), rtol=1e-6 if dtype.itemsize >= 4 else 1e-2, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert plain()(logits, targets).dtype == nn.functional.cross_entropy(logits, targets).dtype
            assert torch.equal(uneven()(logits.float(), labels), uneven()(logits.float(), labels))
    low, outside = logits.float(), uneven()(logits.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(uneven()(low, labels), outside)  # the network does not run in the mixed precision


def test_small_labels_of_any_integer_type_are_class_numbers():
    logits, labels = logits_of((6, CLASSES)), labels_of((6, CLASSES))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(plain()(logits, labels.to(dtype)), plain()(logits, labels))


def test_what_is_ignored_reaches_neither_loss_nor_gradient_and_nothing_left_is_torchs_nan():
    logits, labels = logits_of((3, CLASSES)), torch.tensor([0, -100, 4])
    logits[1] = float("inf")
    logits.requires_grad_()
    uneven()(logits, labels).backward()
    assert logits.grad.isfinite().all() and not logits.grad[1].any() and logits.grad[0].any()
    nothing = torch.full((3,), -100)
    assert uneven()(logits, nothing).isnan() and uneven(reduction="sum")(logits, nothing) == 0


@pytest.mark.parametrize("make", [plain, uneven])
def test_weights_of_samples_are_those_of_torchs_rows(make):
    shape, own = (3, CLASSES, 4), torch.tensor([0.5, 0.0, 2.0])
    logits, labels = logits_of(shape), labels_of(shape, ignored=-100)
    rows = make(reduction="none", weight=WEIGHT)(logits, labels)
    counts = torch.where(labels == -100, 0, torch.tensor(WEIGHT)[labels.clamp(min=0)])
    for weights in (own, own[:, None].expand(3, 4) * torch.rand(4)):
        of_rows = weights if weights.ndim == 2 else weights[:, None]
        given = {"sample_weight": weights}
        torch.testing.assert_close(make(reduction="none", weight=WEIGHT)(logits, labels, **given), rows * of_rows)
        torch.testing.assert_close(
            make(reduction="sum", weight=WEIGHT)(logits, labels, **given), (rows * of_rows).sum()
        )
        mean = (rows * of_rows).sum() / (counts * of_rows).sum()
        torch.testing.assert_close(make(weight=WEIGHT)(logits, labels, **given), mean)


def test_soft_targets_are_the_expectation_of_the_loss_over_labels():
    shape = (4, CLASSES)
    logits, q, loss = logits_of(shape), soft_of(shape), uneven(reduction="none")
    each = torch.stack([loss(logits, torch.full((4,), label)) for label in range(CLASSES)], dim=1)
    torch.testing.assert_close(loss(logits, q), (q * each).sum(dim=1))
    labels = labels_of(shape)
    torch.testing.assert_close(loss(logits, nn.functional.one_hot(labels, CLASSES).float()), loss(logits, labels))
    smooth = loss.with_options(label_smoothing=0.2)(logits, labels)
    torch.testing.assert_close(smooth, 0.8 * loss(logits, labels) + 0.2 * each.mean(dim=1))


@pytest.mark.parametrize("shape", list(SHAPES.values())[1:], ids=list(SHAPES)[1:])
def test_rows_of_any_shape_have_the_loss_that_they_have_alone(shape):
    logits, labels = logits_of(shape), labels_of(shape)
    flat = uneven(reduction="none")(logits.movedim(1, -1).reshape(-1, CLASSES), labels.reshape(-1))
    torch.testing.assert_close(uneven(reduction="none")(logits, labels), flat.view(labels.shape))
    torch.testing.assert_close(uneven()(logits, labels), flat.mean())


def test_a_memory_is_kept_by_the_index_of_the_example():
    loss, logits, labels = uneven(num_examples=10), logits_of((3, CLASSES)), labels_of((3, CLASSES))
    index, p = torch.tensor([7, 0, 2]), logits.softmax(dim=1)
    expected = uneven()(logits, labels, memory=(1 - DECAY) * p)
    torch.testing.assert_close(loss(logits, labels, index=index), expected)
    torch.testing.assert_close(loss.memory[index], (1 - DECAY) * p)
    kept = loss.eval().memory.clone()
    torch.testing.assert_close(loss(logits, labels, index=index), expected)
    assert torch.equal(loss.memory, kept)  # in evaluation mode nothing new is remembered

    other = uneven(num_examples=10).eval()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(logits, labels, index=index), loss(logits, labels, index=index))
    given = {"memory": kept[index]}
    assert torch.equal(loss(logits, labels, **given), loss(logits, labels, index=index))


def test_a_loss_without_memory_does_not_mind_an_index():
    network = DynamicLossNetwork(hidden=4, layers=3, pairs="softmax", activation="silu")
    logits, labels = logits_of((3, CLASSES)), labels_of((3, CLASSES))
    loss = LearnedLoss(PairLoss(network))
    assert torch.equal(loss(logits, labels, index=torch.arange(3)), loss(logits, labels))


def test_options_have_torchs_names_and_may_be_set():
    logits, labels, loss = logits_of((6, CLASSES)), labels_of((6, CLASSES)), uneven()
    assert (loss.reduction, loss.ignore_index, loss.label_smoothing, loss.weight) == ("mean", -100, 0.0, None)
    loss.reduction, loss.label_smoothing = "none", 0.1
    assert torch.equal(loss(logits, labels), uneven(reduction="none", label_smoothing=0.1)(logits, labels))
    loss.reduction = "avg"
    with pytest.raises(ValueError, match="reduction must be"):
        loss(logits, labels)


OPTIONS = {"weight": WEIGHT, "ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1}


def test_options_come_with_a_file_a_pickle_a_copy_and_a_state_dict(tmp_path):
    logits, labels = logits_of((6, CLASSES)), labels_of((6, CLASSES))
    loss = uneven(**OPTIONS)
    expected = loss(logits, labels)
    loss.save(tmp_path / "loss.safetensors")
    again = [
        LearnedLoss.load(tmp_path / "loss.safetensors", **OPTIONS),
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
        uneven().with_options(**OPTIONS),
        loss.with_options(reduction="mean").with_options(reduction="sum"),
    ]
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    stateful = LearnedLoss(PairLoss(loss.family.network), torch.zeros_like(loss.phi), **OPTIONS | {"weight": [1.0] * 5})
    stateful.load_state_dict(torch.load(file))
    for other in (*again, stateful):
        assert torch.equal(other(logits, labels), expected)
    assert not list(loss.parameters()) and loss.double().phi.dtype == torch.float64
    assert "meta" in str(loss.to("meta").weight.device)


COMPILED = """
import torch
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss

network = DynamicLossNetwork(hidden=4, layers=3, pairs="softmax", activation="silu")
loss = LearnedLoss(PairLoss(network), weight=(0.3, 2.0, 1.0), ignore_index=2, label_smoothing=0.1)
logits, labels = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, 0, 1, 0])
compiled = torch.compile(loss, backend="eager", fullgraph=True)
gradients = [torch.autograd.grad(each(logits, labels), logits)[0] for each in (loss, compiled)]
torch.testing.assert_close(*gradients)
print(compiled(logits, labels + 5).item())
"""


def test_it_compiles_as_one_graph_and_then_gives_nan_in_the_place_of_a_refusal():
    """In a process of its own, for the tests' checks of shapes do not compile."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True)
    assert done.stdout == "nan\n"


ROWS, LABELS = (3, CLASSES), torch.tensor([0, 1, 4])


@pytest.mark.parametrize(
    ("message", "options", "targets"),
    [
        (r"targets must be from 0 to 4, the 5 classes of the logits, or ignore_index=-100, got 5", {}, LABELS + 1),
        (r"or ignore_index=255, got -1", {"ignore_index": 255}, LABELS - 1),
        (r"targets must be class numbers, one for each row of logits, \[3\], got \[2\] of int64", {}, LABELS[:2]),
        (r"probabilities, of the shape of the logits, \[3, 5\], got \[3\] of float32", {}, LABELS.float()),
        (r"class numbers, one for each row of logits, \[3\], got \[3\] of bool", {}, LABELS > 0),
        (r"weight has 2 classes, and the logits have 5", {"weight": [1.0, 2.0]}, LABELS),
        (r"ignore_index=1 is for class numbers, and the targets are prob", {"ignore_index": 1}, torch.rand(3, 5)),
        (r"weight must be one finite number from 0 on for each class, got \[1, -1", {"weight": [1, -1]}, LABELS),
        (r"reduction must be 'mean', 'sum' or 'none', got 'avg'", {"reduction": "avg"}, LABELS),
        (r"label_smoothing must be between 0 and 1, got 2", {"label_smoothing": 2.0}, LABELS),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(message, options, targets):
    with pytest.raises(ValueError, match=message) as error:
        uneven(**options)(logits_of(ROWS), targets)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        (r"sample_weight must have one number an example, \[3\], or one a target", {"sample_weight": torch.rand(2)}),
        (r"needs num_examples=, the size of the training set", {"index": torch.arange(3)}),
        (r"memory is for a loss that has one, and of the shape \[n, c\]", {"memory": torch.rand(3, 4)}),
    ],
)
def test_what_does_not_fit_the_call_is_refused_in_a_sentence(message, given):
    with pytest.raises(ValueError, match=message):
        uneven()(logits_of(ROWS), LABELS, **given)


def test_an_index_beyond_the_training_set_is_refused():
    loss = uneven(num_examples=4)
    for index in ([0, 1, 4], [0, -1, 2], [0, 1]):
        with pytest.raises(ValueError, match="index must be the places, from 0 to 3, of the 3 examples"):
            loss(logits_of(ROWS), LABELS, index=torch.tensor(index))


def test_options_of_rows_are_refused_by_a_combination_of_terms():
    with pytest.raises(ValueError, match="are for losses of class decisions, and TermLoss is none"):
        LearnedLoss(TermLoss({"ce": ("all",)}), reduction="sum")
