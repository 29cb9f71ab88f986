"""The training loop: rounds, evaluations and checkpoints of one method after another, with or without Ray.

It never asks which method it runs, nor where the teacher lives.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2t_ray.bilevel.draws import counted_draws
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.data.counted import torch_seed
from l2t_ray.interfaces import (
    Data,
    DivergenceError,
    Group,
    LearnsLoss,
    Method,
    MethodState,
    Metrics,
    StoppedError,
    StudentState,
    Task,
    Teacher,
    UserError,
)
from l2t_ray.timing import part, timed
from l2t_ray.training.checkpoint import Checkpoint, CheckpointStore
from l2t_ray.training.evaluate import evaluate
from l2t_ray.training.probe import Probe
from l2t_ray.training.profile import profiled

OnRow = Callable[[Mapping[str, Any]], None]
OnCheckpoint = Callable[[Checkpoint], None]
ShouldStop = Callable[[], bool]
"""Asked after every round; one worker that says yes stops all, after the same round."""


@dataclass(frozen=True)
class Arm:
    """One method to train, its teacher if it has one, its own training data if it has some, and a probe of what it
    makes of wrong labels."""

    name: str
    method: Method
    teacher: Teacher | None = None
    data: Data | None = None
    probe: Probe | None = None


class StepSizes(NamedTuple):
    """What a user calls the settings that make training's steps smaller, for advice; None: there is none to set."""

    student: str
    teacher: str | None


IN_CONFIGURATIONS = StepSizes("training.learning_rate", "method.teacher.step_size")


@dataclass(frozen=True)
class Run:
    """What is trained on what, for how long. All arms see the same student and steps, and the same batches unless
    they bring their own; validation and test images are the same for all."""

    arms: Sequence[Arm]
    student: FlatModule
    task: Task
    data: Data
    group: Group
    num_rounds: int
    num_steps: int
    images_per_round: int
    eval_every: int
    checkpoint_every: int
    trace_dir: Path | None = None
    """Where a trace of a few rounds goes (`profile`); None: no trace."""
    seed: int = 0
    """Of what is drawn inside the student, by arm, round and worker: dropout and the like."""
    tests_on_validation: bool = False
    """The test set is the validation part: one pass serves for both."""
    step_sizes: StepSizes = IN_CONFIGURATIONS
    other_advice: str = ""
    """What helps against a divergence beside smaller steps, as in `, or scale the inputs`."""

    def train(
        self,
        *,
        start: Checkpoint | None,
        store: CheckpointStore | None,
        on_row: OnRow,
        on_checkpoint: OnCheckpoint = lambda checkpoint: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Checkpoint:
        """Trains every arm to its end, from a checkpoint or from the beginning, and returns the last one.

        Only the worker of rank 0 writes checkpoints and speaks to `on_row`; every worker calls `on_checkpoint` after
        each. An arm that diverges is given up, with a warning, and the others go on: `Checkpoint.diverged` has what
        happened.

        Raises:
            UserError: on all workers, if a checkpoint cannot be written.
            StoppedError: on all workers, once a checkpoint is written, if one was asked to stop before the end.
        """
        checkpoint = start
        for arm in self.arms:
            if checkpoint is None or arm.name not in {*checkpoint.finished, *checkpoint.diverged}:
                with profiled(self.trace_dir if self.group.rank == 0 else None, arm.name) as round_done:
                    checkpoint = self._train_arm(arm, checkpoint, store, on_row, on_checkpoint, should_stop, round_done)
        assert checkpoint is not None
        return checkpoint

    def _train_arm(
        self,
        arm: Arm,
        checkpoint: Checkpoint | None,
        store: CheckpointStore | None,
        on_row: OnRow,
        on_checkpoint: OnCheckpoint,
        should_stop: ShouldStop,
        round_done: Callable[[], None],
    ) -> Checkpoint:
        resumes = checkpoint is not None and checkpoint.arm == arm.name
        if checkpoint is None or not resumes:
            state, begin, teacher_state = arm.method.init(), 0, None
        else:
            state, begin, teacher_state = _like(arm.method.init(), checkpoint), checkpoint.round, checkpoint.teacher
        if arm.teacher is not None:
            arm.teacher.begin(teacher_state)
        rows = [] if checkpoint is None else list(checkpoint.rows)
        snapshots = {} if checkpoint is None else {name: dict(phis) for name, phis in checkpoint.snapshots.items()}
        finished = {} if checkpoint is None else dict(checkpoint.finished)
        diverged = {} if checkpoint is None else dict(checkpoint.diverged)
        memories = {} if checkpoint is None else dict(checkpoint.memories)
        data = arm.data or self.data

        for index in range(begin, self.num_rounds):
            if index in (0, self.num_rounds // 2):
                _snapshot(snapshots, arm, state, index)
            started = time.perf_counter()
            draws = torch_seed(self.seed, f"draws of {arm.name}", index, self.group.rank)
            try:
                with counted_draws(draws, state.student.theta.device), timed() as watch:
                    with part("data"):
                        batches = data.round(index)
                    state, metrics = arm.method.round(state, batches, index)
            except DivergenceError as error:
                advice = self._advice(error, arm, state, index)
                diverged[arm.name] = f"{arm.name} diverged in round {index}: {error}; {advice}."
                if self.group.rank == 0:
                    warnings.warn(diverged[arm.name], stacklevel=2)
                checkpoint = Checkpoint(arm.name, index, state, None, rows, snapshots, finished, diverged, memories)
                self._keep(checkpoint, store, on_checkpoint)
                return checkpoint
            done = index + 1
            is_last = done == self.num_rounds
            seconds = time.perf_counter() - started
            round_done()
            if is_last or done % self.eval_every == 0:
                with counted_draws(draws, state.student.theta.device):
                    metrics |= self._evaluated(arm, state, index)
            row = {
                "arm": arm.name,
                "round": index,
                "step": done * self.num_steps,
                "epoch": self.data.epoch(index),
                **metrics,
                "seconds": seconds,
                **{f"seconds_{name}": spent for name, spent in watch.seconds.items()},
                "images_per_second": self.images_per_round / seconds,
                "ended_at": time.time(),
            }
            rows.append(row)
            if self.group.rank == 0:
                on_row(dict(row))
            if is_last:
                _snapshot(snapshots, arm, state, done)
                finished[arm.name] = state.student
                if "tally" in state.extra:
                    memories[arm.name] = state.extra["tally"]
            is_end = is_last and arm is self.arms[-1]
            stops = not is_end and self._any_worker(should_stop(), state)
            if is_last or stops or done % self.checkpoint_every == 0:
                teacher_state = None if arm.teacher is None else arm.teacher.state_dict()
                checkpoint = Checkpoint(
                    arm.name, done, state, teacher_state, rows, snapshots, finished, diverged, memories
                )
                self._keep(checkpoint, store, on_checkpoint)
            if stops:
                raise StoppedError(f"stopped after round {done} of {self.num_rounds} of {arm.name}")
        assert checkpoint is not None
        return checkpoint

    def _advice(self, error: DivergenceError, arm: Arm, state: MethodState, index: int) -> str:
        """What helps against this divergence, to be read after what happened. All workers ask."""
        batches = (arm.data or self.data).round(index)
        if self._any_worker(not all(_is_finite(batch.inputs) for batch in (*batches.train, batches.val)), state):
            return "inputs of that round are not finite themselves: mend them or leave them out"
        if error.advice is not None:
            return error.advice
        if error.is_before_steps and index == 0:
            return "that is so before the first step: look at the model's first weights and the size of its inputs"
        student, teacher = self.step_sizes
        smaller = f"try a smaller {student}" + (f" or {teacher}" if arm.teacher is not None and teacher else "")
        return smaller + self.other_advice

    def _any_worker(self, is_so: bool, state: MethodState) -> bool:
        """Whether it is so on any worker: they do the same, or they would wait for each other for ever."""
        if self.group.size == 1:
            return is_so
        return self.group.sum(torch.tensor([float(is_so)], device=state.student.theta.device)).item() > 0

    def _evaluated(self, arm: Arm, state: MethodState, index: int) -> Metrics:
        """Metrics on the whole test and validation parts, and what the arm's probe sees."""
        sets = [self.data.test()]
        if not self.tests_on_validation:
            sets.append(self.data.validation(self.data.epoch(index)))
        scores = [evaluate(self.student, state.student, self.task, batches, self.group) for batches in sets]
        metrics = {f"test_{name}": x for name, x in scores[0].items()}
        metrics |= {f"validation_{name}": x for name, x in scores[-1].items()}
        return metrics if arm.probe is None else metrics | arm.probe(arm.method, state, index)

    def _keep(self, checkpoint: Checkpoint, store: CheckpointStore | None, on_checkpoint: OnCheckpoint) -> None:
        if store is not None:
            self._save(store, checkpoint)
        on_checkpoint(checkpoint)

    def _save(self, store: CheckpointStore, checkpoint: Checkpoint) -> None:
        """One worker writes, all hear whether it could: one that stops alone would leave the others waiting for it."""
        failure = None
        if self.group.rank == 0:
            try:
                store.save(checkpoint)
            except UserError as error:
                failure = error
        if self._any_worker(failure is not None, checkpoint.state):
            raise failure or UserError("worker 0 could not write the checkpoint.")


def _is_finite(inputs: Any) -> bool:
    tensors = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _snapshot(snapshots: dict[str, dict[int, Tensor]], arm: Arm, state: MethodState, round: int) -> None:
    if arm.teacher is not None and isinstance(arm.method, LearnsLoss):
        phi = arm.method.learned_loss(state)
        if phi is not None:
            snapshots.setdefault(arm.name, {})[round] = phi.cpu().clone()


def _like(fresh: MethodState, checkpoint: Checkpoint) -> MethodState:
    """The state of a checkpoint on the device of a fresh one.

    Raises:
        UserError: if it is of another student, which the same settings can only give in another version.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: moved(part) for name, part in value.items()}
        return value.to(fresh.student.theta.device)

    student, extra = checkpoint.state
    if (old := _shape(student)) != (new := _shape(fresh.student)):
        raise UserError(
            f"the checkpoint after round {checkpoint.round} of {checkpoint.arm} holds a student of {old} and this "
            f"version makes one of {new}; go on with the version that wrote it (`code` in its fingerprint.json), or "
            "start a new run."
        )
    return MethodState(StudentState(*map(moved, student)), moved(extra))


def _shape(student: StudentState) -> str:
    carried = "".join(f", with the optimizer's {name}" for name in student.carried)
    return f"{student.theta.numel():,} weights and {len(student.buffers)} buffers{carried}"
