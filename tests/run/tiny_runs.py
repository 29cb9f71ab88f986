"""What tests of runs share: a configuration of half a second, and a sudden end."""

import os
import signal
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs/digits.yaml"
TINY = [
    "ray.enabled=false",
    "tracking.mlflow=false",
    "student.name=lenet",
    "training={num_rounds: 4, num_steps: 2, batch_size: 8, val_batch_size: 16, eval_every: 4, checkpoint_every: 2}",
    "training.keep_checkpoints=9",
    "method.loss={hidden: 8, init: released}",
    "method.teacher.horizon=3",
]


def die(*_, **__):
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
