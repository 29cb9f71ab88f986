"""The list of suspicious labels in a run directory."""

import csv

import numpy as np
import pytest
import torch

from l2t_ray.core.suspects import Suspects
from l2t_ray.data.arrow import ImageSet
from l2t_ray.interfaces import StoppedError
from l2t_ray.run import Experiment
from l2t_ray.run.suspects_file import file_name, write_suspects

NOISY = [
    *("method={name: recommended, channel_estimates: 1}", "data.noise={kind: flip_to_two, rate: 0.4}"),
    *("data.split=fixed", "training.batch_size=100"),
]


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def noisy(tiny, tmp_path_factory):
    """A run of cross-entropy and of the recommended method, which nobody disturbed."""
    return tiny(tmp_path_factory.mktemp("noisy"), *NOISY).run(quiet=True, figures=False)


def test_the_method_that_remembers_has_a_list_and_the_other_arm_has_none(noisy):
    assert [path.name for path in noisy.directory.glob("suspects*")] == ["suspects.csv"]
    found = lines(noisy.directory / "suspects.csv")
    assert list(found[0]) == ["index", "given_label", "suggested_label", "score"]
    scores = [float(line["score"]) for line in found if line["score"]]
    assert scores == sorted(scores, reverse=True) and 0 < len(scores) < len(found)
    assert not any(line["score"] for line in found[len(scores) :])  # never seen
    assert (
        sum(line["given_label"] != line["suggested_label"] for line in found)
        == noisy.suspects["recommended"].differs.sum()
    )


def test_a_run_that_was_stopped_and_resumed_lists_the_same(tiny, tmp_path, noisy):
    class Meddler:
        def log_params(self, params): ...
        def log_artifacts(self, *paths): ...
        def finish(self, status): ...
        def log_rows(self, rows):
            if rows[-1]["arm"] == "recommended" and rows[-1]["round"] == 2:
                raise StoppedError("enough")

    with pytest.raises(StoppedError):
        tiny(tmp_path, *NOISY).run(quiet=True, figures=False, tracker=Meddler())
    assert not (tmp_path / "x/suspects.csv").exists()
    Experiment.resume(tmp_path / "x").run(quiet=True, figures=False)
    assert (tmp_path / "x/suspects.csv").read_bytes() == (noisy.directory / "suspects.csv").read_bytes()


def test_images_have_their_published_number_and_their_name_where_they_have_one(tmp_path):
    images = ImageSet(
        np.zeros((3, 1, 2, 2), dtype=np.uint8),
        np.array([0, 1, 0]),
        np.array([0, 5, 7]),  # a copy that lacks images
        ("cat", "dog, small"),
        names=["a.png", "b.png", "c,1.png"],
    )
    rows, given, said = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([0, 0])
    scores = torch.tensor([0.75, torch.nan], dtype=torch.float64)
    write_suspects(tmp_path / "list.csv", Suspects(rows, given, said, scores, True), images)
    assert lines(tmp_path / "list.csv") == [
        {"index": "7", "image": "c,1.png", "given_label": "dog, small", "suggested_label": "cat", "score": "0.75"},
        {"index": "0", "image": "a.png", "given_label": "cat", "suggested_label": "cat", "score": ""},
    ]


def test_lists_of_several_methods_have_names_of_their_own():
    assert file_name("elr", is_method=False) == "suspects-elr.csv" and file_name("x", is_method=True) == "suspects.csv"
