"""What a run says before it starts on Ray, and where it would put its teacher: no Ray is started."""

import socket
from types import SimpleNamespace

import pytest
import ray

from l2t_ray.distributed import launch
from l2t_ray.interfaces import UserError
from l2t_ray.settings.experiment import ExperimentConfig, RayConfig


@pytest.fixture(autouse=True)
def no_ray_yet(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have started one


def test_an_address_where_nobody_listens_is_one_sentence(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}, but no Ray cluster .*; set it to one"):
        launch.ray_session(ExperimentConfig()).__enter__()


def test_gpus_that_are_not_there_are_one_sentence(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    stopped = []
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(True))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match=r"ray\.use_gpu=true with ray.num_workers=2, but this machine has 0 GPUs"):
        launch.ray_session(ExperimentConfig(ray=RayConfig(use_gpu=True))).__enter__()
    assert stopped


def machine(name, **resources):
    return {"NodeID": name * 56, "Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("machines", "on_gpu_node", "expected"),
    [
        ([machine("a", CPU=4.0), machine("b", CPU=4.0)], False, "b"),  # with the driver
        ([machine("b", CPU=4.0, GPU=1.0), machine("c", GPU=1.0), machine("d", CPU=4.0)], False, "d"),
        ([machine("b", CPU=4.0, GPU=1.0), machine("d", CPU=4.0)], True, "b"),  # told so
        ([machine("b", CPU=4.0, GPU=1.0), machine("c", GPU=1.0)], False, "b"),  # there is no other
        ([machine("b", GPU=1.0), machine("d", CPU=4.0) | {"Alive": False}], False, "b"),
    ],
)
def test_the_teacher_keeps_off_machines_with_gpus(monkeypatch, machines, on_gpu_node, expected):
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "b" * 56))
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    strategy = launch._central_node(RayConfig(teacher_on_gpu_node=on_gpu_node))
    assert strategy.node_id == expected * 56 and strategy.soft


def test_fewer_workers_than_the_least_are_refused():
    with pytest.raises(ValueError, match=r"ray.min_workers is 3, more than ray.num_workers=2"):
        RayConfig(num_workers=2, min_workers=3)
