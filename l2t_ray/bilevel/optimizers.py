"""The student's optimizers: a step, and the way back through it.

g is the gradient of the global minibatch, c(g) what clipping leaves of it, w the weight decay, alpha the learning rate
of the step, which may be any. Squares, roots and quotients are taken entry by entry.

SGD, with d = c(g) + w theta:

    v'      = mu v + d
    theta'  = theta - alpha v'                  Nesterov: theta - alpha (d + mu v')

Adam, with d = c(g) + w theta, or d = c(g) where the decay is decoupled (AdamW):

    m'      = b1 m + (1 - b1) d                 mh = m' / (1 - b1^t)
    s'      = b2 s + (1 - b2) d^2               r  = sqrt(s' / (1 - b2^t) + eps_root)
    theta'  = theta - alpha mh / (r + eps)      decoupled: - alpha w theta as well

Clipping scales a gradient whose norm is above `clip` down to it, before anything is decayed: c(g) = g
min(1, clip / ||g||).

On the way back each optimizer turns the co-states behind its step, lambda = d e / d theta' and those of what it
carries, into gamma = d e / d g. The network's second derivatives along gamma, one product a step as ever, are the
loss's part; the rest of the co-states before the step is the optimizer's own. Through SGD, with nu for v':

    nu      <- nu - alpha lambda                Nesterov: nu - alpha mu lambda
    delta   =  nu                               Nesterov: nu - alpha lambda
    gamma   =  (dc/dg) delta
    lambda  <- lambda + H gamma + w delta
    nu      <- mu nu

and through Adam, with nu for m' and sigma for s':

    nu      <- nu - alpha lambda / ((1 - b1^t) (r + eps))
    sigma   <- sigma + alpha lambda mh / ((r + eps)^2 2 r (1 - b2^t)),  which adds 0 where r = 0
    delta   =  (1 - b1) nu + 2 (1 - b2) d sigma
    gamma   =  (dc/dg) delta
    lambda  <- lambda + H gamma + w delta       decoupled: (1 - alpha w) lambda + H gamma
    nu      <- b1 nu,  sigma <- b2 sigma

The clipping's own derivative is (clip / ||g||) (delta - gh (gh . delta)) with gh = g / ||g|| where ||g|| > clip, and
delta elsewhere. g is a sum over workers already, so nothing here needs another one.

**Where r = 0.** The root has no derivative there: its slope is infinite. But r = 0 says that every gradient so far was
0 in that entry. Then mh = 0 too, and the root's part in the step's derivative, mh times the slope, is 0 in the limit:
the step is d / (|d| + eps) or alike, whose slope at 0 is that of d / eps. So 0 is exact there, in `back` and in a
derivative by autograd. (The one other case is gradients whose squares are below the range of numbers, and the root that
was taken does not depend on those.) Near 0 the derivative is finite but steep, up to 1 / eps: a student with entries
whose gradients are nothing but rounding is better off with a larger `eps`, or with `eps_root`.

Kept a step for the way back: nothing by SGD, d, m' and r by Adam, three vectors of p; and g where it is clipped, one
more.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.interfaces import StudentState

SECOND_MOMENT, NUM_STEPS = "second_moment", "num_steps"


class Costates(NamedTuple):
    """Derivatives of the validation error in what a student is at one moment.

    Attributes:
        theta: lambda.
        velocity: nu, of the momentum or of Adam's first moment.
        second_moment: sigma; None where there is none.
    """

    theta: Float[Tensor, " p"]
    velocity: Float[Tensor, " p"]
    second_moment: Float[Tensor, " p"] | None = None

    @classmethod
    def at_end(cls, theta: Float[Tensor, " p"]) -> "Costates":
        """Of a trained student: the error reads its weights alone."""
        return cls(theta, torch.zeros_like(theta))


class AdamTrace(NamedTuple):
    """Of a step of Adam: d, m' and r of the module docstring, and what divides m' and s'."""

    entering: Float[Tensor, " p"]
    mean: Float[Tensor, " p"]
    root: Float[Tensor, " p"]
    correction_1: Float[Tensor, ""]
    correction_2: Float[Tensor, ""]


class Trace(NamedTuple):
    """What the way back through a step has to know.

    Attributes:
        rate: the step's learning rate.
        gradient: g, where it is clipped; else None.
        adam: of a step of Adam; else None.
    """

    rate: float
    gradient: Float[Tensor, " p"] | None
    adam: AdamTrace | None = None


Before = Callable[[Float[Tensor, " p"]], Costates]
"""`H gamma`, summed over workers -> the co-states before the step."""


@runtime_checkable
class Optimizer(Protocol):
    """How a gradient moves the student. A step can be differentiated by autograd as well as by `back`."""

    @property
    def loss_decay(self) -> float:
        """The weight decay that acts as a term of the loss, `w theta` in its gradient; 0 where it is decoupled."""
        ...

    def without_loss_decay(self) -> "Optimizer":
        """The same for gradients that hold that term already."""
        ...

    def begin(self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor]) -> StudentState:
        """A student that has taken no step."""
        ...

    def step(self, student: StudentState, gradient: Float[Tensor, " p"], rate: float) -> tuple[StudentState, Trace]:
        """The student after a step along the global minibatch's gradient; its buffers are not touched."""
        ...

    def back(self, after: Costates, trace: Trace) -> tuple[Float[Tensor, " p"], Before]:
        """gamma, the co-state of the step's gradient, and what gives the co-states before the step."""
        ...


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with `torch.optim.SGD`'s momentum, without dampening.

    Attributes:
        momentum: mu.
        weight_decay: w.
        nesterov: whether the step looks ahead along the momentum.
        clip: the largest norm of a gradient; None: any.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    clip: float | None = None

    @property
    def loss_decay(self) -> float:
        return self.weight_decay

    def without_loss_decay(self) -> "Sgd":
        return replace(self, weight_decay=0.0)

    def begin(self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor]) -> StudentState:
        return StudentState(theta, torch.zeros_like(theta), buffers)

    def step(self, student: StudentState, gradient: Float[Tensor, " p"], rate: float) -> tuple[StudentState, Trace]:
        theta, along = student.theta, _clipped(gradient, self.clip)
        # In this order: another one is rounded differently, and runs are compared to the bit.
        velocity = self.momentum * student.velocity + along + self.weight_decay * theta
        direction = velocity
        if self.nesterov:
            direction = along + self.weight_decay * theta + self.momentum * velocity
        moved = StudentState(theta - rate * direction, velocity, student.buffers)
        return moved, Trace(rate, _if_clipped(gradient, self.clip))

    def back(self, after: Costates, trace: Trace) -> tuple[Float[Tensor, " p"], Before]:
        costate = after.theta
        if self.nesterov:
            velocity = after.velocity - trace.rate * self.momentum * costate
            entering = velocity - trace.rate * costate
        else:
            entering = velocity = after.velocity - trace.rate * costate

        def before(hessian_product: Float[Tensor, " p"]) -> Costates:
            return Costates(costate + hessian_product + self.weight_decay * entering, self.momentum * velocity)

        return _through_clipping(entering, trace.gradient, self.clip), before


PLAIN_SGD = Sgd()
"""Gradient descent: nothing is remembered, decayed or clipped."""


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019), with the numbers of `torch.optim`.

    The student's `velocity` is the first moment; it carries `second_moment` `[p]` and `num_steps` beside it.

    Attributes:
        betas: b1 and b2, each in [0, 1).
        eps: added to the root. Above 0.
        weight_decay: w.
        decoupled: whether it is AdamW's, beside the moments and not in them.
        clip: the largest norm of a gradient; None: any.
        eps_root: added below the root.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    clip: float | None = None
    eps_root: float = 0.0

    @property
    def loss_decay(self) -> float:
        return 0.0 if self.decoupled else self.weight_decay

    def without_loss_decay(self) -> "Adam":
        return self if self.decoupled else replace(self, weight_decay=0.0)

    def begin(self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor]) -> StudentState:
        none = torch.zeros((), dtype=torch.int64, device=theta.device)
        carried = {SECOND_MOMENT: torch.zeros_like(theta), NUM_STEPS: none}
        return StudentState(theta, torch.zeros_like(theta), buffers, carried)

    def step(self, student: StudentState, gradient: Float[Tensor, " p"], rate: float) -> tuple[StudentState, Trace]:
        theta, (b1, b2) = student.theta, self.betas
        entering = _clipped(gradient, self.clip)
        if self.loss_decay:
            entering = entering + self.loss_decay * theta
        mean = b1 * student.velocity + (1 - b1) * entering
        second_moment = b2 * student.carried[SECOND_MOMENT] + (1 - b2) * entering.square()
        num_steps = student.carried[NUM_STEPS] + 1
        correction_1, correction_2 = (_one_minus_power(beta, num_steps, theta.dtype) for beta in self.betas)
        root = _root(second_moment / correction_2 + self.eps_root)
        direction = mean / correction_1 / (root + self.eps)
        if self.decoupled:
            direction = direction + self.weight_decay * theta
        carried = {SECOND_MOMENT: second_moment, NUM_STEPS: num_steps}
        moved = StudentState(theta - rate * direction, mean, student.buffers, carried)
        trace = AdamTrace(entering, mean, root, correction_1, correction_2)
        return moved, Trace(rate, _if_clipped(gradient, self.clip), trace)

    def back(self, after: Costates, trace: Trace) -> tuple[Float[Tensor, " p"], Before]:
        assert trace.adam is not None
        entering, mean, root, correction_1, correction_2 = trace.adam
        costate, (b1, b2) = after.theta, self.betas
        by_quotient = trace.rate * costate / (correction_1 * (root + self.eps))
        velocity = after.velocity - by_quotient
        # mh / r first: r^2 would leave the range of numbers before the quotient does.
        ratio = torch.where(root > 0, mean / root, torch.zeros_like(root))
        by_root = by_quotient * ratio / (2 * correction_2 * (root + self.eps))
        second = by_root if after.second_moment is None else after.second_moment + by_root
        into = (1 - b1) * velocity + 2 * (1 - b2) * entering * second

        def before(hessian_product: Float[Tensor, " p"]) -> Costates:
            if self.decoupled:
                theta = (1 - trace.rate * self.weight_decay) * costate + hessian_product
            else:
                theta = costate + hessian_product + self.weight_decay * into
            return Costates(theta, b1 * velocity, b2 * second)

        return _through_clipping(into, trace.gradient, self.clip), before


def _clipped(gradient: Float[Tensor, " p"], clip: float | None) -> Float[Tensor, " p"]:
    """No more than `clip` long. A gradient that is shorter stays as it is, to the last bit."""
    if clip is None:
        return gradient
    return gradient * (clip / torch.linalg.vector_norm(gradient).clamp(min=clip))


def _if_clipped(gradient: Float[Tensor, " p"], clip: float | None) -> Float[Tensor, " p"] | None:
    return None if clip is None else gradient


def _through_clipping(
    costate: Float[Tensor, " p"], gradient: Float[Tensor, " p"] | None, clip: float | None
) -> Float[Tensor, " p"]:
    """The co-state of a gradient, from that of what clipping left of it."""
    if clip is None or gradient is None:
        return costate
    norm = torch.linalg.vector_norm(gradient)
    at_most = norm.clamp(min=clip)
    unit = gradient / at_most
    radial = torch.where(norm > clip, unit @ costate, torch.zeros_like(norm))
    return (clip / at_most) * (costate - radial * unit)


def _root(values: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """The square root, with a derivative of 0 at 0 (module docstring)."""
    is_positive = values > 0
    return torch.where(is_positive, values.where(is_positive, 1.0).sqrt(), torch.zeros_like(values))


def _one_minus_power(beta: float, exponent: Int[Tensor, ""], dtype: torch.dtype) -> Float[Tensor, ""]:
    """`1 - beta ** exponent`, exact in single precision too, and without waiting for a GPU."""
    return -torch.expm1(exponent.to(dtype) * (math.log(beta) if beta else -math.inf))
