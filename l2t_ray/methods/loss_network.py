"""The settings of the loss network, and the network that they describe."""

from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.network import DynamicLossNetwork, LossNetworkSpec
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.slope_bound import SlopeBound
from l2t_ray.data.counted import torch_seed
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.parts import LossFacts
from l2t_ray.settings.record import Positive, Whole, Width

_SOME_CLASSES = 2
"""Whether an architecture makes sense does not depend on how many classes there are."""


class LossNetworkConfig(LossSettings):
    """Architecture and beginning of the learned loss (`LossNetworkSpec`, whose rules these settings keep)."""

    name: Literal["pairs"] = "pairs"  # pyright: ignore[reportIncompatibleVariableOverride]
    init: Literal["released", "linear", "cross_entropy", "gce"] = "cross_entropy"
    """What its first weights are fitted to; `released`: they are random, as in the released code."""
    hidden: Width = 40
    """Units of each hidden layer (paper: 40)."""
    layers: Annotated[Whole, Field(ge=0, le=100)] = 5
    """Linear maps in all (paper: 5). 0: no network, the loss is -log p_true, and channel and memory are all that is
    learned."""
    pairs: Literal["sigmoid", "softmax"] = "softmax"
    """How logits become probabilities (paper: sigmoid)."""
    activation: Literal["leaky_relu", "silu"] = "silu"
    """Between the layers (released code: leaky_relu)."""
    label_entries: Literal["constant", "table", "channel"] = "table"
    """`constant`: (1, 0) as in the paper; `table`: a learned entry for each pair of classes in place of the 0;
    `channel`: (1, 0), and probabilities go through a learned matrix of label noise before they are paired."""
    memory: Positive | None = None
    """Where the weight of the memory term starts (`core/loss/memory.py`): what the student has said of an image so far
    then counts beside its label. null: it does not. (Liu et al. 2020, without a channel: 3 on CIFAR-10, 7 on
    CIFAR-100.)"""
    slope: Literal["bounded", "free"] = "bounded"
    """`bounded`: the network pushes no sample harder than cross-entropy does, nor away from its label by more than 0.3
    of that; `free`: as the teacher will have it (paper). A memory has a bound of its own."""
    mean: Literal["pairs", "released"] = "pairs"
    """Over the pairs of a row; `released`: the released code counts the true class's row as well (docs/released.md)."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "LossNetworkConfig":
        if self.layers == 0 and self.init != "cross_entropy":
            raise ValueError(
                f"loss.layers is 0, cross-entropy on softmax pairs, and loss.pairs is {self.pairs!r}, "
                f"loss.init {self.init!r}; leave them out or set loss.layers=5"
            )
        if self.layers == 0 and self.label_entries == "table":
            raise ValueError(
                "loss.layers is 0, and a table needs layers to read it; "
                "set loss.label_entries=channel or constant, or loss.layers=5"
            )
        try:
            LossNetworkSpec(**self._architecture(_SOME_CLASSES))
        except ValueError as error:
            given = ", ".join(f"{key}={getattr(self, key)}" for key in ("layers", "pairs", "label_entries", "memory"))
            raise ValueError(
                f"loss cannot be made with {given}: {str(error).rstrip('.')}; set loss.layers to 2 or "
                "more, or layers=0 with pairs=softmax and label_entries=channel or a memory"
            ) from None
        return self

    @property
    def has_channel(self) -> bool:
        return self.label_entries == "channel"

    def family(self, facts: LossFacts, *, begun: bool = True) -> PairLoss:
        network = self.build(facts.num_classes, seed=facts.seed) if begun else self.bare(facts.num_classes)
        return PairLoss(network, facts.task)

    def bound(self, family: LossFamily) -> SlopeBound | None:
        if self.slope == "free" or not isinstance(family, PairLoss):
            return None
        return SlopeBound(family.spec, family.phi)

    def noise(self, phi: Float[Tensor, " m"], num_classes: int) -> Float[Tensor, "c c"] | None:
        return self.bare(num_classes).spec.parts.noise(phi)

    @staticmethod
    def of(spec: LossNetworkSpec) -> dict[str, Any]:
        """What is set of a network that there is already; where it begins and its bounds are not among it."""
        entries = "channel" if spec.channel is not None else "table" if spec.label_table is not None else "constant"
        return {
            "hidden": spec.hidden,
            "layers": spec.layers,
            "pairs": spec.pairs,
            "activation": spec.activation,
            "label_entries": entries,
            "memory": spec.memory,
            "mean": spec.mean,
        }

    def build(self, num_classes: int, *, seed: int) -> DynamicLossNetwork:
        """The loss network at its beginning: its weights are fitted, which takes seconds."""
        return DynamicLossNetwork(
            init=self.init, seed=torch_seed(seed, "loss network"), **self._architecture(num_classes)
        )

    def bare(self, num_classes: int) -> DynamicLossNetwork:
        """The architecture alone: its weights are somebody else's to say, so none are fitted."""
        return self.model_copy(update={"init": "released"}).build(num_classes, seed=0)

    def _architecture(self, num_classes: int) -> dict:
        """The fields of `LossNetworkSpec`."""
        return {
            "hidden": self.hidden,
            "layers": self.layers,
            "pairs": self.pairs,
            "activation": self.activation,
            "label_table": num_classes if self.label_entries == "table" else None,
            "mean": self.mean,
            "channel": num_classes if self.label_entries == "channel" else None,
            "memory": self.memory,
        }
