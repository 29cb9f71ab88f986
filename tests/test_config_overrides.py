"""Several overrides of one section add up."""

from pathlib import Path

from l2t_ray.config import load

DIGITS = Path(__file__).parents[1] / "configs/digits.yaml"


def test_overrides_of_a_variant_without_a_name_add_up():
    teacher = load(DIGITS, ["method.teacher.cells=[4]", "method.teacher.horizon=4"]).method.teacher
    assert (teacher.cells, teacher.horizon) == ((4,), 4)


def test_another_variant_takes_the_place_of_the_old_one():
    overrides = ["method.teacher.cells=[4]", "method.teacher.name=adam", "method.teacher.step_size=0.5"]
    teacher = load(DIGITS, overrides).method.teacher
    assert (teacher.name, teacher.step_size) == ("adam", 0.5)
