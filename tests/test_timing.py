"""Parts of a round: they add up, each counts for itself, and nobody else's thread is timed."""

import threading

from l2t_ray.timing import PARTS, Stopwatch, part, timed
from l2t_ray.tracking import metrics


def test_an_inner_part_does_not_count_for_the_one_around_it():
    times = iter([0.0, 1.0, 4.0, 6.0, 7.0, 10.0])
    watch = Stopwatch(clock=lambda: next(times))
    with watch.part("hypergradient"):  # 0 to 10
        with watch.part("collectives"):  # 1 to 4
            pass
        with watch.part("collectives"):  # 6 to 7
            pass
    assert watch.seconds == {**dict.fromkeys(PARTS, 0.0), "hypergradient": 6.0, "collectives": 4.0}


def test_a_part_that_raises_is_closed():
    times = iter([0.0, 1.0, 3.0, 8.0])
    watch = Stopwatch(clock=lambda: next(times))
    try:
        with watch.part("unroll"), watch.part("collectives"):
            raise ValueError
    except ValueError:
        pass
    assert (watch.seconds["unroll"], watch.seconds["collectives"]) == (6.0, 2.0)


def test_only_what_runs_within_the_block_and_in_its_thread_is_timed():
    @part("unroll")
    def work():
        return threading.Event().wait(0.01)

    work()  # nobody times: no error
    with timed() as watch:
        other = threading.Thread(target=work)
        other.start()
        other.join()
        assert watch.seconds["unroll"] == 0
        work()
    work()
    assert 0.01 <= watch.seconds["unroll"] < 0.1


def test_the_metrics_table_has_a_column_for_each_part():
    assert metrics.PARTS == PARTS
