"""The teacher: owner of the loss network's weights phi, and of the rule that rewrites them.

Workers give it their shares of the hypergradient and get new weights back; it never sees an image, and they never see
its LSTM. Because the LSTM reads a detached gradient, the validation error depends on the LSTM's weights psi only
through phi', and d e / d psi is the chain of d e / d phi' with d phi' / d psi: exact, with vectors alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.adam import AdamUpdate, Learned
from l2t_ray.core.lstm_teacher import LstmState, LSTMTeacher, preprocess_gradient
from l2t_ray.core.signal_to_noise import Moments, SignalToNoise, cosine
from l2t_ray.interfaces import DivergenceError, LossParams, Metrics
from l2t_ray.timing import part

Limit = Callable[[Float[Tensor, " m"]], Float[Tensor, " m"]]


class StaleVersionError(RuntimeError):
    """A hypergradient taken at weights that are no longer the current ones: it must not be mixed in."""


@runtime_checkable
class UpdateRule(Protocol):
    """How phi moves. `propose` gives the step; `learn` is told how the proposals turned out, oldest first.

    A state dict is a copy: going on with the rule changes neither one it has given nor one it was given.
    """

    def propose(self, gradient: Float[Tensor, " m"]) -> Float[Tensor, " m"]: ...
    def learn(self, gradient: Float[Tensor, " m"]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class AdamRule:
    """Adam on phi itself, without an LSTM: the row "DLN" of the paper's Table 3. It learns nothing.

    Args:
        num_coordinates: length of phi.
        step_size: Adam's learning rate.
        clip: largest norm of a hypergradient; longer ones are shortened to it (see `clipped`). None: no limit.
    """

    def __init__(
        self,
        num_coordinates: int,
        *,
        step_size: float = 1e-3,
        clip: float | None = None,
        dtype: torch.dtype | None = None,
    ):
        self._clip, self._adam = clip, AdamUpdate(step_size)
        self._moved = Learned.begin(torch.zeros(num_coordinates, dtype=dtype))

    def propose(self, gradient: Tensor) -> Tensor:
        still = self._moved._replace(weights=torch.zeros_like(self._moved.weights))
        self._moved = self._adam.step(still, clipped(gradient, self._clip))
        return self._moved.weights

    def learn(self, gradient: Tensor) -> None:
        del gradient

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._moved._asdict()}  # as good as a copy: nothing is changed in place

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._moved = Learned(**state["adam"])


class LstmRule:
    """phi' = phi - step_size * LSTM_psi(pre(g)), and Adam on the LSTM's weights psi.

    The error after proposal i depends on psi through all proposals of its window so far, phi_i = phi_0 - step_size *
    (o_1 + .. + o_i). A window is `horizon` proposals long; when the error's gradient after each of them is known, psi
    takes one Adam step along the sum, by back-propagation through the window's LSTM steps (truncated there).
    `horizon = 1` is the released code.

    In the pipelined schedule the first proposal of a window is made before the window behind it is learned from, so
    that learning can overlap the workers' next unroll. Each proposal is therefore kept with the psi that made it, and
    differentiated there: the gradient is exact, though Adam applies it one proposal late. The window is replayed from
    stored inputs instead of keeping a graph, so that between calls the rule is nothing but tensors and can be saved.

    Args:
        lstm: the network; its weights are where psi begins.
        num_coordinates: length of phi.
        step_size: beta (paper and released code: 1e-3).
        learning_rate: of Adam on psi (1e-3).
        horizon: proposals differentiated through.
        clip: largest norm of an outcome that is learned from (see `clipped`). What the LSTM reads is not clipped: its
            preprocessing takes logarithms already.
        base: a rule whose step the LSTM adds to. With a linear head, which starts at zero, the teacher begins as that
            rule and learns to do better; alone, an LSTM first has to find out which way is down, on a student that
            does not wait. None: the LSTM alone (paper).
    """

    def __init__(
        self,
        lstm: LSTMTeacher,
        num_coordinates: int,
        *,
        step_size: float = 1e-3,
        learning_rate: float = 1e-3,
        horizon: int = 1,
        clip: float | None = None,
        base: AdamRule | None = None,
    ):
        self._clip, self._base = clip, base
        self._lstm, self._step_size, self._horizon = FlatModule(lstm), step_size, horizon
        self._adam, self._learned = AdamUpdate(learning_rate), Learned.begin(self._lstm.initial())
        self._state = self._window_start = lstm.initial_state(num_coordinates)
        self._proposals: list[tuple[Tensor, Tensor]] = []  # (gradient, psi), oldest first, not yet learned from
        self._outcomes: list[Tensor] = []  # gradients of the error after the window's first proposals

    def propose(self, gradient: Tensor) -> Tensor:
        psi = self._learned.weights  # never changed in place: proposals keep a reference to theirs
        self._proposals.append((gradient, psi))
        with torch.no_grad():
            output, self._state = self._output(psi, gradient, self._state)
        step = -self._step_size * output
        return step if self._base is None else step + self._base.propose(gradient)

    def learn(self, gradient: Tensor) -> None:
        self._outcomes.append(clipped(gradient, self._clip))
        assert len(self._outcomes) <= len(self._proposals)
        if len(self._outcomes) < self._horizon:
            return
        gradient, self._window_start = self._window_gradient()
        self._learned = self._adam.step(self._learned, gradient)
        self._proposals, self._outcomes = self._proposals[self._horizon :], []

    def _window_gradient(self) -> tuple[Float[Tensor, " q"], LstmState]:
        """The derivative of the window's summed errors in psi, and the LSTM's state at the window's end."""
        remaining = torch.stack(self._outcomes).flip(0).cumsum(0).flip(0)  # errors that proposal i takes part in
        leaves: dict[int, Tensor] = {}
        state = self._window_start
        total = remaining.new_zeros(())
        for (gradient, psi), cotangent in zip(self._proposals[: self._horizon], remaining, strict=True):
            leaf = leaves.setdefault(id(psi), psi.detach().requires_grad_())
            output, state = self._output(leaf, gradient, state)
            total = total - self._step_size * (output * cotangent).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
        return torch.stack(gradients).sum(dim=0), [(h.detach(), c.detach()) for h, c in state]

    def _output(self, psi: Tensor, gradient: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        return self._lstm(psi, {}, preprocess_gradient(gradient), state, training=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "psi": self._learned.weights,
            "adam": self._learned._asdict(),
            "state": self._state,
            "window_start": self._window_start,
            "proposals": list(self._proposals),
            "outcomes": list(self._outcomes),
            "base": None if self._base is None else self._base.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learned = Learned(**state["adam"])
        self._state, self._window_start = state["state"], state["window_start"]
        self._proposals = [(gradient, psi) for gradient, psi in state["proposals"]]
        self._outcomes = list(state["outcomes"])
        if self._base is not None:
            self._base.load_state_dict(state["base"])


class LocalTeacher:
    """The teacher in this process; also what the teacher actor holds. Its vectors live on the CPU."""

    def __init__(
        self,
        phi: Float[Tensor, " m"],
        rule: UpdateRule,
        limit: Limit | None = None,
        watch: SignalToNoise | None = None,
    ):
        """
        Args:
            phi: where the loss begins.
            limit: what is made of phi after each step, before anybody sees it.
            watch: what is said of the hypergradients; None: their signal and noise as a whole.
        """
        self._watch = watch or SignalToNoise()
        self._limit = limit or (lambda phi: phi)
        self._phi, self._rule, self._version = phi.detach().cpu().clone(), rule, 0
        self._learned = 0  # the latest version whose outcome is known; phi began at version 0, no proposal led there
        self._last_gradient: Tensor | None = None
        self._moments = Moments.begin(self._phi)

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a saved state. Without one the teacher must be new."""
        if state is not None:
            self.load_state_dict(state)
        assert state is not None or self._version == 0

    def read(self) -> LossParams:
        return LossParams(self._version, self._phi)

    @part("teacher")
    def propose(self, version: int, hypergradient: Float[Tensor, " m"], error: float) -> LossParams:
        """Moves phi by one step of the rule.

        Raises:
            StaleVersionError: if the hypergradient was not taken at the current weights.
            DivergenceError: if error or hypergradient are not finite; nothing has moved then.
        """
        if version != self._version:
            raise StaleVersionError(f"hypergradient of loss version {version}, but the current one is {self._version}.")
        gradient = _finite_gradient(hypergradient, error)
        self._phi = self._limit(self._phi + self._rule.propose(gradient))
        observed = self._observed(gradient)
        self._version, self._last_gradient = version + 1, gradient
        return self.read()._replace(observed=observed)

    def _observed(self, gradient: Float[Tensor, " m"]) -> Metrics:
        """What is said of the hypergradients up to this one."""
        self._moments = self._moments.after(clipped(gradient, self._watch.clip))
        observed = self._watch.observed(self._moments)
        if not observed or self._last_gradient is None:
            return observed
        return observed | {"hypergradient_cosine": cosine(gradient, self._last_gradient)}

    @part("teacher")
    def learn(self, version: int, hypergradient: Float[Tensor, " m"] | None = None) -> None:
        """Tells the rule how its latest proposal turned out (see `interfaces.Teacher`).

        Raises:
            StaleVersionError: if `version` is not the proposal whose outcome is due.
            DivergenceError: if the hypergradient is not finite; nothing has moved then.
        """
        expected = self._version if hypergradient is not None else self._version - 1
        if version != expected:
            raise StaleVersionError(f"outcome of loss version {version}, but that of version {expected} is due.")
        if version == 0:
            return
        if version != self._learned + 1:
            raise StaleVersionError(f"outcome of loss version {version}, but those up to {self._learned} are known.")
        gradient = self._last_gradient if hypergradient is None else _finite_gradient(hypergradient)
        assert gradient is not None
        self._rule.learn(gradient)
        self._learned = version

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "learned": self._learned,
            "phi": self._phi,
            "last_gradient": self._last_gradient,
            "rule": self._rule.state_dict(),
            "moments": self._moments._asdict(),  # as good as a copy: nothing is changed in place
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._version, self._learned = state["version"], state["learned"]
        self._phi, self._last_gradient = state["phi"], state["last_gradient"]
        self._rule.load_state_dict(state["rule"])
        # Checkpoints of earlier versions have none.
        self._moments = Moments(**state["moments"]) if "moments" in state else Moments.begin(self._phi)


def clipped(gradient: Float[Tensor, " m"], limit: float | None) -> Float[Tensor, " m"]:
    """The hypergradient, shortened to norm `limit` if it is longer.

    Norms of hypergradients have heavy tails: a round in which the student is about to tip over gives a hundred times
    the usual. One such spike stays in Adam's second moments (decay 0.999) for hundreds of rounds, in which nothing
    moves any more. Scaling every one of them to the same norm is no cure: where there is nothing to learn, the loss
    then walks at random.
    """
    if limit is None:
        return gradient
    return gradient * (limit / torch.linalg.vector_norm(gradient).clamp(min=limit))


def _finite_gradient(hypergradient: Float[Tensor, " m"], error: float = 0.0) -> Float[Tensor, " m"]:
    gradient = hypergradient.detach().cpu()
    num_bad = int((~torch.isfinite(gradient)).sum())
    entries = f"{num_bad} of {gradient.numel()} hypergradient entries"
    if not math.isfinite(error):
        raise DivergenceError(f"the validation error or its hypergradient is not finite (error {error}, {entries})")
    if num_bad:
        raise DivergenceError(
            f"the hypergradient is not finite ({entries}) though the validation error is: the steps explode, or the "
            "student has no second derivative at some example, as where a norm or a root is taken of zeros"
        )
    return gradient
