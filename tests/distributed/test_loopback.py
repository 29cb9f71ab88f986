"""What a Ray of our own lets in: nothing from outside this machine."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAM = """
import psutil
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.distributed.launch import ENVIRONMENT, LOOPBACK, ray_session
import os
os.environ.update(ENVIRONMENT | LOOPBACK)
with ray_session(ExperimentConfig()):
    import ray
    from l2t_ray.distributed.board import Board
    ray.get(ray.remote(Board).options(num_cpus=0).remote().take.remote(False))
    mine = {process.pid: process.name() for process in psutil.Process().children(recursive=True)}
    for socket in psutil.net_connections("inet"):
        if socket.status == psutil.CONN_LISTEN and socket.pid in mine:
            print("listens", socket.laddr.ip, mine[socket.pid])
"""


def test_a_ray_of_our_own_listens_on_loopback_alone():
    """Torch's own rendezvous, which listens on every interface while workers train, is not part of this."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=200)
    listeners = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("listens")]
    assert len(listeners) > 5, done.stdout + done.stderr
    assert [socket for socket in listeners if socket[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []
