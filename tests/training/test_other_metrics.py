"""A task whose headline is not accuracy, from training to tables; and tasks that keep their word about metrics, or do
not."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.student import StudentSchedule, Trainee, cross_entropy
from l2t_ray.headline import ERROR
from l2t_ray.interfaces import Batch, RoundBatches, UserError
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.reports.tables import comparison
from l2t_ray.run import summarise
from l2t_ray.tasks.segmentation import Segmentation
from l2t_ray.tracking.metrics import SCHEMA, read_rows, write_rows
from l2t_ray.tracking.screen import Screen, summary_table
from l2t_ray.training.loop import Arm, Run

NAMES = ("sky", "road")


class Pixels:
    """Two channels of noise; a pixel's class is which of them is larger."""

    num_classes = len(NAMES)

    def batch(self, seed):
        inputs = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        return Batch(inputs, inputs.argmax(dim=1), torch.full((3,), 1 / 48), torch.arange(3))

    def round(self, index):
        return RoundBatches([self.batch(10 * index + k) for k in range(2)], self.batch(10 * index + 9))

    def epoch(self, index):
        return 0

    def validation(self, epoch):
        return [self.batch(100)]

    def test(self):
        return [self.batch(200), self.batch(201)]


def trained(task):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = FlatModule(nn.Conv2d(2, len(NAMES), 1))
    sgd, group = StudentSchedule(lambda step: 1.0, 2), SingleProcess()
    run = Run(
        arms=[Arm("cross_entropy", FixedLoss(Trainee(student, task, sgd, group), cross_entropy))],
        student=student,
        task=task,
        data=Pixels(),
        group=group,
        num_rounds=2,
        num_steps=2,
        images_per_round=6,
        eval_every=1,
        checkpoint_every=2,
    )
    return run.train(start=None, store=None, on_row=lambda row: None).rows


@pytest.fixture(scope="module")
def rows():
    return trained(Segmentation(NAMES))


def test_rows_have_the_tasks_metrics_on_both_parts(rows):
    names = {"miou", "accuracy", "class_accuracy", "error", "iou_sky", "iou_road"}
    for row in rows:
        columns = {name for name in row if name.startswith(("test_", "validation_"))}
        assert columns == {f"{part}_{name}" for part in ("test", "validation") for name in names}
        assert row["test_miou"] == pytest.approx((row["test_iou_sky"] + row["test_iou_road"]) / 2)
    assert rows[0]["test_miou"] != rows[0]["validation_miou"]


def test_final_metrics_are_about_the_headline(rows):
    # Rounds whose headline went down, and whose validation part would choose the first.
    first, last = ({**row, "test_miou": test, "validation_miou": val} for row, test, val in zip(
        rows, (0.6, 0.5), (0.9, 0.8), strict=True
    ))  # fmt: skip
    summary = summarise("cross_entropy", [first, last], Segmentation.metrics)
    assert summary["headline"] == "miou"
    assert (summary["test_miou"], summary["best_test_miou"], summary["selected_test_miou"]) == (0.5, 0.6, 0.6)
    assert summary["test_accuracy"] == last["test_accuracy"] and summary["test_error"] == last["test_error"]
    assert "best_test_accuracy" not in summary


def test_the_best_of_a_metric_that_is_to_be_small_is_the_smallest(rows):
    first, last = ({**row, "test_error": e, "validation_error": e} for row, e in zip(rows, (0.2, 0.4), strict=True))
    summary = summarise("cross_entropy", [first, last], (ERROR,))
    assert (summary["test_error"], summary["best_test_error"], summary["selected_test_error"]) == (0.4, 0.2, 0.2)


def test_tables_show_the_headline(rows):
    summary = summarise("cross_entropy", rows, Segmentation.metrics)
    percent = f"{100 * summary['test_miou']:.2f}"
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table([summary]))
    shown = console.file.getvalue()
    assert "test mIoU" in shown and f"{percent} %" in shown and "accuracy" not in shown
    markdown = comparison([summary, {**summary, "arm": "other", "test_miou": summary["test_miou"] - 0.01}])
    assert "test mIoU [%]" in markdown and f" {percent} " in markdown and "-1.00" in markdown


def test_the_screen_shows_the_headline_of_each_evaluation(rows):
    console = Console(file=io.StringIO(), width=200)
    screen = Screen(console=console, interval=0)
    screen.start([("cross_entropy", 2)], Segmentation.metrics[0])
    screen.update(rows[0])
    assert f"test mIoU {100 * rows[0]['test_miou']:.2f} %" in console.file.getvalue()


def test_the_tasks_own_columns_follow_the_known_ones(rows, tmp_path):
    write_rows(tmp_path / "metrics.parquet", rows)
    back = read_rows(tmp_path / "metrics.parquet")
    known, own = list(back[0])[: len(SCHEMA)], list(back[0])[len(SCHEMA) :]
    assert known == SCHEMA.names and {"test_miou", "validation_iou_sky"} <= set(own)
    assert [row["test_miou"] for row in back] == [row["test_miou"] for row in rows]


class WithPrefix(Segmentation):
    def summarise(self, totals):
        return {f"test_{name}": x for name, x in super().summarise(totals).items()}


def test_a_task_that_does_not_give_its_metrics_is_refused():
    with pytest.raises(UserError, match=r"segmentation gives test_miou, .* name 'miou' too; .* without a prefix"):
        trained(WithPrefix(NAMES))
