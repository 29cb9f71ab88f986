"""Which runs of a store the report page shows."""

from l2t_ray.studies.log import ROLE
from l2t_ray.studies.tracked_runs import MOST_RUNS, newest
from l2t_ray.tracking.runs import RunRecord


def run(number, name, status="FINISHED", **tags):
    return RunRecord(str(number), name, status, {}, {}, {"data": "digits", **tags})


def names(*runs):
    return [(found.run_id, found.name) for found in newest(runs)]


def test_of_runs_with_the_time_in_their_names_the_last_is_shown_and_named_ones_stand_for_themselves():
    assert names(
        run(1, "digits-20261129-091438"), run(2, "mine"), run(3, "digits-20261129-101500"), run(4, "digits-mine")
    ) == [("4", "digits-mine"), ("3", "digits-20261129-101500"), ("2", "mine")]


def test_what_belongs_to_a_study_or_has_not_ended_is_left_out():
    trial = run(2, "b", **{ROLE: "trial", "mlflow.parentRunId": "1"})
    assert names(run(1, "a", **{ROLE: "study"}), trial, run(3, "c", status="RUNNING"), run(4, "d")) == [("4", "d")]


def test_a_page_has_the_newest_of_many():
    found = names(*(run(number, f"run {number}") for number in range(MOST_RUNS + 3)))
    assert len(found) == MOST_RUNS and found[0][0] == str(MOST_RUNS + 2)
