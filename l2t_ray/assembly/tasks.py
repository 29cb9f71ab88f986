"""From a configuration to the task that is learned."""

from l2t_ray.interfaces import Metric, Task
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.tasks.classification import Classification


def build_task(config: ExperimentConfig) -> Task:
    del config  # every data set is of one task so far
    return Classification()


def headline_for(config: ExperimentConfig) -> Metric:
    """What the experiment's students are chosen and reported by."""
    return build_task(config).metrics[0]
