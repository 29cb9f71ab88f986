"""What the parent of all children imports: everything that a run without Ray needs. A fork then has it."""

import torch

from l2t_ray.assembly.images import load_dataset
from l2t_ray.settings.experiment import DataConfig

torch.set_num_threads(1)
load_dataset(DataConfig())  # scikit-learn brings the digits
