"""A study writes no credentials down, and says so when it goes on without them."""

import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.studies.sweep import Sweep

SECRET = "XYZZYsecret"
STORAGE = f"mock://KEY:{SECRET}@bucket/x"


def test_a_study_keeps_its_credentials_in_memory(start):
    sweep = start(settings={"storage": STORAGE})
    assert {trial.config.storage for trial in sweep.planned} == {STORAGE}
    files = [path for path in sweep.directory.rglob("*") if path.is_file()]
    assert files and [path for path in files if SECRET in path.read_text()] == []
    with pytest.raises(UserError, match=r"storage was mock://\*\*\*@bucket/x, and credentials are never written"):
        _ = Sweep.resume(sweep.directory).planned


def test_a_study_without_credentials_is_read_back_as_it_was_written(start):
    sweep = start()
    assert Sweep.resume(sweep.directory).planned == sweep.planned
