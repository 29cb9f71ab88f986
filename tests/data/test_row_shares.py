"""Every row that counts has the same weight, whichever worker has it."""

import pytest
import torch

from l2t_ray.data.row_shares import RowShares
from l2t_ray.interfaces import Batch, Data, RoundBatches
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.segmentation import Segmentation

TASK = Segmentation(("a", "b"), ignore=9)
MASKS = torch.tensor([[[0, 1], [9, 9]], [[1, 1], [1, 0]], [[9, 9], [9, 9]]])


class Masks:
    num_classes = 2

    def __init__(self, rows):
        self.rows = rows

    def batch(self):
        n = len(self.rows)
        return Batch(torch.zeros(n, 1, 2, 2), MASKS[self.rows], torch.full((n,), 7.0), torch.tensor(self.rows))

    def round(self, index):
        return RoundBatches([self.batch(), self.batch()], self.batch())

    def epoch(self, index):
        return index // 3

    def validation(self, epoch):
        return [self.batch()]

    def test(self):
        return [self.batch()]


def test_rows_share_alike_and_ignored_ones_have_none():
    data = RowShares(Masks([0, 1, 2]), TASK, SingleProcess())
    assert isinstance(data, Data) and data.num_classes == 2 and data.epoch(4) == 1
    for batch in (*data.round(0).train, data.round(0).val):
        torch.testing.assert_close(batch.weights, torch.full((3,), 1 / 6))
        rows = TASK.terms(torch.zeros(3, 2, 2, 2), batch).rows
        assert rows.weights.sum().item() == pytest.approx(1) and rows.owner.tolist() == [0, 0, 1, 1, 1, 1]
    assert next(iter(data.test())).weights.tolist() == [7, 7, 7]


def test_two_workers_divide_by_what_both_have(run_on_two_workers):
    parts = [[0], [1, 2]]
    both = run_on_two_workers(lambda group: RowShares(Masks(parts[group.rank]), TASK, group).round(0))
    for own in both:
        torch.testing.assert_close(own.train[0].weights, torch.full_like(own.train[0].weights, 1 / 6))


def test_a_minibatch_of_which_nothing_counts_weighs_nothing():
    batch = RowShares(Masks([2, 2]), TASK, SingleProcess()).round(0).val
    assert batch.weights.tolist() == [0, 0]
    error = TASK.error(torch.zeros(2, 2, 2, 2, requires_grad=True), batch, SingleProcess())
    assert error.item() == 0
