"""The page that goes with a learned loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.reports.tables import comparison
from l2t_ray.settings.experiment import ExperimentConfig

SHARE_OF_ROUNDS = 0.2
"""The last ones, whose hypergradients the page speaks of."""


def loss_card(
    config: ExperimentConfig,
    loss: LearnedLoss,
    summaries: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A page that says what a learned loss is, where it comes from and how it did.

    Args:
        rows: of the rounds of its method.
    """
    imbalance = config.data.imbalance
    which = imbalance.kind if imbalance.of is None else f"{imbalance.kind} {imbalance.of}"
    classes = "" if imbalance.kind == "none" else f" classes: {which} {imbalance.factor:g};"
    return f"""# A learned loss

`loss.safetensors` was learned while a {config.student.name} trained on {config.data.name} (noise:
{config.data.noise.kind} {config.data.noise.rate:g};{classes} seed {config.seed}; {summaries[-1]["rounds"]} rounds of
{config.training.num_steps} steps). {loss.describe()}
{comparison(summaries)}
{_signal(rows)}The loss was learned with this student, data and learning rate, together with their schedule: on
others, measure.
"""


def _signal(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much of the hypergradients was signal; nothing where that is not known."""
    last = [row for row in rows[-max(1, round(SHARE_OF_ROUNDS * len(rows))) :] if row.get("snr") is not None]
    if not last:
        return ""
    means = {name: sum(row[name] for row in last) / len(last) for name in last[-1] if name.startswith("snr")}
    whole, parts = means.pop("snr"), ", ".join(f"{name[4:]} {mean:.2f}" for name, mean in means.items())
    said = f"{whole:.2f} of its noise ({parts})" if parts else f"{whole:.2f} of its noise"
    return f"In the last {len(last)} rounds the signal of a round's hypergradient was {said}.\n\n"
