"""Tensors in memory, single ones and several by name, served by the one loader."""

import pytest
import torch

from l2t_ray.data.tensor_examples import loader_of_tensors
from l2t_ray.interfaces import Data, UserError

LABELS = torch.arange(40) % 4
INPUTS = torch.arange(120.0).reshape(40, 3)


def several(n, start=0):
    return {"words": torch.arange(start, start + n), "pixels": torch.arange(start, start + n).double()[:, None] / 7}


def make(train=(INPUTS, LABELS), validation=(INPUTS[:16] + 1000, LABELS[:16]), **changes):
    settings = {"num_steps": 3, "batch_size": 8, "val_batch_size": 6, "seed": 1} | changes
    return loader_of_tensors(train, validation, **settings)


def test_rows_are_those_of_the_two_sets():
    loader = make()
    assert isinstance(loader, Data) and loader.num_classes == 4
    for index in range(5):
        train, val = loader.round(index)
        for batch in train:
            assert torch.equal(batch.inputs, INPUTS[batch.indices]) and torch.equal(batch.targets, batch.indices % 4)
        assert torch.equal(val.inputs, INPUTS[val.indices - 40] + 1000) and (val.indices >= 40).all()
    assert torch.cat([batch.inputs for batch in loader.test()]).equal(INPUTS[:16] + 1000)
    assert torch.cat([batch.indices for batch in loader.validation(0)]).tolist() == list(range(40, 56))
    (whole,) = loader.training_images(loader.sampler.split(0).train[:5])
    assert torch.equal(whole.inputs, INPUTS[:5]) and whole.weights.tolist() == [pytest.approx(0.2)] * 5


def test_tensors_by_name_stay_together_and_keep_their_types():
    targets = {"box": torch.arange(40).half(), "count": torch.arange(40)}
    judged = {name: values[:16] for name, values in targets.items()}
    loader = make((several(40), targets), (several(16, 40), judged), num_classes=2)
    for index in range(3):
        train, val = loader.round(index)
        for batch in train:
            assert batch.inputs["words"].equal(batch.indices) and batch.targets["count"].equal(batch.indices)
            assert batch.inputs["pixels"].equal(batch.indices.double()[:, None] / 7)
            assert batch.targets["box"].dtype is torch.half
        assert val.inputs["words"].equal(val.indices)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_share_the_global_batch(world_size):
    given = [(several(40), LABELS), (several(16, 40), LABELS[:16])]
    whole, workers = make(*given), [make(*given, rank=rank, world_size=world_size) for rank in range(world_size)]
    for index in (0, 7):
        shares = [worker.round(index) for worker in workers]
        for step, batch in enumerate(whole.round(index).train):
            for name, values in batch.inputs.items():
                assert torch.cat([share.train[step].inputs[name] for share in shares]).equal(values)
            assert torch.cat([share.train[step].weights for share in shares]).equal(batch.weights)


def test_a_row_of_both_sets_is_where_it_was_asked_for():
    both = make()._train
    inputs, targets = both.batch(torch.tensor([41, 3, 55, 0]).numpy(), (), torch.device("cpu"))
    assert inputs[:, 0].tolist() == [1003, 9, 1045, 0] and targets.tolist() == [1, 3, 3, 0]


def test_the_dry_round_tries_the_extreme_examples():
    inputs = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) + 1
    inputs[7], inputs[21], inputs[33, 0] = 0, 1.5, 99
    train, val = make((inputs, LABELS), (inputs[:16], LABELS[:16])).dry_round()
    assert {7, 21, 33} <= set(train[0].indices.tolist()) and len(train) == 2 and len(train[0].weights) == 8
    assert 47 in val.indices.tolist() and len(set(val.indices.tolist())) == 6
    assert train[0].weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 41}, "train has 40 examples, fewer than batch_size=41"),
        ({"validation": (INPUTS[:, :2], LABELS)}, r"inputs of train are \(3,\) of torch\.float32 each.*\(2,\)"),
        ({"validation": (several(40), LABELS)}, "inputs of train are one tensor, .* 'words', 'pixels'"),
        ({"train": (several(40), LABELS), "validation": (several(9), LABELS)}, "has 9 inputs but 40 labels"),
        ({"train": (INPUTS, {"a": LABELS})}, "labels must be one tensor, got several by name"),
        ({"train": ({}, LABELS)}, "one tensor, or several by name, got a mapping with the keys"),
        ({"train": ({"a": INPUTS.log()}, LABELS)}, "train has values that are not finite in 1 of 40 inputs"),
        ({"train": (INPUTS, LABELS.clamp(max=2))}, "validation has the label 3"),
        ({"train": (INPUTS, INPUTS), "num_classes": 3}, r"targets of train are \(3,\) of torch.float32 each"),
        ({"world_size": 7}, "too few for 7 workers"),
    ],
)
def test_sets_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)
