"""The page that goes with a learned loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.reports.tables import comparison
from l2t_ray.settings.experiment import ExperimentConfig


def loss_card(config: ExperimentConfig, loss: LearnedLoss, summaries: Sequence[Mapping[str, Any]]) -> str:
    """A page that says what a learned loss is, where it comes from and how it did."""
    imbalance = config.data.imbalance
    classes = "" if imbalance.kind == "none" else f" classes: {imbalance.kind} {imbalance.factor:g};"
    return f"""# A learned loss

`loss.safetensors` was learned while a {config.student.name} trained on {config.data.name} (noise:
{config.data.noise.kind} {config.data.noise.rate:g};{classes} seed {config.seed}; {summaries[-1]["rounds"]} rounds of
{config.training.num_steps} steps). {loss.describe()}
{comparison(summaries)}
The loss was learned with this student, data and learning rate, together with their schedule: on others, measure.
"""
