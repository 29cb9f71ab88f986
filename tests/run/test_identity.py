"""A run goes on with its own checkpoints, wherever they are, and with no others."""

import json
import shutil

import pytest
import yaml

from l2t_ray.assembly.identity import shown_yaml
from l2t_ray.interfaces import UserError
from l2t_ray.run import Experiment
from l2t_ray.run.written import read_config
from l2t_ray.settings import experiment as configuration
from l2t_ray.training.checkpoint import CheckpointStore


def interrupted(whole, tmp_path, kept=3):
    """A copy of a run, as it was when only its first checkpoints were there."""
    copy = tmp_path / "x"
    shutil.copytree(whole, copy)
    for path in sorted((copy / "checkpoints").iterdir())[kept:]:
        shutil.rmtree(path)
    for name in ("summary.json", "metrics.parquet", "loss.safetensors", "loss.md"):
        (copy / name).unlink()
    return copy


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=5", "seed is 0 there and 5 here"),
        ("training.learning_rate=0.001", "training.learning_rate is 0.05 there and 0.001 here"),
        ("method.teacher.horizon=2", "method.teacher.horizon is 3 there and 2 here"),
        ("controls=[gce]", "controls.0.name is cross_entropy there and gce here"),
        ("data.num_validation=100", "data.num_validation is 200 there and 100 here"),
    ],
)
def test_checkpoints_of_another_experiment_in_storage_are_refused(tiny, tmp_path, override, difference):
    storage = f"storage=file://{tmp_path}/bucket"
    tiny(tmp_path / "a", storage, "training.num_rounds=1").run(quiet=True, figures=False)
    before = sorted((tmp_path / "bucket").rglob("*"))
    with pytest.raises(UserError) as refused:
        tiny(tmp_path / "b", storage, "training.num_rounds=1", override).run(quiet=True, figures=False)
    assert difference.split(" is ")[0] in str(refused.value) and " there and " in str(refused.value)
    assert "holds checkpoints of another experiment of this name" in str(refused.value)
    assert not (tmp_path / "b").exists() and sorted((tmp_path / "bucket").rglob("*")) == before


def test_the_difference_is_said_with_both_values(tiny, tmp_path):
    storage = f"storage=file://{tmp_path}/bucket"
    tiny(tmp_path / "a", storage, "training.num_rounds=1").run(quiet=True, figures=False)
    with pytest.raises(UserError, match=r"seed is 0 there and 5 here; set another name= or another storage="):
        tiny(tmp_path / "b", storage, "training.num_rounds=1", "seed=5").run(quiet=True, figures=False)


def test_where_a_run_is_kept_is_no_part_of_what_it_is(tiny, tmp_path, whole, end_of):
    """Another checkpoint interval, another place, another name of the data's folder: it goes on, to the same end."""
    interrupted(whole, tmp_path)
    tiny(tmp_path, "training.checkpoint_every=1", "training.keep_checkpoints=1", "data.root=elsewhere").run(
        quiet=True, figures=False
    )
    assert end_of(tmp_path / "x") == end_of(whole)
    assert len(list((tmp_path / "x/checkpoints").iterdir())) == 1


def test_a_configuration_that_was_edited_does_not_take_over_the_checkpoints(whole, tmp_path):
    copy = interrupted(whole, tmp_path)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("seed: 0", "seed: 7"))
    with pytest.raises(
        UserError, match=r"x/checkpoints holds checkpoints of another experiment.*seed is 0 there and 7"
    ):
        Experiment.resume(copy).run(quiet=True, figures=False)


def test_other_data_under_the_same_settings_is_another_experiment(tiny, tmp_path):
    labels = tmp_path / "labels.csv"
    digits = tiny(tmp_path / "runs")
    from l2t_ray.assembly.images import load_dataset

    right = load_dataset(digits.config.data).train.labels
    lines = [str(label) for label in right]
    labels.write_text("label\n" + "\n".join(lines) + "\n")
    noisy = ["data.noise.kind=labels", f"data.noise.file={labels}", "training.num_rounds=1", "controls=[]"]
    tiny(tmp_path / "runs", *noisy).run(quiet=True, figures=False)
    (tmp_path / "runs/x/summary.json").unlink()
    lines[0] = str((int(lines[0]) + 1) % 10)
    labels.write_text("label\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"the labels of data\.noise\.file \(labels\) are others"):
        tiny(tmp_path / "runs", *noisy).run(quiet=True, figures=False)


def test_every_checkpoint_says_of_what_it_is(whole):
    there = json.loads((whole / "fingerprint.json").read_text())
    assert there["settings"]["seed"] == 0 and set(there["data"]) == {
        "training images",
        "test images",
        "pixel statistics",
    }
    assert "name" not in there["settings"] and "storage" not in there["settings"]
    assert {"l2t_ray", "torch"} == set(there["code"])
    for checkpoint in (whole / "checkpoints").iterdir():
        assert json.loads((checkpoint / "fingerprint.json").read_text()) == there


def test_storage_that_is_added_later_gets_what_is_here_and_the_run_goes_on(whole, tmp_path, end_of):
    copy = interrupted(whole, tmp_path)
    result = Experiment.resume(copy, [f"storage=file://{tmp_path}/bucket"])
    seen = []
    result.run(quiet=True, figures=False, tracker=_Listener(seen))
    assert [row["round"] for row in seen[0]] == [0, 1, 2, 3, 0, 1]  # of the checkpoint
    assert end_of(copy) == end_of(whole)
    stored = sorted(path.name for path in (tmp_path / "bucket/x/checkpoints").iterdir())
    assert stored == ["0000006-l2t_dln-000002", "0000008-l2t_dln-000004"]
    cut = CheckpointStore(copy / "checkpoints").latest()
    assert cut is not None and len(cut.rows) == 8


def test_the_newest_of_here_and_there_counts(whole, tmp_path, end_of):
    """Storage is one checkpoint ahead of this machine, then behind it."""
    copy, bucket = interrupted(whole, tmp_path), f"storage=file://{tmp_path}/bucket"
    Experiment.resume(copy, [bucket]).run(quiet=True, figures=False)
    for name in ("0000008-l2t_dln-000004", "0000006-l2t_dln-000002"):
        shutil.rmtree(copy / "checkpoints" / name)
    seen = []
    Experiment.resume(copy, [bucket]).run(quiet=True, figures=False, tracker=_Listener(seen))
    assert len(seen[0]) == 8  # nothing was left to do
    shutil.rmtree(tmp_path / "bucket/x/checkpoints/0000008-l2t_dln-000004")
    seen.clear()
    Experiment.resume(copy, [bucket]).run(quiet=True, figures=False, tracker=_Listener(seen))
    assert len(seen[0]) == 8 and (tmp_path / "bucket/x/checkpoints/0000008-l2t_dln-000004").exists()
    assert end_of(copy) == end_of(whole)


class _Listener:
    """A tracker that keeps the rows it is told."""

    def __init__(self, seen):
        self._seen = seen

    def log_params(self, params): ...
    def log_artifacts(self, *paths): ...
    def finish(self, status): ...
    def log_rows(self, rows):
        self._seen.append(list(rows))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_a_configuration_that_is_cut_off_is_one_sentence(whole, tmp_path, share):
    copy = interrupted(whole, tmp_path)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text[: int(share * len(text))])
    with pytest.raises(UserError) as refused:
        Experiment.resume(copy)
    assert "config.yaml" in str(refused.value) and "\n" not in str(refused.value)


def test_a_configuration_that_lacks_one_key_in_the_middle_is_refused(whole, tmp_path):
    copy = interrupted(whole, tmp_path)
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    del tree["training"]["momentum"]
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"is cut off or of another version: it lacks training\.momentum"):
        Experiment.resume(copy)


def test_a_run_of_an_earlier_version_is_refused_with_what_it_lacks_or_what_is_renamed(whole, tmp_path):
    copy = interrupted(whole, tmp_path)
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({key: value for key, value in tree.items() if key != "task"}))
    with pytest.raises(UserError, match=r"config\.yaml is cut off or of another version: it lacks task"):
        Experiment.resume(copy)
    tree["method"]["clean_images"] = "judge"
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(
        UserError, match=r"method\.clean_images=judge in .* is called method\.clean_images=validate now"
    ):
        Experiment.resume(copy)


def test_an_imbalance_is_written_and_part_of_what_a_run_is(tiny, tmp_path):
    thin = [
        "data.imbalance={kind: exponential, factor: 20}",
        "data.split=fixed",
        "training.num_rounds=1",
        "controls=[]",
    ]
    noisy = [*thin, "data.noise={kind: flip_to_two, rate: 0.4}"]
    directory = tiny(tmp_path, *noisy).run(quiet=True, figures=False).directory
    found = json.loads((directory / "imbalance.json").read_text())
    assert found["images"][0] / found["images"][9] == pytest.approx(20, rel=0.1) == found["realised_factor"]
    assert sum(found["images"]) == sum(found["labelled"]) == found["num_images"]
    assert found["images"] != found["labelled"]
    (directory / "summary.json").unlink()
    other = [*noisy, "data.imbalance.factor=10"]
    with pytest.raises(UserError, match=r"data\.imbalance\.factor is 20\.0 there and 10\.0 here"):
        tiny(tmp_path, *other).run(quiet=True, figures=False)


def test_a_configuration_that_lost_its_optimizer_is_refused(whole, tmp_path):
    copy = interrupted(whole, tmp_path)
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    del tree["training"]["optimizer"]
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"it lacks training\.optimizer"):
        Experiment.resume(copy)


def test_a_checkpoint_of_an_older_format_is_one_sentence(whole, tmp_path):
    copy = interrupted(whole, tmp_path)
    for checkpoint in (copy / "checkpoints").iterdir():
        text = json.dumps({"format": 3, "arm": "l2t_dln", "round": 2})
        (checkpoint / "progress.json").write_text(text)
        import hashlib

        sums = {"progress.json": hashlib.sha256(text.encode()).hexdigest()}
        (checkpoint / "manifest.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match=r"has checkpoint format 3, this version reads 4; resume it with the version"):
        Experiment.resume(copy).run(quiet=True, figures=False)


def test_commands_without_a_name_never_share_a_directory(tmp_path, monkeypatch):
    from tiny_runs import CONFIG, TINY

    import l2t_ray.run.ready_experiment as module

    monkeypatch.setattr(module.time, "strftime", lambda *_: "20260101-000000")
    settings = [*TINY, f"runs={tmp_path}", "training.num_rounds=1", "controls=[]"]
    experiments = [Experiment.from_yaml(CONFIG, [*settings, f"seed={seed}"]) for seed in (0, 1)]
    assert list(tmp_path.iterdir()) == []  # nothing is made before it begins
    results = [experiment.run(quiet=True, figures=False) for experiment in experiments]
    assert [r.directory.name for r in results] == ["digits-20260101-000000", "digits-20260101-000000-2"]
    for seed, result in enumerate(results):
        written = yaml.safe_load((result.directory / "config.yaml").read_text())
        assert (written["seed"], written["name"]) == (seed, result.directory.name)
        assert Experiment.resume(result.directory).config.seed == seed


@pytest.mark.parametrize("name", ["1e3", "0o17", "1_000", "010", "2026-11-28", "null", "yes"])
def test_text_that_looks_like_something_else_is_read_back_as_it_was_written(tmp_path, name):
    config = configuration.validate({"name": name, "tracking": {"experiment": name}}, source="a test")
    (tmp_path / "config.yaml").write_text(shown_yaml(config))
    assert read_config(tmp_path) == config
