"""What a process waits for before it can train: nothing heavy that it may not need."""

import subprocess
import sys

PROGRAM = """
import sys
from l2t_ray import run
from l2t_ray.assembly.run import first_teacher
from l2t_ray.settings.experiment import validate

teacher = first_teacher(validate({"method": "l2t_dln"}, source="here"), 10)  # its loss network is fitted
teacher.propose(0, teacher.read().phi, 0.1)
print(*sorted(sys.modules))
"""


def test_training_imports_neither_compiler_nor_plots_nor_trackers():
    """Each of these takes one to six seconds, in every process of a run."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()} | set(done.stdout.split())
    assert "torch" in loaded
    assert loaded & {"torch._dynamo", "matplotlib", "mlflow", "ray", "sklearn", "pandas", "torchvision"} == set()
