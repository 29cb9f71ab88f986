"""A trained model as MLflow loads and serves it.

>>> mlflow.pyfunc.load_model("models:/m-0123").predict(pixels)
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from l2t_ray.assembly.trained_model import TrainedModel, load_model


class ServedModel:
    """What `mlflow.pyfunc` calls."""

    def __init__(self, model: TrainedModel):
        self.model = model

    @torch.no_grad()
    def predict(self, model_input: Any, params: Any = None) -> Any:
        """What the student gives, as NumPy arrays: of classification the logits `[n, c]`.

        Args:
            model_input: pixels or files, as `TrainedModel.preprocess` takes them; of a student that reads no images an
                array of what it reads.
            params: MLflow's; there are none.
        """
        del params
        is_of_images = self.model.card.is_of_images
        inputs = self.model.preprocess(model_input) if is_of_images else torch.as_tensor(model_input)
        return tree_map(lambda output: output.cpu().numpy(), self.model(inputs))


def _load_pyfunc(path: str) -> ServedModel:
    """What MLflow calls with the file's path.

    Raises:
        UserError: as `load_model`; a student of one's own is loaded with that alone.
    """
    return ServedModel(load_model(Path(path)))
