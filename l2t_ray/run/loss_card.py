"""The page that goes with a learned loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.reports.tables import comparison
from l2t_ray.settings.experiment import ExperimentConfig


def loss_card(
    config: ExperimentConfig, loss_network: DynamicLossNetwork, summaries: Sequence[Mapping[str, Any]]
) -> str:
    """A page that says what a learned loss is, where it comes from and how it did."""
    spec, last = loss_network.spec, summaries[-1]
    classes = "any number of classes" if spec.num_classes is None else f"{spec.num_classes} classes"
    return f"""# A learned loss

`loss.safetensors` holds a dynamic loss network of {spec.num_weights:,} weights for {classes}, learned while a
{config.student.name} trained on {config.data.name} (noise: {config.data.noise.kind} {config.data.noise.rate:g}; seed
{config.seed}; {last["rounds"]} rounds of {config.training.num_steps} steps). Pairs: {spec.pairs}; activation:
{spec.activation}.

```python
from l2t_ray.core.loss.network import DynamicLossNetwork

loss_network = DynamicLossNetwork.load("loss.safetensors").requires_grad_(False)
loss_network.loss(student(images), labels).backward()
```
{"" if spec.memory is None else _MEMORY_CARD}
{comparison(summaries)}
The loss was learned with this student, data and learning rate, together with their schedule: on others, measure.
"""


_MEMORY_CARD = """
It has a memory too, which counts where it is given one (rows are the images of your training set). In training it was
brought up to date before each round; at each step is as good a time:

```python
from l2t_ray.core.loss.memory import nothing_remembered, remembered

memory = nothing_remembered(num_images, num_classes, device)
for images, labels, indices in batches:
    logits = student(images)
    memory = remembered(memory, indices, logits.detach().softmax(dim=1))
    loss_network.loss(logits, labels, memory=memory[indices]).backward()
```
"""
