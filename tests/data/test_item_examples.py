"""Items of other people's datasets are read when they are drawn, and the same whenever a round is asked for again."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from l2t_ray.data.item_examples import ItemExamples, batch_size_of, items_of
from l2t_ray.data.tensor_examples import TensorSets, loader_of_tensors
from l2t_ray.interfaces import UserError

SIZES = {"num_steps": 2, "batch_size": 4, "val_batch_size": 3, "seed": 5}
INPUTS = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


class Augmented(Dataset):
    """Adds noise from all of the global streams, and remembers what was read."""

    def __init__(self, count=12):
        self.count, self.read = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        self.read.append(row)
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return INPUTS[row] + noise.float(), int(LABELS[row])


def rounds_of(train, validation=None, rounds=(0, 1, 2)):
    loader = loader_of_tensors(train, validation or TensorDataset(INPUTS, LABELS), **SIZES)
    return [loader.round(index) for index in rounds]


def inputs_of(rounds):
    return [batch.inputs for each in rounds for batch in (*each.train, each.val)]


def test_a_dataset_and_a_loader_give_the_minibatches_of_the_tensors():
    expected = rounds_of((INPUTS, LABELS), (INPUTS, LABELS))
    dataset = TensorDataset(INPUTS, LABELS)
    for train in (dataset, DataLoader(dataset, batch_size=5, shuffle=True), DataLoader(dataset, batch_size=5)):
        for own, other in zip(rounds_of(train), expected, strict=True):
            for batch, wanted in zip((*own.train, own.val), (*other.train, other.val), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))


def test_what_items_draw_follows_from_the_round_alone_and_moves_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = rounds_of(Augmented())
    after = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all()  # beartype draws from Python's
    torch.manual_seed(2)
    again = rounds_of(Augmented(), rounds=(2, 1, 0))[::-1]
    assert all(torch.equal(a, b) for a, b in zip(inputs_of(first), inputs_of(again), strict=True))
    added = torch.cat([b.inputs[:, 0] - INPUTS[b.indices, 0] for each in first for b in each.train])
    assert len(added.unique()) > 20  # each reading draws anew


def test_what_is_only_looked_at_is_the_same_each_time():
    loader = loader_of_tensors((INPUTS, LABELS), Augmented(), **SIZES)
    first, second = ([batch.inputs for batch in loader.validation(epoch)] for epoch in (0, 1))
    assert torch.equal(torch.cat(first), torch.cat(second))
    given = dict(zip(loader.round(0).val.indices.tolist(), loader.round(0).val.inputs, strict=True))
    assert all(torch.equal(torch.cat(first)[row - 12], inputs) for row, inputs in given.items())


def test_items_are_read_once_at_first_and_then_as_they_are_drawn():
    train = Augmented()
    loader = loader_of_tensors(train, (INPUTS, LABELS), **SIZES)
    assert train.read == list(range(12))
    train.read.clear()
    drawn = [row for batch in loader.round(0).train for row in batch.indices.tolist()]
    assert train.read == drawn


def padded(items):
    """Words to the length of the longest one of their minibatch."""
    words, labels = zip(*items, strict=True)
    return {"words": torch.nn.utils.rnn.pad_sequence(words, batch_first=True)}, torch.tensor(labels)


def test_each_minibatch_is_put_together_by_the_loaders_rule_clean_examples_among_them():
    class Words(Dataset):
        def __init__(self, first):
            self.first = first

        def __len__(self):
            return 12

        def __getitem__(self, row):
            return torch.full((row + self.first,), row + 1), int(LABELS[row])

    train, validation = (DataLoader(Words(first), batch_size=4, collate_fn=padded) for first in (1, 9))
    sets = TensorSets(train, validation, batch_size=4, val_batch_size=3, device=torch.device("cpu"))
    for batch in rounds_of(train, validation)[0].train:
        assert batch.inputs["words"].shape[1] == batch.indices.max() + 1
    inputs, labels = sets.both().batch(np.array([2, 12, 23]), (), torch.device("cpu"))
    assert inputs["words"].shape == (3, 20) and labels.tolist() == [2, 0, 2]


@pytest.mark.parametrize("key", ["label", "labels"])
def test_items_by_name_have_their_label_among_them(key):
    rows = [{"x": INPUTS[i].numpy(), key: int(LABELS[i])} for i in range(12)]

    class Rows:
        __len__ = lambda self: 12  # noqa: E731
        __getitem__ = lambda self, row: rows[row]  # noqa: E731

    own, expected = rounds_of(Rows(), Rows()), rounds_of((INPUTS, LABELS), (INPUTS, LABELS))
    for batch, other in zip(own[0].train, expected[0].train, strict=True):
        assert [*batch.inputs] == ["x"] and torch.equal(batch.inputs["x"], other.inputs)
        assert torch.equal(batch.targets, other.targets)


def test_targets_of_a_task_are_kept_where_they_are_class_numbers_and_else_read_anew():
    for targets, are_kept in ((LABELS, True), (INPUTS[:, 0], False), (torch.ones(12, 2).long(), False)):
        own = ItemExamples(items_of("train", TensorDataset(INPUTS, targets)), are_labels=False)
        both = own.followed_by(own)
        assert (own.targets is not None) == (both.targets is not None) == are_kept
        assert torch.equal(both.batch(np.array([3, 15]), (), torch.device("cpu"))[1], targets[[3, 3]])


def test_a_loader_of_some_rows_gives_those_alone():
    chosen = [0, 1, 2, 6, 7, 8]
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3, sampler=SubsetRandomSampler(chosen))
    items = items_of("train", loader)
    assert len(items.dataset) == 6 and items.batch_size == 3
    assert torch.equal(torch.stack([items.dataset[i][0] for i in range(6)]), INPUTS[chosen])


def test_a_loaders_batch_size_is_known_and_bounded_by_a_share_of_its_examples():
    dataset = TensorDataset(INPUTS, LABELS)
    assert batch_size_of(DataLoader(dataset, batch_size=5)) == 5
    assert batch_size_of(DataLoader(dataset, batch_size=100), share=0.5) == 6
    assert batch_size_of((INPUTS, LABELS)) is None and batch_size_of(dataset) is None


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(INPUTS[0], 0)])


class Items(Dataset):
    def __init__(self, item, count=12):
        self.item, self.count = item, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.item(row)


class Endless(Dataset):
    def __getitem__(self, row):
        return INPUTS[0], 0


def image(row):
    from PIL import Image

    return Image.new("RGB", (2, 2)), 0


WHOLE = TensorDataset(INPUTS, LABELS)
REFUSED = {
    "train is an IterableDataset .Stream.*by number": Stream(),
    "train is a Endless without a length": Endless(),
    "train is empty": Items(image, 0),
    "DataLoader with a WeightedRandomSampler.*shuffle=True": DataLoader(
        WHOLE, batch_size=4, sampler=WeightedRandomSampler([1.0] * 12, 12)
    ),
    "DataLoader with a RandomSampler": DataLoader(WHOLE, batch_size=4, sampler=RandomSampler(WHOLE, replacement=True)),
    "DataLoader with a Own": DataLoader(
        WHOLE, batch_sampler=type("Own", (BatchSampler,), {})(SequentialSampler(WHOLE), 4, False)
    ),
    "DataLoader with no batch size": DataLoader(WHOLE, batch_size=None),
    r"train\[7\] cannot be read: ValueError: broken.*leave that item out": Items(
        lambda row: (_ for _ in ()).throw(ValueError("broken")) if row == 7 else (INPUTS[row], 0)
    ),
    "items of train cannot be put into a minibatch: TypeError.*Image": Items(image),
    "cannot be put into a minibatch: RuntimeError: stack expects": Items(lambda row: (torch.zeros(row), 0)),
    r"minibatch of train must be \(inputs, labels\).*got a Tensor": Items(lambda row: INPUTS[row]),
    "minibatch of train must be .* got 3 things": Items(lambda row: (INPUTS[row], 0, row)),
    "labels must be one int64 class number": Items(lambda row: (INPUTS[row], 0.5)),
    "at least 0, got -1": Items(lambda row: (INPUTS[row], -1)),
    "not finite in 1 of 12 inputs, the first at position 9": Items(
        lambda row: (INPUTS[row] / (0.0 if row == 9 else 1.0), 0)
    ),
    r"train are \(2, 1\).*validation \(2,\)": Items(lambda row: (INPUTS[row][:, None], int(LABELS[row]))),
    "has 11 examples of 12 items": DataLoader(
        WHOLE, batch_size=4, collate_fn=lambda items: torch.utils.data.default_collate(items[1:])
    ),
    "train has 3 examples, fewer than batch_size=4": Items(lambda row: (INPUTS[row], row), 3),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_sentence(sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        rounds_of(REFUSED[sentence])
    assert "\n" not in str(refusal.value)


def test_a_loader_of_a_stream_is_refused_as_the_stream_is():
    with pytest.raises(UserError, match="train is an IterableDataset"):
        rounds_of(DataLoader(Stream(), batch_size=4))
