"""A try-out of everything that a configuration is about to train."""

from l2t_ray.bilevel.draws import unmoved_draws
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.training.dry_round import dry_round, shortened
from l2t_ray.training.explain import Words
from l2t_ray.training.loop import Run

OTHERWISE = "set method.engine=finite_difference (an approximation)"
"""What a configuration can do about a missing second derivative."""
_ROWS = 8
"""Enough to see whether a student of ours can be trained; a minibatch of a large one takes a CPU minutes."""


def try_arms(run: Run, config: ExperimentConfig) -> None:
    """Takes a dry round of every arm, on a few images. The run is not to be trained afterwards.

    No more images than the smallest share of a worker: that is what a batch norm sees, unless it is synchronised.

    Raises:
        UserError: in the configuration's words, if an arm cannot be trained.
    """
    settings = config.training
    num_workers = config.ray.num_workers if config.ray.enabled else 1
    num_sharing = 1 if config.student.sync_batchnorm else num_workers
    over = f" over {num_workers} workers" if num_sharing > 1 else ""
    words = Words(
        f"student {config.student.name!r}",
        "the training images",
        "the validation images",
        f"training.batch_size={settings.batch_size}{over}",
        f"training.val_batch_size={settings.val_batch_size}{over}",
        otherwise=OTHERWISE,
        is_own=False,
    )
    sizes = [max(1, min(_ROWS, n // num_sharing)) for n in (settings.batch_size, settings.val_batch_size)]
    for arm in run.arms:
        batches = shortened((arm.data or run.data).round(0), *sizes)
        with unmoved_draws(batches.val.weights.device):
            dry_round(arm.method, run.student, run.task, run.group, batches, words)
