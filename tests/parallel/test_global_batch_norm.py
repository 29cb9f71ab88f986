"""Global batch normalisation: on two workers what `nn.BatchNorm2d` is on one, through second derivatives."""

import pytest
import torch
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.interfaces import Batch
from l2t_ray.parallel.global_batch_norm import GlobalBatchNorm2d, with_global_batch_norm
from l2t_ray.parallel.group import SingleProcess


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def test_replaces_every_batch_norm_and_keeps_its_weights():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    names = [name for name, _ in net.named_parameters()] + [name for name, _ in net.named_buffers()]
    with_global_batch_norm(net, SingleProcess())
    assert isinstance(net[0], GlobalBatchNorm2d) and isinstance(net[1][1], GlobalBatchNorm2d)
    assert [name for name, _ in net.named_parameters()] + [name for name, _ in net.named_buffers()] == names


@pytest.mark.parametrize("engine", ["store", "recompute"])
def test_hypergradient_of_two_workers_equals_one_worker_with_plain_batch_norm(make_problem, run_on_two_workers, engine):
    p = make_problem(norm="batch")
    whole = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)

    def cut(batch, rank):
        part = slice(0, 3) if rank == 0 else slice(3, None)  # uneven on purpose
        return Batch(*(field[part] for field in batch))

    def work(group):
        own = make_problem(norm="batch")
        own.student = FlatModule(with_global_batch_norm(own.student.module, group))
        problem = InnerProblem(own.inner_loss, own.outer_error, group, Sgd(0.9, 1e-2))
        batches = [cut(batch, group.rank) for batch in p.batches]
        return hypergradient(problem, p.start, p.phi, batches, cut(p.val, group.rank), rates=p.rates, engine=engine)

    first, second = run_on_two_workers(work)
    assert relative_error(first.gradient + second.gradient, whole.gradient) < 1e-10
    assert relative_error(second.student.theta, whole.student.theta) < 1e-12
    for name, buffer in whole.student.buffers.items():
        torch.testing.assert_close(first.student.buffers[name], buffer)
        torch.testing.assert_close(second.student.buffers[name], buffer)


def test_statistics_of_half_precision_are_counted_in_single():
    """More values a channel than bfloat16 can count."""
    x = torch.randn(7, 3, 11, 13, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) + 1
    own, plain = GlobalBatchNorm2d(nn.BatchNorm2d(3), SingleProcess()), nn.BatchNorm2d(3)
    torch.testing.assert_close(own(x).float(), plain(x.float()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.running_var, plain.running_var)
