"""What is read back of a run's directory: the whole configuration of a run, or one sentence."""

import shutil

import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.run import Experiment


def test_a_checkpoint_is_no_run_to_go_on_with(whole):
    checkpoint = next((whole / "checkpoints").iterdir())
    with pytest.raises(UserError, match=rf"{checkpoint} is a checkpoint; give --resume {whole}, "):
        Experiment.resume(checkpoint)


@pytest.mark.parametrize("size", [10, 300, 301, 700, -1])
def test_a_configuration_that_is_cut_off_anywhere_is_called_so(whole, tmp_path, size):
    text = (whole / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(text[:size])
    with pytest.raises(UserError, match=r"config\.yaml is cut off: .*put back a whole one"):
        Experiment.resume(tmp_path)


def test_a_configuration_that_is_cut_off_at_the_end_of_any_line_is_called_so(whole, tmp_path):
    lines = (whole / "config.yaml").read_text().splitlines(keepends=True)
    for count in range(1, len(lines), 7):
        (tmp_path / "config.yaml").write_text("".join(lines[:count]))
        with pytest.raises(UserError, match=r"config\.yaml is cut off or of another version: it lacks "):
            Experiment.resume(tmp_path)


def test_a_whole_copy_of_a_run_can_be_gone_on_with(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    assert Experiment.resume(tmp_path / "copy").config.name == "x"
