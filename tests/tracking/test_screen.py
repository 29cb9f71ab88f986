"""What `Screen` prints, by the clock of the test."""

import io

from rich.console import Console

from l2t_ray.tracking.screen import Screen, duration, summary_table


def plain(width=200, terminal=False):
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False, color_system=None)


def row(round_index, arm="l2t_dln", **values):
    return {"arm": arm, "round": round_index, "val_error": 0.5, "images_per_second": 1234.5, "lr": None, **values}


def test_without_a_terminal_a_line_every_few_seconds():
    now = [0.0]
    console = plain()
    screen = Screen(console=console, interval=5.0, clock=lambda: now[0])
    screen.start([("l2t_dln", 100)])
    for r in range(100):
        screen.update(row(r, test_accuracy=0.75 if r == 3 else None))
        now[0] += 0.5
    screen.stop()
    lines = console.file.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == [f"{r}/100" for r in (*range(1, 100, 10), 100)]
    assert lines[1] == "l2t_dln  round 11/100  val error 0.5000  test acc 75.00 %  1,234 img/s  ETA 0:44"
    assert "test acc" not in lines[0] and "ETA" not in lines[0]


def test_estimate_forgets_the_rounds_before_a_resume():
    now = [0.0]
    console = plain()
    screen = Screen(console=console, interval=0.0, clock=lambda: now[0])
    screen.start([("l2t_dln", 1000)])
    for r in (*range(500, 510), *range(505, 508)):
        screen.update(row(r))
        now[0] += 2.0 if r < 505 else 1.0
    last = console.file.getvalue().splitlines()[-1]
    assert "round 508/1000" in last and last.endswith("ETA 8:12")


def test_terminal_shows_a_bar_for_each_arm():
    console = plain(terminal=True)
    screen = Screen(console=console)
    screen.start([("l2t_dln", 2), ("cross_entropy", 2)])
    screen.update(row(0))
    screen.message("checkpoint at runs/[first]")
    screen.update(row(1, arm="cross_entropy", test_accuracy=0.5))
    screen.stop()
    shown = console.file.getvalue()
    assert "l2t_dln" in shown and "2/2" in shown and "test acc 50.00 %" in shown and "runs/[first]" in shown


def test_quiet_prints_nothing():
    console = plain()
    screen = Screen(quiet=True, console=console)
    screen.start([("l2t_dln", 1)])
    screen.update(row(0))
    screen.message("done")
    screen.table(summary_table([{"arm": "l2t_dln"}]))
    screen.stop()
    assert console.file.getvalue() == ""


def test_summary_table():
    console = plain()
    console.print(summary_table([{"arm": "l2t_dln", "test_accuracy": 0.9, "seconds": 61}, {"arm": "cross_entropy"}]))
    shown = console.file.getvalue()
    assert "90.00 %" in shown and "1:01" in shown and "–" in shown


def test_duration():
    assert [duration(s) for s in (7.2, 750, 11_100)] == ["0:07", "12:30", "3:05:00"]
