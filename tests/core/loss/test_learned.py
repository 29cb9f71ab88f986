"""A learned loss outlives its training: whatever its family, a file gives back the same loss, and no other task's."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import l2t_ray
from l2t_ray.core.loss import file as loss_file
from l2t_ray.core.loss.adjusted import AdjustedLoss, AdjustedSpec
from l2t_ray.core.loss.family import Bars, Curve, KeptFamily, Surface
from l2t_ray.core.loss.learned import FAMILIES, LearnedLoss
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.soft_metric import SoftMetricLoss, SoftMetricSpec
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.segmentation import Segmentation

PARTS = {
    "layers": {"hidden": 4, "layers": 3, "pairs": "softmax", "activation": "silu"},
    "table": {"hidden": 4, "layers": 3, "pairs": "softmax", "label_table": 3},
    "channel": {"layers": 0, "pairs": "softmax", "channel": 3},
    "all": {"hidden": 4, "layers": 2, "pairs": "softmax", "channel": 3, "memory": 2.0},
}
CE, CLASSES, OVERLAP = torch.tensor([0.1, 0.7, 3.0]), torch.tensor([0, 1, 1]), torch.tensor([0.4, 0.6])
GIVEN = {"ce": (CE, CLASSES), "overlap": OVERLAP}


def some(n, seed=0):
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def of_pairs(kind):
    network = DynamicLossNetwork(seed=3, **PARTS[kind])
    return LearnedLoss(PairLoss(network), network.phi.detach() + some(network.phi.numel()))


def of_terms():
    family = TermLoss({"ce": ("sky", "road"), "overlap": ("all",)}, shares={"ce": [0.9, 0.1]}, knots={"ce": [0.5, 2.0]})
    return LearnedLoss(family, some(family.num_weights))


def of_numbers():
    spec = AdjustedSpec(shifts=(0.0, 1.0, -1.0), smoothing=True, power=True, temperature=True, channel=3, memory=1.0)
    return LearnedLoss(AdjustedLoss(spec), some(spec.num_weights).abs())


def of_soft_metric():
    family = SoftMetricLoss(SoftMetricSpec(("sky", "road", "car"), (0.5, 0.3, 0.2), pieces=3))
    return LearnedLoss(family, some(family.spec.num_weights))


LOSSES = {
    **{kind: lambda kind=kind: of_pairs(kind) for kind in PARTS},
    "terms": of_terms,
    "numbers": of_numbers,
    "soft metric": of_soft_metric,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "loss.safetensors"


def value_of(loss):
    if loss.family.family == "terms":
        return loss(GIVEN)
    return loss(torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]]), torch.tensor([0, 2]))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_file_gives_back_a_loss_that_can_be_called(path, kind):
    loss = LOSSES[kind]()
    assert isinstance(loss.family, KeptFamily) and FAMILIES[loss.family.family] is type(loss.family)
    loss.save(path)
    loaded = l2t_ray.LearnedLoss.load(path)
    assert loaded.family.spec == loss.family.spec and torch.equal(loaded.phi, loss.phi)
    assert torch.equal(value_of(loaded), value_of(loss)) and value_of(loss).shape == ()
    assert value_of(LearnedLoss(loss.family)) != value_of(loss)  # what was learned counts


def test_the_loss_of_a_network_is_that_of_its_module(path):
    network = DynamicLossNetwork(seed=3, **PARTS["all"])
    network.save(path)
    logits, labels, memory = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 3) / 3
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    loaded = LearnedLoss.load(path)
    weighed = loaded(logits, labels, sample_weight=weights, memory=memory)
    torch.testing.assert_close(weighed, network.loss(logits, labels, weights, memory))  # these weights add up to 1
    assert torch.equal(loaded(logits, labels), network.loss(logits, labels))
    loaded.save(path)
    assert torch.equal(DynamicLossNetwork.load(path).phi, network.phi)


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_from_before_there_were_families_is_read_still(path, version):
    network = DynamicLossNetwork(seed=3)
    network.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    old = {"format": f"l2t_ray.loss/{version}", "spec": metadata["spec"]}
    if version == 2:
        old["sha256"] = checksum_of_format_2(metadata["spec"], network.phi)
    save_file({"phi": network.phi.detach()}, str(path), metadata=old)
    assert torch.equal(LearnedLoss.load(path).phi, network.phi)
    assert torch.equal(DynamicLossNetwork.load(path).phi, network.phi)


def checksum_of_format_2(spec, phi):
    return hashlib.sha256(f"l2t_ray.loss/2\n{spec}\n".encode() + phi.detach().numpy().tobytes()).hexdigest()


def refused(message, load):
    with pytest.raises(ValueError, match=message) as error:
        load()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_file_of_another_family_is_refused_with_what_to_do(path):
    of_terms().save(path)
    refused(
        "family 'terms', and 'pairs' was asked for; load it with l2t_ray.LearnedLoss.load",
        lambda: DynamicLossNetwork.load(path),
    )
    refused("family 'terms', and 'pairs' was asked for", lambda: LearnedLoss.load(path, families={"pairs": PairLoss}))


def test_a_loss_of_another_task_or_of_other_classes_is_refused(path):
    of_terms().save(path)

    def with_task(task, num_classes=None):
        return lambda: LearnedLoss.load(path, task=task, num_classes=num_classes)

    refused(
        r"loss.safetensors combines the terms ce \(sky, road\) and overlap \(all\), and the segmentation task gives "
        r"the terms cross_entropy \(sky, road\) and jaccard \(all\)",
        with_task(Segmentation(["sky", "road"])),
    )
    refused("and the classification task gives no terms; take one that", with_task(Classification()))
    family = TermLoss.for_task(Segmentation(["sky", "road"]))
    LearnedLoss(family).save(path)
    assert torch.equal(with_task(Segmentation(["sky", "road"]))().phi, family.phi)
    refused(r"segmentation task gives the terms cross_entropy \(sky, tree\)", with_task(Segmentation(["sky", "tree"])))
    of_pairs("channel").save(path)
    assert with_task(Classification(), 3)().family.spec.num_classes == 3
    refused("is for 3 classes, and the classification task has 10; take one", with_task(Classification(), 10))


@pytest.mark.parametrize(
    "spec",
    [
        {"kinds": {}, "shares": {}, "knots": {}, "spread": {}},
        {"kinds": {"ce": ["a", "a"]}, "shares": {}, "knots": {}, "spread": {}},
        {"kinds": {"ce": "ab"}, "shares": {}, "knots": {}, "spread": {}},
        {"kinds": {"ce": [1, 2]}, "shares": {}, "knots": {}, "spread": {}},
        {"kinds": {"ce": ["a", "b"]}, "shares": {"ce": [1.0, float("nan")]}, "knots": {}, "spread": {}},
        {"kinds": {"ce": ["a"]}, "shares": {}, "knots": {"ce": [float("inf")]}, "spread": {}},
        {"kinds": {"ce": ["a", "b"]}, "shares": {}},
        {"kinds": {"ce": ["a", "b"]}, "shares": {}, "knots": {}, "spread": {"ce": [1.0, 1.0]}},
        {"kinds": [["ce", ["a", "b"]]], "shares": {}, "knots": {}, "spread": {}},
        {"kinds": {"ce": ["a", "b", "c"]}, "shares": {}, "knots": {}, "spread": {}},
    ],
    ids=str,
)
def test_an_architecture_that_is_none_is_refused(path, spec):
    loss_file.write(path, "terms", spec, torch.zeros(2))
    refused("is damaged", lambda: LearnedLoss.load(path))


def test_a_header_that_is_forged_is_refused(path):
    def put(**changed):
        text = json.dumps(asdict(of_terms().family.spec))
        save_file({"phi": torch.zeros(6)}, str(path), metadata={"format": "l2t_ray.loss/3", "spec": text, **changed})

    put(family="terms", sha256="0")
    refused("its checksum does not fit", lambda: LearnedLoss.load(path))
    put(sha256="0")
    refused("its header has the entries format, sha256, spec", lambda: LearnedLoss.load(path))


# -- its page and its pictures


@pytest.mark.parametrize("kind", LOSSES)
def test_the_example_on_its_page_runs(path, kind, monkeypatch):
    loss = LOSSES[kind]()
    loss.save(path)
    monkeypatch.chdir(path.parent)
    page = loss.describe()
    logits = torch.randn(2, 3, requires_grad=True)
    names = {
        "images": logits,
        "student": lambda images: images,
        "labels": torch.tensor([0, 2]),
        "masks": torch.tensor([0, 2]),
        "batch": type("Batch", (), {"inputs": logits}),
        "task": type(
            "Task",
            (),
            {"terms": lambda logits, batch: {"ce": (logits[:, 0], torch.tensor([0, 1])), "overlap": logits[:, 1]}},
        ),
        "batches": [(logits, torch.tensor([0, 2]), torch.tensor([4, 1]))],
        "num_images": 5,
        "num_classes": 3,
        "device": "cpu",
    }
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == (2 if kind in ("all", "numbers") else 1)
    for example in examples:
        logits.grad = None
        exec(example, names)
        assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()


def test_its_page_says_what_it_is_made_of():
    assert (
        "a dynamic loss network of 3 layers (softmax pairs, silu), for any number of classes"
        in of_pairs("layers").describe()
    )
    assert "cross-entropy without a network, for 3 classes: 9 weights in all" in of_pairs("channel").describe()
    everything = of_pairs("all").describe()
    assert "a channel of label noise" in everything and "It has a memory too, of the weight" in everything
    loss = of_terms()
    (sky, road), (overlap,) = (loss.family.weights(loss.phi)[name].tolist() for name in ("ce", "overlap"))
    for row in (f"| ce | sky | {sky:.3g} |", f"| ce | road | {road:.3g} |", f"| overlap | all | {overlap:.3g} |"):
        assert row in loss.describe()


def test_what_is_drawn_of_a_network_is_its_loss_of_a_pair():
    loss = of_pairs("all")
    surface, memory, channel = loss.pictures()
    assert isinstance(surface, Surface) and isinstance(memory, Bars) and isinstance(channel, Bars)
    pairs = torch.rand(5, 2)
    network = DynamicLossNetwork.of(loss.family.spec, loss.phi)
    torch.testing.assert_close(surface.losses(pairs), network(pairs).detach())
    assert memory.numbers == {"memory": loss.family.report(loss.phi)["memory_weight"]} and memory.start == 2.0
    assert list(channel.numbers) == ["0", "1", "2"] and all(0 < share < 1 for share in channel.numbers.values())


def test_what_is_drawn_of_terms_is_their_weights_and_curves():
    loss = of_terms()
    ce, overlap, curve = loss.pictures()
    assert isinstance(ce, Bars) and isinstance(overlap, Bars) and isinstance(curve, Curve)
    np.testing.assert_allclose(list(ce.numbers.values()), loss.family.weights(loss.phi)["ce"])
    assert list(ce.numbers) == ["sky", "road"] and ce.start == overlap.start == 1
    assert curve.x == (0.0, 0.5, 2.0, 3.0) and curve.y[0] == 0 and list(curve.y) == sorted(curve.y)


# -- a family of one's own


@dataclass(frozen=True)
class Spec:
    start: float

    @property
    def num_weights(self):
        return 1


class Power:
    """-log p_true, to a learned power."""

    family, spec_type, reads_memory = "power", Spec, False

    def __init__(self, start):
        self.spec, self.phi = Spec(start), torch.tensor([start])

    @classmethod
    def of(cls, spec):
        return cls(spec.start)

    def losses(self, phi, terms, memory):
        raise AssertionError

    def fixed(self, terms):
        raise AssertionError

    def report(self, phi):
        return {"power": phi.item()}

    def loss(self, phi, logits, labels):
        return (torch.nn.functional.cross_entropy(logits, labels, reduction="none") ** phi).mean()

    def check(self, task, num_classes=None): ...
    def describe(self, phi):
        return "A power."

    def pictures(self, phi):
        return []


def test_a_family_of_ones_own_is_kept_and_named_when_it_is_loaded(path):
    loss = LearnedLoss(Power(1.5), torch.tensor([2.0]))
    assert isinstance(loss.family, KeptFamily)
    loss.save(path)
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    assert torch.equal(LearnedLoss.load(path, families={"power": Power})(logits, labels), loss(logits, labels))
    refused(
        "holds a loss of the family 'power', and 'pairs' or 'terms' or 'soft_metric' or 'adjusted' was asked for",
        lambda: LearnedLoss.load(path),
    )
