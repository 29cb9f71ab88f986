"""The teacher's rules: Adam against torch's, and psi's gradient against differences of the errors that it caused.

The errors here are analytic, e_v(phi) = (phi - t_v)' A_v (phi - t_v) / 2 for each loss version v, with gradient
A_v (phi - t_v). The LSTM's inputs are detached gradients, so a window's errors as a function of psi are

    S(psi) = sum_j e_j(phi_0 - beta (o_1(psi) + .. + o_j(psi))),    o_i from the stored inputs,

and the rule must take its Adam step along exactly dS/dpsi. What the rule used is read off Adam's first moment,
m' = 0.9 m + 0.1 g, so that the tests see nothing but its state dict.
"""

from itertools import pairwise

import pytest
import torch
from torch.func import functional_call

from l2t_ray.core.lstm_teacher import LSTMTeacher, preprocess_gradient
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule, StaleVersionError
from l2t_ray.interfaces import DivergenceError

M = 6  # coordinates of phi
STEP = 0.05  # beta, large enough for psi to matter in the errors
ORDERS = ["lookahead", "pipelined"]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Quadratics:
    """e_v and its gradient; other versions, other minima."""

    def __init__(self, seed=0):
        self._seed = seed

    def _parts(self, version):
        root = draws(M, M, seed=1000 * self._seed + version)
        return root @ root.T / M + torch.eye(M, dtype=torch.float64), draws(M, seed=77 + version)

    def error(self, version, phi):
        matrix, target = self._parts(version)
        return (phi - target) @ matrix @ (phi - target) / 2

    def gradient(self, version, phi):
        matrix, target = self._parts(version)
        return matrix @ (phi - target)


def make_lstm(head="hidden"):
    lstm = LSTMTeacher((4, 3, 1) if head == "hidden" else (4, 3), head=head, seed=2).double()
    if head == "linear":
        with torch.no_grad():
            lstm.head.weight.copy_(torch.tensor([[0.5, -1.0, 0.7]]))
    return lstm


def make_rule(name="lstm", horizon=1, head="hidden"):
    if name == "adam":
        return AdamRule(M, step_size=STEP, dtype=torch.float64)
    return LstmRule(make_lstm(head), M, step_size=STEP, learning_rate=1e-2, horizon=horizon)


def make_teacher(**options):
    return LocalTeacher(draws(M, seed=5), make_rule(**options))


def drive(teacher, errors, order, index):
    """One round. The error read before a proposal in `lookahead` is another minibatch's than the one after it."""
    version, phi, _ = teacher.read()
    if order == "lookahead":
        proposed = teacher.propose(version, errors.gradient(500 + version, phi), 0.0)
        teacher.learn(proposed.version, errors.gradient(proposed.version, proposed.phi))
    else:
        teacher.propose(version, errors.gradient(version, phi), 0.0)
        teacher.learn(version)
    assert teacher.read().version == index + 1


# -- Adam


def test_adam_rule_equals_adam_on_phi():
    errors, teacher = Quadratics(), make_teacher(name="adam")
    phi = draws(M, seed=5).requires_grad_()
    adam = torch.optim.Adam([phi], lr=STEP)
    for index in range(20):
        phi.grad = errors.gradient(index, phi.detach())
        adam.step()
        drive(teacher, errors, "pipelined", index)
        torch.testing.assert_close(teacher.read().phi, phi.detach())


# -- the LSTM's proposals


def sizes(lstm):
    return [p.numel() for p in lstm.parameters()]


def lstm_at(lstm, psi, inputs, state):
    named = dict(lstm.named_parameters())
    pieces = psi.split(sizes(lstm))
    weights = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
    return functional_call(lstm, weights, (inputs, state))


def test_proposals_are_the_lstms_outputs_scaled_and_its_state_is_carried():
    lstm, rule = make_lstm(), make_rule(horizon=100)  # psi stays as it is for the first 100
    psi = torch.cat([p.detach().flatten() for p in lstm.parameters()])
    state = lstm.initial_state(M)
    for t in range(4):
        gradient = 10.0 ** (-2 * t) * draws(M, seed=t)
        output, state = lstm_at(lstm, psi, preprocess_gradient(gradient), state)
        step = rule.propose(gradient)
        torch.testing.assert_close(step, -STEP * output.detach())
        assert not step.requires_grad


# -- psi's gradient


def first_moments(teacher):
    return teacher.state_dict()["rule"]["adam"]["first_moment"]


def recorded_run(order, horizon, head, num_rounds):
    """Each proposal's version, phi before it, input and psi; and each Adam step's gradient, first to last."""
    errors, teacher = Quadratics(), make_teacher(horizon=horizon, head=head)
    proposals, gradients = [], []
    for index in range(num_rounds):
        version, phi, _ = teacher.read()
        before = teacher.state_dict()["rule"]
        moment = first_moments(teacher)
        input_ = errors.gradient(500 + version if order == "lookahead" else version, phi)
        proposals.append((version + 1, phi, input_, before["psi"]))
        drive(teacher, errors, order, index)
        after = teacher.state_dict()["rule"]
        if not torch.equal(after["psi"], before["psi"]):
            gradients.append((first_moments(teacher) - 0.9 * moment) / 0.1)
    return errors, proposals, gradients


def window_error(errors, lstm, proposals, start, horizon, delta):
    """S of the window that begins at proposal `start`, each proposal at the psi that made it, moved by `delta`.

    The states at the window's start do not move with psi: back-propagation is truncated there.
    """
    state = lstm.initial_state(M)
    for _, _, gradient, psi in proposals[:start]:
        _, state = lstm_at(lstm, psi, preprocess_gradient(gradient), state)
    state = [(h.detach(), c.detach()) for h, c in state]
    phi, total = proposals[start][1], 0.0
    for version, _, gradient, psi in proposals[start : start + horizon]:
        output, state = lstm_at(lstm, psi + delta, preprocess_gradient(gradient), state)
        phi = phi - STEP * output
        total = total + errors.error(version, phi)
    return total


@pytest.mark.parametrize("head", ["hidden", "linear"])
@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_psi_moves_along_the_derivative_of_the_windows_errors(order, horizon, head):
    errors, proposals, gradients = recorded_run(order, horizon, head, num_rounds=10)
    # In the pipelined order the outcome of the last proposal is not known yet.
    assert len(gradients) == (10 if order == "lookahead" else 9) // horizon
    lstm = make_lstm(head)
    for window, actual in enumerate(gradients):
        start = window * horizon
        delta = torch.zeros_like(actual).requires_grad_()
        with_errors = window_error(errors, lstm, proposals, start, horizon, delta)
        (expected,) = torch.autograd.grad(with_errors, delta)
        # The moment is undone by a division by 0.1: rounding near 1e-15 of moments of the size of the gradient.
        assert (actual - expected).norm() < 1e-11 * expected.norm()


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_psi_moves_along_central_differences(order, horizon):
    errors, proposals, gradients = recorded_run(order, horizon, "hidden", num_rounds=7)
    lstm, step = make_lstm(), 1e-4  # truncation 1e-8, rounding 1e-12
    for window, actual in enumerate(gradients):
        for seed in range(3):
            direction = draws(actual.numel(), seed=seed)

            def error(size, window=window, direction=direction):
                return window_error(errors, lstm, proposals, window * horizon, horizon, size * direction).item()

            slope = (error(step) - error(-step)) / (2 * step)
            scale = actual.norm().item() * direction.norm().item()
            assert abs(slope - (actual @ direction).item()) < 1e-6 * scale


def test_pipelined_proposals_are_made_one_adam_step_behind():
    """Each window's first proposal is made before the window behind it is learned from, hence with older weights."""
    _, proposals, _ = recorded_run("pipelined", 1, "hidden", num_rounds=5)
    psis = [psi for *_, psi in proposals]
    assert torch.equal(psis[0], psis[1])  # the outcome of proposal 1 comes with the input of proposal 2
    assert all(not torch.equal(a, b) for a, b in pairwise(psis[1:]))


def test_learning_is_adam_on_psi():
    """The step itself, from the gradients read above."""
    teacher, errors = make_teacher(horizon=2), Quadratics()
    psi = teacher.state_dict()["rule"]["psi"].clone().requires_grad_()
    adam = torch.optim.Adam([psi], lr=1e-2)
    moment = 0.0
    for index in range(8):
        drive(teacher, errors, "lookahead", index)
        if index % 2 == 1:
            after = first_moments(teacher)
            psi.grad, moment = (after - 0.9 * moment) / 0.1, after
            adam.step()
        torch.testing.assert_close(teacher.state_dict()["rule"]["psi"], psi.detach())


def test_horizon_decides_when_psi_moves():
    for horizon in (1, 2, 4):
        errors, teacher = Quadratics(), make_teacher(horizon=horizon)
        moved = []
        for index in range(8):
            before = teacher.state_dict()["rule"]["psi"]
            drive(teacher, errors, "lookahead", index)
            moved.append(not torch.equal(before, teacher.state_dict()["rule"]["psi"]))
        assert moved == [(index + 1) % horizon == 0 for index in range(8)]


# -- versions and divergence


def test_versions_count_proposals():
    teacher = make_teacher(name="adam")
    assert teacher.read().version == 0
    assert torch.equal(teacher.read().phi, draws(M, seed=5))
    proposed = teacher.propose(0, draws(M), 0.0)
    assert proposed.version == 1 == teacher.read().version
    assert torch.equal(proposed.phi, teacher.read().phi)


def test_a_stale_hypergradient_is_refused_and_moves_nothing():
    teacher = make_teacher()
    teacher.propose(0, draws(M), 0.0)
    before = teacher.state_dict()
    for version in (0, 2):
        with pytest.raises(StaleVersionError, match=f"loss version {version}, but the current one is 1"):
            teacher.propose(version, draws(M), 0.0)
    assert_same(teacher.state_dict(), before)


def test_an_outcome_that_is_not_due_is_refused():
    teacher = make_teacher(horizon=2)
    teacher.propose(0, draws(M), 0.0)
    before = teacher.state_dict()
    with pytest.raises(StaleVersionError, match="outcome of loss version 0, but that of version 1 is due"):
        teacher.learn(0, draws(M))
    with pytest.raises(StaleVersionError, match="outcome of loss version 1, but that of version 0 is due"):
        teacher.learn(1)
    assert_same(teacher.state_dict(), before)


@pytest.mark.parametrize("order", ORDERS)
def test_an_outcome_counts_once(order):
    """Told twice (say, by a retry), it would be taken for the next proposal's."""
    teacher, errors = make_teacher(horizon=3), Quadratics()
    for index in range(2):
        drive(teacher, errors, order, index)
    before = teacher.state_dict()
    with pytest.raises(StaleVersionError, match="are known"):
        if order == "lookahead":
            teacher.learn(2, draws(M))
        else:
            teacher.learn(1)
    assert_same(teacher.state_dict(), before)


def test_a_skipped_outcome_is_noticed():
    teacher = make_teacher(horizon=3)
    teacher.propose(0, draws(M), 0.0)
    teacher.propose(1, draws(M), 0.0)
    with pytest.raises(StaleVersionError, match="outcome of loss version 2, but those up to 0 are known"):
        teacher.learn(2, draws(M))


def test_version_zero_has_no_outcome():
    """phi began there: the pipelined order's first call has nothing to teach."""
    teacher = make_teacher()
    teacher.propose(0, draws(M), 0.0)
    before = teacher.state_dict()
    teacher.learn(0)
    assert_same(teacher.state_dict(), before)


@pytest.mark.parametrize("name", ["adam", "lstm"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_moves_nothing(name, bad):
    teacher = make_teacher(name=name)
    drive(teacher, Quadratics(), "lookahead", 0)
    gradient = draws(M)
    gradient[2] = bad
    before = teacher.state_dict()
    with pytest.raises(DivergenceError, match=r"not finite .*1 of 6 hypergradient entries"):
        teacher.propose(1, gradient, 0.0)
    with pytest.raises(DivergenceError, match=rf"not finite .error {bad}, 0 of 6"):
        teacher.propose(1, draws(M), bad)
    assert_same(teacher.state_dict(), before)
    teacher.propose(1, draws(M), 0.0)
    before = teacher.state_dict()
    with pytest.raises(DivergenceError, match=r"not finite .*1 of 6 hypergradient entries"):
        teacher.learn(2, gradient)
    assert_same(teacher.state_dict(), before)


# -- saving


def assert_same(actual, expected):
    """Nested containers, equal bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    else:
        assert actual == expected


def calls(order, num_rounds):
    """The calls of some rounds, one by one, so that a test can stop between any two."""
    errors = Quadratics(seed=3)
    for _ in range(num_rounds):
        if order == "lookahead":
            yield lambda t: t.propose(t.read().version, errors.gradient(500 + t.read().version, t.read().phi), 0.0)
            yield lambda t: t.learn(t.read().version, errors.gradient(*t.read()[:2]))
        else:
            yield lambda t: t.propose(t.read().version, errors.gradient(*t.read()[:2]), 0.0)
            yield lambda t: t.learn(t.read().version - 1)


RULES = [{"name": "adam"}, {"horizon": 1}, {"horizon": 3}]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", RULES, ids=["adam", "lstm-1", "lstm-3"])
def test_a_saved_teacher_goes_on_bit_for_bit_from_between_any_two_calls(tmp_path, options, order):
    steps = list(calls(order, 6))
    undisturbed = make_teacher(**options)
    for step in steps:
        step(undisturbed)
    for stop in range(len(steps)):
        first = make_teacher(**options)
        for step in steps[:stop]:
            step(first)
        torch.save(first.state_dict(), tmp_path / "teacher.pt")
        second = make_teacher(**options)
        second.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
        for step in steps[stop:]:
            step(second)
        assert_same(second.state_dict(), undisturbed.state_dict())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", RULES, ids=["adam", "lstm-1", "lstm-3"])
def test_a_state_dict_is_a_copy(tmp_path, options, order):
    """Neither the teacher it came from nor the one it went to changes it by going on."""
    steps = list(calls(order, 8))
    first, second = make_teacher(**options), make_teacher(**options)
    for step in steps[:9]:
        step(first)
    saved = first.state_dict()
    torch.save(saved, tmp_path / "before.pt")
    second.load_state_dict(saved)
    for step in steps[9:]:
        step(first)
        step(second)
    assert_same(saved, torch.load(tmp_path / "before.pt", weights_only=True))
    assert_same(second.state_dict(), first.state_dict())


def test_phi_that_was_handed_out_never_changes():
    teacher, errors = make_teacher(), Quadratics()
    given = draws(M, seed=5)
    owner = LocalTeacher(given, make_rule())
    handed_out = owner.read().phi
    for index in range(3):
        drive(owner, errors, "lookahead", index)
    assert torch.equal(given, draws(M, seed=5)) and torch.equal(handed_out, given)
    assert torch.equal(teacher.read().phi, given)


# -- does it learn to teach?


def quadratic_descent(horizon, num_steps=1000, m=10):
    """The error along one run of e(phi) = |phi - t|^2 / 2m, with a teacher that starts by doing nothing."""
    lstm = LSTMTeacher((8, 8), head="linear", seed=0)
    rule = LstmRule(lstm, m, step_size=1e-1, learning_rate=1e-2, horizon=horizon)
    target = torch.linspace(-2, 2, m)
    teacher = LocalTeacher(torch.zeros(m), rule)
    history = []
    for _ in range(num_steps):
        version, phi, _ = teacher.read()
        error = ((phi - target).square().sum() / (2 * m)).item()
        history.append(error)
        proposed = teacher.propose(version, (phi - target) / m, error)
        teacher.learn(proposed.version, (proposed.phi - target) / m)
    return history


def test_a_long_horizon_learns_to_descend():
    history = quadratic_descent(horizon=20)
    assert sum(history[-50:]) / 50 < 0.02 * history[0]


def test_adam_that_clips_is_not_frozen_by_a_spike():
    """A hundred rounds after a hypergradient a thousand times the usual, phi moves about as far as before it."""

    def step_after_a_spike(clip):
        rule = AdamRule(M, step_size=0.1, clip=clip, dtype=torch.float64)
        direction = torch.ones(M, dtype=torch.float64) / M**0.5
        for scale in (1.0, -1000.0, *[1.0] * 100):
            rule.propose(scale * direction)
        return rule.propose(direction).norm().item()

    assert step_after_a_spike(1.0) > 20 * step_after_a_spike(None)


def test_clipping_leaves_short_hypergradients_alone():
    plain, clipping = AdamRule(M, dtype=torch.float64), AdamRule(M, clip=100.0, dtype=torch.float64)
    for index in range(3):
        assert torch.equal(plain.propose(draws(M, seed=index)), clipping.propose(draws(M, seed=index)))
    assert torch.equal(clipping.propose(torch.zeros(M, dtype=torch.float64)).isfinite(), torch.ones(M).bool())


def test_lstm_with_a_base_begins_as_that_base():
    """The linear head starts at zero, so until psi first moves the proposals are Adam's own."""
    lstm = LSTMTeacher((4, 3), head="linear").double()
    base, alone = (AdamRule(M, step_size=0.1, dtype=torch.float64) for _ in range(2))
    rule = LstmRule(lstm, M, step_size=STEP, horizon=3, base=base)
    teacher, reference = LocalTeacher(draws(M), rule), LocalTeacher(draws(M), alone)
    for version in range(3):
        gradient = draws(M, seed=version + 5)
        torch.testing.assert_close(
            teacher.propose(version, gradient, 0.0).phi, reference.propose(version, gradient, 0.0).phi
        )
        teacher.learn(version)
    teacher.propose(3, draws(M, seed=8), 0.0)
    teacher.learn(3)
    moved = teacher.propose(4, draws(M, seed=9), 0.0).phi
    reference.propose(3, draws(M, seed=8), 0.0)
    assert (moved - reference.propose(4, draws(M, seed=9), 0.0).phi).abs().max() > 1e-6


def test_lstm_with_a_base_saves_the_base_too():
    def make():
        base = AdamRule(M, step_size=0.1, clip=0.5, dtype=torch.float64)
        rule = LstmRule(make_lstm("linear"), M, step_size=STEP, horizon=2, clip=0.5, base=base)
        return LocalTeacher(draws(M), rule)

    whole, first = make(), make()
    for version in range(6):
        whole.propose(version, draws(M, seed=version), 0.0)
        whole.learn(version)
        if version < 3:
            first.propose(version, draws(M, seed=version), 0.0)
            first.learn(version)
    second = make()
    second.load_state_dict(first.state_dict())
    for version in range(3, 6):
        second.propose(version, draws(M, seed=version), 0.0)
        second.learn(version)
    assert torch.equal(second.read().phi, whole.read().phi)
