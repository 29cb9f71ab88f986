"""The number of workers never changes the mathematics: real Ray workers, real gloo sums, a real teacher actor.

Ten rounds with group norm on 1, 2 and 3 workers, in float32 and in float64. Sums are grouped differently, and training
amplifies the rounding: by about a factor of ten over these thirty steps at learning rate 0.05. Much longer or faster
training would need larger tolerances, on any software.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from l2t_ray.assembly.run import build_run, first_teacher
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.distributed.remote_teacher import RemoteTeacher
from l2t_ray.distributed.teacher_actor import TeacherService
from l2t_ray.interfaces import Batch, RoundBatches, StudentState
from l2t_ray.parallel.group import ProcessGroup, SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig

pytestmark = pytest.mark.ray

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
VARIANTS = {
    "pipelined": ["method.schedule=pipelined", "method.teacher.step_size=0.05"],
    "lookahead": ["method.schedule=lookahead", "method.teacher.step_size=0.05"],
    "reweighted": ["method.reweight={metric: cosine, refresh_every: 4}"],
    "memory": ["method.loss.memory=1"],
    "cross_entropy": ["method=cross_entropy"],
}
DTYPES = (torch.float32, torch.float64)


class InDtype:
    """A loader whose numbers have the wanted precision."""

    def __init__(self, data: Any, dtype: torch.dtype):
        self._data, self._dtype = data, dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def _cast(self, batch: Batch) -> Batch:
        return batch._replace(inputs=batch.inputs.to(self._dtype), weights=batch.weights.to(self._dtype))

    def round(self, index: int) -> RoundBatches:
        batches = self._data.round(index)
        return RoundBatches([self._cast(batch) for batch in batches.train], self._cast(batches.val))

    def validation(self, epoch: int) -> Any:
        return map(self._cast, self._data.validation(epoch))

    def test(self) -> Any:
        return map(self._cast, self._data.test())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)  # not float32: a teacher is made while a run of this precision is built


def end_of_run(config: ExperimentConfig, dtype: torch.dtype, group: Any, make_teacher: Any) -> dict[str, torch.Tensor]:
    """Where the whole loop ends, with every part of it in `dtype`."""
    with default_dtype(dtype):
        run = build_run(config, group=group, device=torch.device("cpu"), make_teacher=make_teacher)
        data = InDtype(run.data, dtype)
        for arm in run.arms:
            if isinstance(arm.method, L2TDLN) and arm.method.objective._centers is not None:
                arm.method.objective._centers._data = data
        rows: list[Any] = []
        arms = [replace(arm, data=arm.data and InDtype(arm.data, dtype)) for arm in run.arms]
        checkpoint = replace(run, data=data, arms=arms).train(start=None, store=None, on_row=rows.append)
    student: StudentState = checkpoint.state.student
    assert student.theta.dtype == dtype
    end = {"theta": student.theta, "velocity": student.velocity}
    if checkpoint.teacher:
        end |= {"phi": checkpoint.teacher["phi"], "psi": checkpoint.teacher["rule"]["psi"]}
    errors = ("train_loss", "val_error", "hypergradient_norm")
    end["rows"] = torch.tensor(
        [[row[key] for key in errors if key in row] for row in checkpoint.rows], dtype=torch.float64
    )
    return end


def teacher_of(config: ExperimentConfig, dtype: torch.dtype) -> Any:
    with default_dtype(dtype):
        return first_teacher(config, 10)


class Faculty:
    """All teachers of this test behind one actor, for each process costs seconds to start."""

    def __init__(self, configs: dict[str, ExperimentConfig]):
        torch.set_num_threads(1)
        self._services = {
            f"{name} {dtype}": TeacherService(lambda config=config, dtype=dtype: teacher_of(config, dtype))
            for name, config in configs.items()
            for dtype in DTYPES
            if name != "cross_entropy"
        }

    async def call(self, key: str, method: str, *arguments: Any) -> Any:
        return await getattr(self._services[key], method)(*arguments)


class OneOf:
    """A handle that looks like that of a teacher of its own."""

    def __init__(self, faculty: Any, key: str):
        self._faculty, self._key = faculty, key

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(self._faculty.call.remote, self._key, method))


def train_all(arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every variant in both precisions, one after another, on this group of workers."""
    group, configs, faculty = ProcessGroup(), arguments["configs"], arguments["faculty"]
    torch.set_num_threads(1)
    ends = {}
    for name, config in configs.items():
        for dtype in DTYPES:
            key = f"{name} {dtype}"
            teacher = RemoteTeacher(OneOf(faculty, key), group, timeout_s=60)
            end = end_of_run(config, dtype, group, lambda *_, teacher=teacher: teacher)
            ends[key] = {part: value.numpy() for part, value in end.items()}  # Ray Train returns no tensors
    return ends


@pytest.fixture(scope="module")
def configs(small_experiment, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return {
        name: small_experiment(runs / name, "controls=[]", *overrides).config for name, overrides in VARIANTS.items()
    }


@pytest.fixture(scope="module")
def ends(ray_cluster, configs, tmp_path_factory):
    """Ends by number of workers."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    faculty = ray.remote(Faculty).options(num_cpus=0).remote(configs)
    storage = str(tmp_path_factory.mktemp("ray"))

    def on(num_workers: int) -> Any:
        return (
            TorchTrainer(
                train_all,
                train_loop_config={"configs": configs, "faculty": faculty},
                scaling_config=ScalingConfig(num_workers=num_workers),
                run_config=RunConfig(name=f"workers-{num_workers}", storage_path=storage),
            )
            .fit()
            .return_value
        )

    return {num_workers: on(num_workers) for num_workers in (1, 2, 3)}


def as_tensors(end: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {part: torch.tensor(value) for part, value in end.items()}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_workers", [2, 3])
def test_more_workers_end_where_one_ends(ends, num_workers, name, dtype):
    key = f"{name} {dtype}"
    one, more = (as_tensors(ends[n][key]) for n in (1, num_workers))
    assert one.keys() == more.keys()
    distances = {part: distance(more[part], one[part]) for part in one}
    print(key, num_workers, {part: f"{value:.1e}" for part, value in distances.items()})
    assert max(distances.values()) <= TOLERANCE[dtype], distances


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_one_worker_on_ray_is_the_single_process_bit_for_bit(ends, configs, name, dtype):
    local = end_of_run(configs[name], dtype, SingleProcess(), lambda *_: teacher_of(configs[name], dtype))
    on_ray = as_tensors(ends[1][f"{name} {dtype}"])
    assert local.keys() == on_ray.keys()
    for part, value in local.items():
        assert torch.equal(value, on_ray[part]), part
