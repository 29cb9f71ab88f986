import pytest
import torch

from l2t_ray.core.loss.memory import (
    DECAY,
    MemoryTerm,
    agreement_losses,
    by_image,
    nothing_remembered,
    remembered,
    tallied,
)


def answers(n, c=3, seed=0):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


def test_a_memory_is_a_running_mean_of_the_answers():
    memory = nothing_remembered(5, 3, "cpu")
    given = [answers(2, seed=i) for i in range(3)]
    for one in given:
        memory = remembered(memory, torch.tensor([3, 1]), one)
    expected = (1 - DECAY) * (DECAY**2 * given[0] + DECAY * given[1] + given[2])
    torch.testing.assert_close(memory[[3, 1]], expected)
    torch.testing.assert_close(memory.sum(dim=1)[[3, 1]], torch.full((2,), 1 - DECAY**3))
    assert not memory[[0, 2, 4]].any()


def test_a_memory_that_was_given_stays_as_it_is():
    memory = remembered(nothing_remembered(3, 3, "cpu"), torch.arange(3), answers(3))
    before = memory.clone()
    remembered(memory, torch.arange(3), answers(3, seed=1))
    assert torch.equal(memory, before)


def test_an_image_that_comes_twice_counts_once_with_its_mean_answer():
    given = answers(3)
    memory = remembered(nothing_remembered(4, 3, "cpu"), torch.tensor([2, 0, 2]), given)
    torch.testing.assert_close(memory[2], (1 - DECAY) * (given[0] + given[2]) / 2)
    torch.testing.assert_close(memory[0], (1 - DECAY) * given[1])


def test_a_tally_counts_the_second_answer_twice_and_the_third_three_times():
    tally = nothing_remembered(5, 3, "cpu")
    given = [answers(2, seed=i) for i in range(3)]
    for one in given:
        tally = tallied(tally, by_image(torch.tensor([3, 1]), one))
    torch.testing.assert_close(tally[[3, 1]], given[0] + 2 * given[1] + 3 * given[2])
    assert not tally[[0, 2, 4]].any()


def test_a_tally_still_knows_how_many_answers_it_holds_after_a_long_training():
    tally, last = nothing_remembered(1, 3, "cpu"), answers(1)
    for _ in range(1000):
        before, tally = tally, tallied(tally, by_image(torch.tensor([0]), last))
    torch.testing.assert_close(tally - before, 1000 * last, rtol=1e-3, atol=0)


def test_workers_remember_what_each_of_them_saw(run_on_two_workers):
    given, indices = answers(5), torch.tensor([4, 1, 0, 4, 2])
    start = remembered(nothing_remembered(6, 3, "cpu"), torch.arange(6), answers(6, seed=1))
    alone = remembered(start, indices, given)
    parts = [slice(0, 3), slice(3, 5)]  # image 4 is in both
    both = run_on_two_workers(
        lambda group: remembered(start, indices[parts[group.rank]], given[parts[group.rank]], group)
    )
    for memory in both:
        torch.testing.assert_close(memory, alone)
    assert torch.equal(*both)


def test_agreement_is_rewarded_and_nothing_remembered_says_nothing():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    p = 1 / (1 + torch.tensor(-2.0).exp())
    memory = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.0, 0.0]])
    expected = torch.stack(((1 - 0.9 * p - 0.1 * (1 - p)).log(), (1 - 0.1 * p - 0.9 * (1 - p)).log(), torch.zeros(())))
    torch.testing.assert_close(agreement_losses(logits, memory), expected)


def test_it_pulls_towards_the_memory_the_harder_the_surer_both_are():
    """d/dz log(1 - <p, q>) = -(p * q - <p, q> p) / (1 - <p, q>)."""
    logits = answers(4, seed=2).log().double().requires_grad_()
    memory = 0.9 * answers(4, seed=3).double()
    (gradient,) = torch.autograd.grad(agreement_losses(logits, memory).sum(), logits)
    p = logits.detach().softmax(dim=1)
    agreement = (p * memory).sum(dim=1, keepdim=True)
    torch.testing.assert_close(gradient, -(p * memory - agreement * p) / (1 - agreement))


def test_near_full_agreement_nothing_pulls_any_more():
    logits = torch.tensor([[9.0, 0.0], [9.5, 0.0]], dtype=torch.float64, requires_grad=True)
    losses = agreement_losses(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    losses.sum().backward()
    p_other = 1 / (1 + torch.tensor(9.0, dtype=torch.float64).exp())  # 1.2e-4, and 7.5e-5 at 9.5
    torch.testing.assert_close(losses.detach(), torch.stack((p_other, torch.tensor(1e-4, dtype=torch.float64))).log())
    assert logits.grad is not None and logits.grad[0].abs().min() > 0.9 and not logits.grad[1].any()


@pytest.mark.parametrize("certainty", [0.0, 30.0, 1e4])
def test_it_stays_finite_where_both_are_certain(certainty):
    logits = torch.tensor([[certainty, 0.0]], requires_grad=True)
    loss = agreement_losses(logits, torch.tensor([[1.0, 0.0]])).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_its_weight_is_as_precise_forward_as_it_is():
    """A Python number times a tensor without dimensions has a double tangent under forward over reverse."""
    term, entry = MemoryTerm(1.0), torch.zeros(1)
    _, tangent = torch.func.jvp(torch.func.grad(term.weight), (entry,), (torch.ones(1),))
    assert tangent.dtype == torch.float32
    assert term.weight(entry).shape == ()
