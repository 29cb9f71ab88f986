"""What hears of each round of `fit`, and may end it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

from l2t_ray.interfaces import Metric, UserError

Callback = Callable[[int, Mapping[str, Any]], object]
"""`(round, metrics) -> True: stop here`; rounds are counted from 0, and anything else than True is no answer."""


class EarlyStopping:
    """Ends the training once the validation metric has not become better for some evaluations.

    `fit` evaluates every `eval_every` rounds. Where validation examples are trained on as well, as the recommended
    method does, their metric is too good: give `metric="test_accuracy"` and a `test=` set that is not the one you
    report on, or `method={"name": "recommended", "clean_images": "validate"}`.

    Args:
        patience: evaluations without a better metric after which the training ends.
        min_delta: a metric is better by more than this.
        metric: a column of the rows, `validation_` or `test_` and a metric of the task; None: its first one on the
            validation set, `validation_accuracy` in classification.
        keep: `best`: `fit` gives back model and loss as they were at the best evaluation, whether or not all rounds
            were done. `last`: as they are at the end.

    Attributes:
        best_round: of the best evaluation so far; None: there was none.
        improved: the latest evaluation was the best one.

    Raises:
        UserError: if an argument is none.
    """

    def __init__(
        self,
        patience: int = 5,
        *,
        min_delta: float = 0.0,
        metric: str | None = None,
        keep: Literal["best", "last"] = "best",
    ):
        for name, value, is_one, must_be in (
            ("patience", patience, _is_whole(patience) and patience >= 1, "a whole number of at least 1"),
            ("min_delta", min_delta, _is_number(min_delta) and min_delta >= 0, "a finite number of at least 0"),
            ("metric", metric, metric is None or isinstance(metric, str), "None or a column of the rows"),
            ("keep", keep, keep in ("best", "last"), "'best' or 'last'"),
        ):
            if not is_one:
                raise UserError(f"{name} of EarlyStopping must be {must_be}, got {value!r}.")
        self.patience, self.min_delta, self.keep = int(patience), float(min_delta), keep
        self._column, self._asked, self._sign = metric or "", metric, 1.0
        self._forget()

    # What is no such argument is for the sentences above to say, not for a type checker at run time.
    setattr(__init__, "__no_type_check__", True)  # noqa: B010

    def begin(self, metrics: Sequence[Metric], rows: Iterable[Mapping[str, Any]] = ()) -> bool:
        """Forgets what it has seen, and hears the rows of a training that goes on.

        Args:
            metrics: of the task, the headline first.

        Returns:
            Whether it has ended before.

        Raises:
            UserError: if what it watches is none of them.
        """
        columns = {column: metric for metric in metrics for column in (metric.on_validation, metric.on_test)}
        self._column = metrics[0].on_validation if self._asked is None else self._asked
        if self._column not in columns:
            raise UserError(
                f"metric of EarlyStopping must be one of {', '.join(columns)}, which the task gives, got "
                f"{self._column!r}."
            )
        self._sign = 1.0 if columns[self._column].higher_is_better else -1.0
        self._forget()
        return any([self(row["round"], row) for row in rows])

    def __call__(self, round: int, metrics: Mapping[str, Any]) -> bool:
        value, self.improved = metrics.get(self._column), False
        if value is None:  # not every round is evaluated
            return False
        if self._sign * value > self._best + self.min_delta:
            self.best_round, self.improved, self._best, self._waited = round, True, self._sign * value, 0
        else:
            self._waited += 1
        return self._waited >= self.patience

    def watches_validation(self, metrics: Sequence[Metric]) -> bool:
        """Whether what it watches is measured on the validation set; `metrics` are the task's."""
        return self._asked is None or self._asked in {metric.on_validation for metric in metrics}

    def _forget(self) -> None:
        self.best_round: int | None = None
        self.improved, self._best, self._waited = False, -math.inf, 0

    def __str__(self) -> str:
        return f"{self._column} was not better than in round {self.best_round} for {self._waited} evaluations"


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
