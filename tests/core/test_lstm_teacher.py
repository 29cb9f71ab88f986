"""The coordinate-wise LSTM against a step written out by hand, and eq. (27) against its formula."""

import math

import pytest
import torch

from l2t_ray.core.lstm_teacher import LSTMTeacher, preprocess_gradient


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


# -- eq. (27)


@pytest.mark.parametrize("p", [5.0, 10.0])
def test_preprocessing_follows_both_branches_of_the_formula(p):
    values = [0.0, 1.0, -1.0, 3e-2, -7e2, 0.5 * math.exp(-p), -0.1 * math.exp(-p), 1e-30, 2 * math.exp(-p)]
    expected = [
        [math.log(abs(g)) / p, math.copysign(1, g)] if abs(g) >= math.exp(-p) else [-1.0, math.exp(p) * g]
        for g in values
    ]
    actual = preprocess_gradient(float64(*values), p)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def test_default_p_is_the_papers():
    g = float64(1e-3, 1e-6)
    expected = [[math.log(1e-3) / 10, 1.0], [-1.0, math.exp(10) * 1e-6]]
    torch.testing.assert_close(preprocess_gradient(g), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("sign", [1, -1])
def test_preprocessing_is_continuous_at_the_joint(sign):
    """Both branches give (-1, sign) at |g| = e^-10: a step of 1e-9 across it moves the output by as little."""
    joint = sign * math.exp(-10)
    around = preprocess_gradient(float64(joint * (1 - 1e-9), joint * (1 + 1e-9)))
    expected = torch.tensor([[-1.0, sign], [-1.0, sign]], dtype=torch.float64)
    torch.testing.assert_close(around, expected, rtol=0, atol=2e-9)


def test_preprocessing_equals_the_clamped_form_of_learning_to_learn():
    """(max(log|g| / k, -1), clip(e^k g, -1, 1)), with the guard inside their logarithm left out."""
    generator = torch.Generator().manual_seed(0)
    exponents = 30 * torch.rand(1000, generator=generator, dtype=torch.float64) - 25
    g = exponents.exp() * torch.randn(1000, generator=generator, dtype=torch.float64).sign()
    for k in (5.0, 10.0):
        clamped = torch.stack(((g.abs().log() / k).clamp(min=-1), (math.exp(k) * g).clamp(-1, 1)), dim=-1)
        torch.testing.assert_close(preprocess_gradient(g, k), clamped)


def test_preprocessing_keeps_the_shape_and_stays_finite_at_zero():
    out = preprocess_gradient(torch.zeros(3, 5))
    assert out.shape == (3, 5, 2)
    assert out[..., 0].unique().tolist() == [-1.0] and out[..., 1].unique().tolist() == [0.0]


# -- the network


def step_by_hand(lstm, x, state):
    """The textbook step: gates i, f, g, o in torch's order; c' = f c + i g, h' = o tanh c'."""
    new_state = []
    for cell, (h, c) in zip(lstm.cells, state, strict=True):
        gates = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        size = h.shape[1]
        i, f, o = (gates[:, k * size : (k + 1) * size].sigmoid() for k in (0, 1, 3))
        g = gates[:, 2 * size : 3 * size].tanh()
        c = f * c + i * g
        x = o * c.tanh()
        new_state.append((x, c))
    out = x if lstm.head is None else x @ lstm.head.weight.T + lstm.head.bias
    return out[:, 0], new_state


def random_inputs(m, seed):
    return torch.randn(m, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_head(lstm):
    with torch.no_grad():
        lstm.head.weight.copy_(torch.linspace(-1, 1, lstm.head.weight.numel())[None])
        lstm.head.bias.fill_(0.3)
    return lstm


def small_lstm(head, seed=0):
    lstm = LSTMTeacher((5, 3, 1) if head == "hidden" else (5, 3), head=head, seed=seed).double()
    return lstm if head == "hidden" else random_head(lstm)


def test_default_has_the_papers_number_of_weights():
    assert sum(p.numel() for p in LSTMTeacher().parameters()) == 84_236
    sizes = [4 * h * (i + h + 2) for i, h in ((2, 64), (64, 64), (64, 64), (64, 1))]
    assert sum(sizes) == 84_236


@pytest.mark.parametrize("head", ["hidden", "linear"])
def test_three_steps_equal_the_step_written_out(head):
    lstm = small_lstm(head)
    state = lstm.initial_state(7)
    expected_state = [(torch.zeros_like(h), torch.zeros_like(c)) for h, c in state]
    for t in range(3):
        x = random_inputs(7, seed=t)
        output, state = lstm(x, state)
        expected, expected_state = step_by_hand(lstm, x, expected_state)
        torch.testing.assert_close(output, expected)
        for pair, expected_pair in zip(state, expected_state, strict=True):
            torch.testing.assert_close(pair, expected_pair)


def test_initial_state_is_zero_and_has_a_row_for_each_coordinate():
    state = LSTMTeacher().initial_state(11)
    assert [tuple(h.shape) for h, _ in state] == [(11, 64), (11, 64), (11, 64), (11, 1)]
    assert all(not h.any() and not c.any() for h, c in state)


def test_linear_head_starts_by_leaving_the_loss_alone():
    lstm = LSTMTeacher((20, 20), head="linear", seed=4)
    state = lstm.initial_state(6)
    for t in range(3):
        output, state = lstm(random_inputs(6, t).float(), state)
        assert torch.equal(output, torch.zeros(6))
    assert state[-1][0].abs().min() > 0  # the cells themselves are not dead


def test_hidden_head_stays_below_one():
    lstm = LSTMTeacher()
    output, _ = lstm(1e3 * random_inputs(50, 0).float(), lstm.initial_state(50))
    assert output.abs().max() < 1


@pytest.mark.parametrize("head", ["hidden", "linear"])
def test_permuting_coordinates_permutes_outputs_and_states(head):
    lstm = small_lstm(head)
    order = torch.tensor([3, 0, 4, 1, 2])
    state, permuted_state = lstm.initial_state(5), lstm.initial_state(5)
    for t in range(3):
        x = random_inputs(5, seed=t)
        output, state = lstm(x, state)
        permuted, permuted_state = lstm(x[order], permuted_state)
        torch.testing.assert_close(permuted, output[order])  # a matrix product may round by row position
    for (h, c), (permuted_h, permuted_c) in zip(state, permuted_state, strict=True):
        torch.testing.assert_close((permuted_h, permuted_c), (h[order], c[order]))


def test_a_coordinate_never_feels_another():
    """Changing coordinate 2's history changes nothing at the others, outputs or states."""
    lstm = small_lstm("hidden")
    state, other_state = lstm.initial_state(4), lstm.initial_state(4)
    keep = torch.tensor([0, 1, 3])
    for t in range(3):
        x = random_inputs(4, seed=t)
        disturbed = x.clone()
        disturbed[2] += 5
        output, state = lstm(x, state)
        other, other_state = lstm(disturbed, other_state)
        torch.testing.assert_close(other[keep], output[keep])
        assert other[2] != output[2]
    for (h, c), (other_h, other_c) in zip(state, other_state, strict=True):
        torch.testing.assert_close((other_h[keep], other_c[keep]), (h[keep], c[keep]))


def test_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (LSTMTeacher((4, 1), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.cells[0].weight_ih, again.cells[0].weight_ih)
    assert not torch.equal(first.cells[0].weight_ih, other.cells[0].weight_ih)


def test_hidden_head_needs_a_last_cell_of_one_unit():
    with pytest.raises(ValueError, match=r"last cell of 1 unit, got cells \(4, 2\)"):
        LSTMTeacher((4, 2))
