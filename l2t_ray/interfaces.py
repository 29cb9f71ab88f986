"""The records that travel between the parts, and the protocols the parts keep.

Everything here is plain torch: no configuration, no Ray, no files. Shapes use `n` rows, `c` classes,
`p` student parameters, `m` loss-network parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: key, value, what to do. Exit code 2."""


class DivergenceError(Exception):
    """Training produced numbers that are not finite or exploded. Exit code 3; the last checkpoint stays.

    Attributes:
        advice: what to do about it, where smaller steps are no cure; None: take smaller ones.
        is_before_steps: the student's loss was not finite already before the round's first step.
    """

    def __init__(self, message: str, *, advice: str | None = None, is_before_steps: bool = False):
        super().__init__(message)
        self.advice, self.is_before_steps = advice, is_before_steps


class FailureLimitError(Exception):
    """Machines or processes were lost more often than the run may lose them. Exit code 1; the last checkpoint stays."""


class StoppedError(Exception):
    """Somebody asked the run to stop. It did so between two rounds, and the last checkpoint holds all of them."""


class Batch(NamedTuple):
    """One worker's slice of a global minibatch, on the device, augmented and normalised.

    `weights` are shares of the *global* batch: where an example is one row, they give 1, summed over the slices of all
    workers, and a mean over the global batch is `(weights * per_sample).sum()` here, summed over workers. Where an
    example has several rows (`Task.num_rows`), they are the share of one row: 1 / rows of the global batch.
    """

    inputs: Any  # a tensor, or several by name, which the model is given as keyword arguments; examples come first
    targets: Any  # likewise; classification: Int[Tensor, "n"]
    weights: Float[Tensor, " n"]
    indices: Int[Tensor, " n"]  # positions in the data set the batch was drawn from


class RoundBatches(NamedTuple):
    """The data of one round: K training minibatches and one validation minibatch."""

    train: Sequence[Batch]
    val: Batch


class Rows(NamedTuple):
    """Class decisions, as a loss reads them: one row an image, a pixel or a box."""

    logits: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]  # shares of the global batch (`Batch.weights`)
    owner: Int[Tensor, " n"]  # the example of the batch that a row belongs to
    rest: Float[Tensor, ""] | None = None  # this worker's share of what is minimised beside the rows

    def total(self, losses: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """This worker's share of the whole loss, where the rows have these."""
        total = (self.weights * losses).sum()
        return total if self.rest is None else total + self.rest


class Term(NamedTuple):
    """One term of a task's loss, row by row: what a learned combination weighs."""

    values: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]  # as in `Rows`, times what the term counts in the task's own, fixed loss
    kinds: Int[Tensor, " n"]  # which of the term's kinds (a class, a scale) a row is of
    owner: Int[Tensor, " n"]


class Terms(NamedTuple):
    """What a task gives a loss to work with. The task's own loss is the sum of all terms, or cross-entropy on the rows.

    Attributes:
        outputs: what everything here was computed from, as one tensor; classification: the logits.
        rows: class decisions, for losses of pairs; None: the task has none. What is minimised beside them, where that
            is more than `rest`, is their own `rest`.
        values: terms by name, for learned combinations.
        rest: this worker's share of what is minimised beside them and not learned; None: nothing.
    """

    outputs: Tensor
    rows: Rows | None = None
    values: Mapping[str, Term] = {}
    rest: Float[Tensor, ""] | None = None


class StudentState(NamedTuple):
    """The student at one moment.

    Attributes:
        theta: flat parameters.
        velocity: what the optimizer remembers of earlier gradients: SGD's momentum buffer, Adam's first moment.
        buffers: normalisation buffers by name.
        carried: what else the optimizer carries from step to step, by name (`bilevel/optimizers.py`); SGD nothing.
    """

    theta: Float[Tensor, " p"]
    velocity: Float[Tensor, " p"]
    buffers: Mapping[str, Tensor]
    carried: Mapping[str, Tensor] = {}


class MethodState(NamedTuple):
    """All that a method carries from round to round, its teacher apart. `extra` belongs to the method alone."""

    student: StudentState
    extra: Mapping[str, Tensor]


Metrics = dict[str, float]
"""Numbers by name: those of one round by column (tracking/metrics.py lists the columns), or what a task's `summarise`
gives."""


class LossParams(NamedTuple):
    """Weights of the loss network as the teacher hands them out, numbered so that stale ones are noticed.

    Attributes:
        observed: what the teacher says of the hypergradients that led there.
    """

    version: int
    phi: Float[Tensor, " m"]
    observed: Metrics = {}  # noqa: RUF012 (a tuple's default; nobody changes it)


class Metric(NamedTuple):
    """A number that says how good a student is: what it is called, how it is shown, and which way is better.

    `title` stands in tables and figures, `short` where there is little room. A value times `factor` is in `unit`, and
    is shown with so many `digits`.
    """

    name: str
    title: str
    short: str | None = None  # the title
    unit: str = "%"
    factor: float | int = 100
    digits: int = 2
    higher_is_better: bool = True
    chance: Callable[[int], float] | None = None  # what guessing comes to, of the number of classes

    @property
    def on_test(self) -> str:
        """The column of the metrics table, and the name among the final metrics."""
        return f"test_{self.name}"

    @property
    def on_validation(self) -> str:
        return f"validation_{self.name}"

    @property
    def best(self) -> str:
        """Among the final metrics: the best one of all evaluations on the test set."""
        return f"best_{self.on_test}"

    @property
    def selected(self) -> str:
        """Among the final metrics: the one on the test set where that on the validation part was best."""
        return f"selected_{self.on_test}"


@runtime_checkable
class Group(Protocol):
    """The workers that share one student. A single process is a group of one."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over all workers, the same on each. May overwrite and return its argument."""
        ...


@runtime_checkable
class Task(Protocol):
    """Turns student outputs and targets into rows or terms, an error and scores. The core never learns what a row was.

    Attributes:
        name: for messages.
        metrics: of what `summarise` gives, what stands in tables. The first is the headline: what a student is chosen
            and reported by.
        kinds: the kinds of each term that `terms` gives, by the term's name, in order; for learned combinations.
        row_is_example: each example is one row, in order. What goes by example (a memory, MentorNet's curriculum,
            reweighting by class centres) needs that.

    Where a metric is no function of sums (an average precision ranks boxes of all images), a task may have a true
    attribute `scores_are_rows`: `score` then gives rows `[r, k]`, and `summarise` is given those of all batches and
    workers.
    """

    name: str
    metrics: tuple[Metric, ...]
    kinds: Mapping[str, Sequence[str]]
    row_is_example: bool

    def num_rows(self, targets: Any) -> Int[Tensor, " n"]:
        """Rows of each example that count: ignored pixels, for one, do not."""
        ...

    def terms(self, outputs: Any, batch: Batch) -> Terms: ...
    def error(self, outputs: Any, batch: Batch, group: "Group") -> Float[Tensor, ""]:
        """This worker's share of the validation error `e` (differentiable once)."""
        ...

    def score(self, outputs: Any, batch: Batch) -> Float[Tensor, " s"]:
        """Sums to add over batches and workers; `summarise` turns the totals into metrics."""
        ...

    def summarise(self, totals: Float[Tensor, " s"]) -> Metrics:
        """Numbers by name, `metrics` among them. Columns are `test_<name>` and `validation_<name>`."""
        ...


@runtime_checkable
class Data(Protocol):
    """Serves the batches of any round by its number alone: nothing is carried, so any round can be asked for again."""

    @property
    def num_classes(self) -> int: ...
    def round(self, index: int) -> RoundBatches: ...
    def epoch(self, index: int) -> int:
        """The epoch (division into training and validation part) that round `index` belongs to."""
        ...

    def validation(self, epoch: int) -> Iterable[Batch]:
        """The whole validation part of an epoch, unaugmented, in order: for class centres."""
        ...

    def test(self) -> Iterable[Batch]: ...


@runtime_checkable
class Teacher(Protocol):
    """Owns the loss network's weights. Speaks in vectors: hypergradients come in, weights go out."""

    def read(self) -> LossParams: ...

    def propose(self, version: int, hypergradient: Float[Tensor, " m"], error: float) -> LossParams:
        """New weights from this worker's share of d e / d phi, taken at the weights numbered `version`."""
        ...

    def learn(self, version: int, hypergradient: Float[Tensor, " m"] | None = None) -> None:
        """Learns from d e / d phi taken at the proposed weights `version`; None: the one given to `propose`."""
        ...

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """Starts training from a saved state, or from the beginning. Comes before everything else."""
        ...

    def state_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class Method(Protocol):
    """A way to train a student. L2T-DLN and every baseline are one; the loop never asks which."""

    def init(self) -> MethodState: ...
    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]: ...


@runtime_checkable
class Weighing(Protocol):
    """A method that gives more weight to some samples than to others, and can say how much."""

    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"] | None:
        """The weight that each sample's cross-entropy would have in round `index`, up to a common factor; None: it
        weighs none in that round.

        Taken in evaluation mode, with no part in the training. Where the loss is another one, the weight is the size
        of its gradient at the logits, relative to that of cross-entropy.
        """
        ...


@runtime_checkable
class LearnsLoss(Protocol):
    """A method that trains under a learned loss, and can say which it is."""

    def learned_loss(self, state: MethodState) -> Float[Tensor, " m"] | None:
        """Weights of the loss that is in use, on any device; None: there is none after all."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Where a run is written down beside its own directory. Never raises: a lost tracker must not stop a run."""

    def log_params(self, params: Mapping[str, Any]) -> None: ...
    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def log_artifacts(self, *paths: str) -> None: ...
    def finish(self, status: str) -> None: ...
