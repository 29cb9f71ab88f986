"""The end of a run: whole files, the summary last, and what was trained is what is reported."""

import os
import re
import shutil

import pytest
from tiny_runs import die

from l2t_ray import files
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.interfaces import UserError
from l2t_ray.run import Experiment, results
from l2t_ray.training.checkpoint import CheckpointStore

MOMENTS = {
    "before_the_tables": (results, "write_rows"),
    "before_the_loss": (LearnedLoss, "save"),
    "before_the_page": (results, "loss_card"),
    "before_moving": (results, "_move"),
    "before_the_summary": (results, "write_whole"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("is_resumed", [False, True], ids=["the_same_command", "resume"])
def test_a_run_that_is_killed_while_it_closes_goes_on(tiny, tmp_path, whole, end_of, killed_in, moment, is_resumed):
    place, name = MOMENTS[moment]

    def run():
        setattr(place, name, die)
        tiny(tmp_path).run(quiet=True, figures=False)

    killed_in(run)
    assert (tmp_path / "x/checkpoints").exists() and not (tmp_path / "x/summary.json").exists()
    again = Experiment.resume(tmp_path / "x") if is_resumed else tiny(tmp_path)
    again.run(quiet=True, figures=False)
    assert end_of(tmp_path / "x") == end_of(whole)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {path.name for path in whole.iterdir()}


def test_a_finished_run_is_not_run_again_by_the_same_command(tiny, whole):
    with pytest.raises(UserError, match="holds a finished run already; set another name="):
        tiny(whole.parent)


def test_results_are_moved_into_place_whole(tiny, tmp_path, monkeypatch):
    """Nobody sees half a file under its own name: everything is written elsewhere first."""
    written = []
    replace = os.replace

    def noted(self, target):
        written.append((self.parent.name, target.name))
        replace(self, target)
        return target

    monkeypatch.setattr(type(tmp_path), "replace", noted)
    tiny(tmp_path).run(quiet=True, figures=False)
    names = [name for folder, name in written if folder == ".results"]
    assert {"loss.md", "loss.safetensors", "metrics.parquet"} <= set(names)
    assert written[-1][1] == "summary.json"


def test_a_checkpoint_that_appears_from_elsewhere_is_not_reported(tiny, tmp_path, whole, end_of):
    """Before the results are written, an older cut is put there under a later name."""
    experiment = tiny(tmp_path)

    class Meddler:
        def log_params(self, params): ...
        def log_artifacts(self, *paths): ...
        def finish(self, status): ...
        def log_rows(self, rows):
            if rows[-1]["arm"] == "l2t_dln" and rows[-1]["round"] == 3:
                checkpoints = tmp_path / "x/checkpoints"
                shutil.copytree(sorted(checkpoints.iterdir())[0], checkpoints / "0000099-l2t_dln-000099")

    experiment.run(quiet=True, figures=False, tracker=Meddler())
    assert end_of(tmp_path / "x") == end_of(whole)


def test_copies_of_checkpoints_are_left_alone_and_count_for_nothing(tiny, tmp_path, whole, end_of):
    copy = tmp_path / "x"
    shutil.copytree(whole, copy)
    checkpoints = sorted((copy / "checkpoints").iterdir())
    for path in checkpoints[3:]:
        shutil.rmtree(path)
    (copy / "summary.json").unlink()
    for name in ("best", "best2", "zz-copy", f"{checkpoints[0].name}.bak"):
        shutil.copytree(checkpoints[0], copy / "checkpoints" / name)
    (copy / "checkpoints/notes.txt").write_text("mine")
    tiny(tmp_path, "training.keep_checkpoints=1").run(quiet=True, figures=False)
    assert end_of(copy) == end_of(whole)
    names = {path.name for path in (copy / "checkpoints").iterdir()}
    assert names == {"best", "best2", "zz-copy", f"{checkpoints[0].name}.bak", "notes.txt", "0000008-l2t_dln-000004"}


@pytest.mark.parametrize(
    "overrides",
    [["data.num_validation=5"], ["data.name=cifar10", "data.root=nowhere", "data.download=false"], ["storage=no://x"]],
)
def test_a_mistake_leaves_no_directory(tiny, tmp_path, overrides):
    with pytest.raises(UserError):
        tiny(tmp_path / "runs", *overrides).run(quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_before_the_first_round_leaves_no_directory(tiny, tmp_path, monkeypatch):
    from l2t_ray.run.conduct import Conduct

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Conduct, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path / "runs").run(quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_configuration_and_checkpoints_are_private_whatever_the_umask(tiny, tmp_path):
    before = os.umask(0)
    try:
        tiny(tmp_path, "training.num_rounds=1", "controls=[]").run(quiet=True, figures=False)
    finally:
        os.umask(before)
    for name, mode in (("config.yaml", 0o600), ("fingerprint.json", 0o600), ("checkpoints", 0o700)):
        assert (tmp_path / "x" / name).stat().st_mode & 0o777 == mode, name


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "a", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_last_cut_is_in_the_newest_checkpoint(whole):
    cut = CheckpointStore(whole / "checkpoints").latest()
    assert cut is not None and re.fullmatch(r"0000008-l2t_dln-000004", cut.name)
