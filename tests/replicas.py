"""What stands for parts of a cluster where workers are threads of one process."""

import threading

import torch

from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.teachers import build_teacher
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.training.checkpoint import CheckpointStore

CPU = torch.device("cpu")


class TeacherInEachThread:
    """A worker's own replica of a teacher, told the sum of all shares: what the teacher actor does for real workers."""

    def __init__(self, teacher, group):
        self._teacher, self._group = teacher, group

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def propose(self, version, hypergradient, error):
        total = self._group.sum(torch.cat([hypergradient, torch.tensor([error])]))
        return self._teacher.propose(version, total[:-1].clone(), total[-1].item())


def run_alone(config):
    """The end of a configuration's run in this process."""
    return build_run(config, group=SingleProcess(), device=CPU).train(start=None, store=None, on_row=lambda row: None)


def run_interrupted(config, directory, *, after):
    """The end of a run that was interrupted after so many rounds of all arms, and went on from its checkpoint."""
    store, rows = CheckpointStore(directory), []

    def interrupt(row):
        rows.append(row)
        if len(rows) == after:
            raise InterruptedError

    try:
        build_run(config, group=SingleProcess(), device=CPU).train(start=None, store=store, on_row=interrupt)
    except InterruptedError:
        run = build_run(config, group=SingleProcess(), device=CPU)
        return run.train(start=store.latest(), store=store, on_row=lambda row: None)
    raise AssertionError(f"the run was over before {after} rounds")


def run_on_both(config, run_on_two_workers):
    """The end of a run as each of two workers sees it."""
    alone = threading.Lock()

    def work(group):
        with alone:
            run = build_run(
                config,
                group=group,
                device=CPU,
                make_teacher=lambda *given: TeacherInEachThread(build_teacher(*given), group),
            )
        group.sum(torch.zeros(1))  # a round of one thread would move the stream from which another draws its weights
        return run.train(start=None, store=None, on_row=lambda row: None)

    return run_on_two_workers(work)
