"""Which engine `auto` takes, by the memory that is free."""

import threading

import pytest
import torch

from l2t_ray.bilevel import engine_choice
from l2t_ray.bilevel.engine_choice import choose_engine, free_bytes, graph_bytes
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.interfaces import Batch
from l2t_ray.parallel.group import SingleProcess


def test_graph_bytes_counts_each_tensor_of_a_stored_step_once(make_problem):
    p = make_problem(norm="none")
    size = graph_bytes(p.problem, p.start, p.phi, p.batches[0])
    images = p.batches[0].inputs.nbytes
    hidden = 7 * 6 * 25 * 8  # output of the convolution and of tanh
    assert images + 2 * hidden < size < images + 20 * hidden
    double = [field.repeat(2, *[1] * (field.ndim - 1)) for field in p.batches[0]]
    larger = graph_bytes(p.problem, p.start, p.phi, Batch(*double))
    assert 1.3 * size < larger < 2 * size  # parameters are counted too, and do not grow
    assert not p.start.theta.requires_grad


@pytest.mark.parametrize(
    ("graph", "steps", "free", "engine"),
    [(10, 15, 300, "store"), (10, 15, 299, "recompute"), (10, 50, 300, "recompute"), (10, 1, 20, "store")],
)
def test_the_engine_is_store_while_its_graphs_fit_half_of_what_is_free(graph, steps, free, engine):
    choice = choose_engine(graph << 20, steps, free << 20)
    assert choice.engine == engine
    assert f"{steps} stored graphs of {graph} MiB need {graph * steps} MiB" in choice.reason


@pytest.mark.parametrize(
    ("free", "engine"),
    [((1 << 30, 1 << 30), "store"), ((1 << 30, 1 << 10), "recompute"), ((1 << 10, 1 << 30), "recompute")],
)
def test_workers_agree_on_an_engine(make_problem, run_on_two_workers, monkeypatch, free, engine):
    """Engines exchange different sums where layers sum over workers too: one that differs would hang the others."""
    by_thread = {}
    monkeypatch.setattr(engine_choice, "free_bytes", lambda device: by_thread[threading.get_ident()])

    def work(group):
        by_thread[threading.get_ident()] = free[group.rank]
        p = make_problem()
        problem = InnerProblem(p.inner_loss, p.outer_error, group)
        return engine_choice.agreed_engine(problem, p.start, p.phi, p.batches[0], len(p.batches)).engine

    assert run_on_two_workers(work) == [engine, engine]


def test_workers_of_one_host_share_its_memory(make_problem, run_on_two_workers, monkeypatch):
    alone = make_problem()
    size = graph_bytes(alone.problem, alone.start, alone.phi, alone.batches[0])
    # a little more than what one worker needs, which is half of what is free
    monkeypatch.setattr(engine_choice, "free_bytes", lambda device: int(2.2 * size))

    def work(group, p):
        problem = InnerProblem(p.inner_loss, p.outer_error, group)
        return engine_choice.agreed_engine(problem, p.start, p.phi, p.batches[0], 1).engine

    assert work(SingleProcess(), alone) == "store"
    problems = [make_problem(), make_problem()]
    assert run_on_two_workers(lambda group: work(group, problems[group.rank])) == ["recompute", "recompute"]


def test_some_memory_is_free():
    assert 0 < free_bytes(torch.device("cpu")) < 1 << 50
