"""What a job says and answers when it ends, with real processes where the operating system has a say."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l2t_ray.exit_codes import exit_codes
from l2t_ray.interfaces import DivergenceError, FailureLimitError, StoppedError, UserError

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
TALKATIVE = """
from l2t_ray.exit_codes import exit_codes
with exit_codes():
    for i in range(20_000):
        print("round", i, chr(233), chr(0x2588))
    open("done", "w").close()
"""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such thing"), 2, "error: no such thing"),
        (UserError("a name\nof two lines"), 2, r"error: a name\nof two lines"),
        (FailureLimitError("lost too many"), 1, "failed: lost too many"),
        (DivergenceError("not finite"), 3, "diverged: not finite"),
        (StoppedError("stopped after round 3"), 130, "stopped after round 3"),
        (KeyboardInterrupt(), 130, "stopped before the run began."),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.yaml"),
            2,
            "error: x.yaml: No such file or directory; mend that or name another place.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "error: No space left on device; mend that or name another place.",
        ),
        (
            MemoryError(),
            2,
            "error: this needs more memory than there is; lower training.batch_size, training.val_batch_size or the "
            "size of the student.",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_ending_is_one_line_and_its_code(capsys, error, code, said):
    with pytest.raises(SystemExit) as stopped, exit_codes():
        raise error
    assert stopped.value.code == code
    assert capsys.readouterr().err == f"{said}\n"


def test_a_fault_of_the_package_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), exit_codes():
        print(1 // 0)


def test_a_home_that_is_nobodys_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"), exit_codes():
        Path("~nobody-of-this-name/x").expanduser()
    assert "no such home directory" in capsys.readouterr().err


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    (cwd / "talkative.py").write_text(TALKATIVE)
    command = command.replace("PYTHON", sys.executable)
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, env={**ENVIRONMENT, **environment}, timeout=60
    )


@pytest.mark.parametrize(
    "command",
    [
        "PYTHON talkative.py | head -1; exit ${PIPESTATUS[0]}",
        "PYTHON -u talkative.py | head -1; exit ${PIPESTATUS[0]}",
        "PYTHON talkative.py >&-",
        "PYTHON talkative.py >&- 2>&- <&-",
        "PYTHON talkative.py > /dev/full",
    ],
)
def test_a_screen_that_is_gone_or_full_stops_nothing(tmp_path, command):
    done = shell(command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


def test_a_screen_that_knows_no_such_character_shows_its_number(tmp_path):
    done = shell("PYTHON talkative.py", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and r"\xe9 \u2588" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_while_the_job_still_imports_is_one_line(tmp_path, number):
    program = "from l2t_ray.exit_codes import exit_codes\nwith exit_codes():\n print('in', flush=True)\n import torch"
    job = subprocess.Popen(
        [sys.executable, "-c", f"{program}\n import time; time.sleep(30)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert job.stdout is not None and job.stdout.readline() == "in\n"
    time.sleep(0.2)
    job.send_signal(number)
    _, said = job.communicate(timeout=30)
    assert (job.returncode, said) == (130, "stopped before the run began.\n")


@pytest.mark.parametrize("job", sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py")))
def test_a_job_can_be_stopped_from_its_first_moment_on(job):
    """What a job imports before it enters `exit_codes` brings nothing that takes time."""
    program = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("job", {str(REPOSITORY / "jobs" / job)!r} + ".py")
spec.loader.exec_module(module_from_spec(spec))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "l2t_ray.exit_codes" in done.stdout.split()
    assert {"torch", "numpy", "pydantic", "rich", "ray"} & set(done.stdout.split()) == set()
