"""torch's L-BFGS, ready at once."""

import inspect

import torch


class LBFGS(torch.optim.LBFGS):
    """Without the decorator of `add_param_group`, and with it the import of torch's compiler: 5 s of a core."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
