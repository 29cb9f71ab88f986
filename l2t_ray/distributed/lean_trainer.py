"""Ray Train with two processes less to start."""

from typing import Any

from ray.train.torch import TorchTrainer

UNUSED = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""A manager of Ray Data sets, of which there are none here, is started anew with every group of workers. A cleaner that
frees the workers' places when the controller dies does, by a dashboard, what the end of the job does as well, and
complains once a second where there is no dashboard."""


class LeanTrainer(TorchTrainer):
    """A `TorchTrainer` without helpers that are of no use here: each takes a core for seconds when workers start.

    Should a later Ray name things otherwise, the helpers are merely back.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in UNUSED]
