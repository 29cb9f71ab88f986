"""Ray Train with one process less to start."""

from typing import Any

from ray.train.torch import TorchTrainer


class LeanTrainer(TorchTrainer):
    """A `TorchTrainer` that starts no manager for Ray Data sets, of which there are none here.

    The manager is a process of its own, started anew with every group of workers: several seconds of a core, of which
    a small machine has few when it recovers. Should a later Ray name things otherwise, the manager is merely back.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != "DatasetsCallback"]
