"""Learn the loss function while training the model: L2T-DLN (NeurIPS 2023) on Ray.

    import l2t_ray

    result = l2t_ray.Experiment.from_yaml("configs/digits.yaml").run()
    result = l2t_ray.fit(model, train=(images, labels), validation=(clean_images, clean_labels))

Importing this package imports nothing heavy: the names below are fetched when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2t_ray.core.loss_network import DynamicLossNetwork
    from l2t_ray.run import Experiment
    from l2t_ray.training.fit import fit

__all__ = ["DynamicLossNetwork", "Experiment", "fit"]

_HOMES = {
    "DynamicLossNetwork": "l2t_ray.core.loss_network",
    "Experiment": "l2t_ray.run",
    "fit": "l2t_ray.training.fit",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'l2t_ray' has no attribute {name!r}")
