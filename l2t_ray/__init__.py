"""Learn the loss function while training the model: L2T-DLN (NeurIPS 2023) on Ray.

    import l2t_ray

    result = l2t_ray.Experiment.from_yaml("configs/digits.yaml").run()
    result = l2t_ray.fit(model, train=(images, labels), validation=(clean_images, clean_labels))

Importing this package imports nothing heavy: the names below are fetched when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from l2t_ray import theory
    from l2t_ray.assembly.callbacks import EarlyStopping
    from l2t_ray.assembly.fit import fit
    from l2t_ray.assembly.fit_result import Fit
    from l2t_ray.assembly.trained_model import load_model
    from l2t_ray.bilevel.flat import FlatModule
    from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
    from l2t_ray.core.loss.learned import LearnedLoss
    from l2t_ray.core.loss.network import DynamicLossNetwork
    from l2t_ray.core.loss.pairs import one_vs_one
    from l2t_ray.core.loss.terms import TermLoss
    from l2t_ray.core.lstm_teacher import LSTMTeacher, preprocess_gradient
    from l2t_ray.core.reweight import importance_weights, similarity
    from l2t_ray.data.noise import flip_to_one, flip_to_two, uniform
    from l2t_ray.interfaces import DivergenceError, UserError
    from l2t_ray.loops.loss_teacher import LossTeacher
    from l2t_ray.run import Experiment

__all__ = [
    "DivergenceError",
    "DynamicLossNetwork",
    "EarlyStopping",
    "Experiment",
    "Fit",
    "FlatModule",
    "LSTMTeacher",
    "LearnedLoss",
    "LossTeacher",
    "TermLoss",
    "UserError",
    "fit",
    "flip_to_one",
    "flip_to_two",
    "hypergradient",
    "importance_weights",
    "load_model",
    "naive_hypergradient",
    "one_vs_one",
    "preprocess_gradient",
    "similarity",
    "theory",
    "uniform",
]

_HOMES = {
    "DivergenceError": "interfaces",
    "DynamicLossNetwork": "core.loss.network",
    "EarlyStopping": "assembly.callbacks",
    "Experiment": "run",
    "Fit": "assembly.fit_result",
    "FlatModule": "bilevel.flat",
    "LSTMTeacher": "core.lstm_teacher",
    "LearnedLoss": "core.loss.learned",
    "LossTeacher": "loops.loss_teacher",
    "TermLoss": "core.loss.terms",
    "UserError": "interfaces",
    "fit": "assembly.fit",
    "flip_to_one": "data.noise",
    "flip_to_two": "data.noise",
    "hypergradient": "bilevel.hypergradient",
    "importance_weights": "core.reweight",
    "load_model": "assembly.trained_model",
    "naive_hypergradient": "bilevel.hypergradient",
    "one_vs_one": "core.loss.pairs",
    "preprocess_gradient": "core.lstm_teacher",
    "similarity": "core.reweight",
    "uniform": "data.noise",
}


def __getattr__(name: str) -> Any:
    if name == "theory":
        return import_module("l2t_ray.theory")
    if name in _HOMES:
        return getattr(import_module(f"l2t_ray.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'l2t_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
