"""Files from elsewhere cannot run code, and a run stays in its directory."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import UserError
from l2t_ray.run import Experiment
from l2t_ray.settings import experiment as config
from l2t_ray.training.checkpoint import FORMAT, CheckpointStore


class Bomb:
    def __init__(self, trace: Path):
        self._trace = trace

    def __reduce__(self):
        return Path.touch, (self._trace,)


@pytest.mark.parametrize("name", ["student.pt", "method.pt", "teacher.pt", "arms.pt"])
def test_a_checkpoint_that_holds_code_is_refused_before_it_runs(tmp_path, name):
    """Its checksums are right: whoever can write the files can write those too."""
    directory, trace = tmp_path / "checkpoints" / "0000001-a-000001", tmp_path / "exploded"
    directory.mkdir(parents=True)
    (directory / "progress.json").write_text(json.dumps({"format": FORMAT, "arm": "a", "round": 1}))
    (directory / "config.yaml").touch()
    (directory / "fingerprint.json").write_text("null")
    for file in ("student.pt", "method.pt", "teacher.pt", "arms.pt"):
        (directory / file).write_bytes(pickle.dumps(Bomb(trace) if file == name else {}))
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    (directory / "manifest.json").write_text(json.dumps(checksums))
    with pytest.raises(Exception, match=r"Weights only load failed|weights_only"):
        CheckpointStore(tmp_path / "checkpoints").latest()
    assert not trace.exists()


def test_a_learned_loss_that_holds_code_is_refused_before_it_runs(tmp_path):
    trace = tmp_path / "exploded"
    (tmp_path / "loss.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(Exception, match=r"[Hh]eader"):
        DynamicLossNetwork.load(tmp_path / "loss.safetensors")
    assert not trace.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/object/new:pathlib.Path"])
def test_a_configuration_that_holds_code_is_refused_before_it_runs(tmp_path, tag):
    path, trace = tmp_path / "config.yaml", tmp_path / "exploded"
    path.write_text(f"name: {tag} ['{trace}']\n")
    with pytest.raises(UserError, match="is not valid YAML: could not determine a constructor"):
        config.load(path)
    with pytest.raises(UserError, match="is not valid YAML"):
        config.load(Path("configs/digits.yaml"), [f"name={tag} ['{trace}']"])
    assert not trace.exists()


@pytest.mark.parametrize("name", ["..", ".", "../run", "/tmp/run", "a/b", "a\\b", ".hidden", "~", "$HOME", "a\nb", ""])
def test_a_name_cannot_leave_the_directory_of_runs(tmp_path, name):
    with pytest.raises(UserError, match="must be a plain directory name"):
        Experiment.from_yaml("configs/digits.yaml", [f"runs={tmp_path}", f"name={json.dumps(name)}"])
