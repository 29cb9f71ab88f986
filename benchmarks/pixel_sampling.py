"""How far a step on m sampled pixels an image is from the step on all of them: loss, gradient, hypergradient.

    python benchmarks/pixel_sampling.py
    python benchmarks/pixel_sampling.py --config configs/camvid_small.yaml data.root=DIR

The student of the configuration trains for `--rounds` rounds under its method. Then, at one and the same student and
loss, each figure is the root of the mean square of what a draw gives less what all pixels give, over the latter's
length:

    sqrt(mean |x_m - x|^2) / |x|        x: the loss, d L / d theta, or d e / d phi through one step

over `--draws` draws of m pixels from each of `--minibatches` minibatches. The last line is what minibatches differ from
their mean by, all pixels taken: noise that is there anyway. What is printed is a table in Markdown.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from l2t_ray.assembly.run import build_run
from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.bilevel.unroll import loss_gradients
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.data.mask_transforms import chosen_pixels
from l2t_ray.interfaces import Batch, MethodState, RoundBatches
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings import experiment as configuration
from l2t_ray.tasks.segmentation import Segmentation

PIXELS = (16, 64, 256, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/digit_scenes.yaml"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = configuration.load(
        options.config, ["ray.enabled=false", "controls=[]", "data.masks.pixels=null", *options.overrides]
    )
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    (arm,), task = run.arms, run.task
    if not isinstance(arm.method, L2TDLN) or not isinstance(task, Segmentation):
        parser.error("the configuration must have masks, and l2t_dln for its method")
    arm.teacher.begin(None)
    state = arm.method.init()
    for index in range(options.rounds):
        state, _ = arm.method.round(state, arm.data.round(index), index)
    rounds = [arm.data.round(options.rounds + number) for number in range(options.minibatches)]
    measure = partial(measured, arm.method, state)
    whole = [measure(batches) for batches in rounds]
    print("| pixels | loss | gradient | hypergradient |\n|---|---|---|---|")
    for pixels in PIXELS:
        drawn = [
            [measure(with_pixels(batches, task, pixels, seed)) for seed in range(options.draws)] for batches in rounds
        ]
        pairs = [(one, all_of_it) for of_round, all_of_it in zip(drawn, whole, strict=True) for one in of_round]
        print_row(f"{pixels:,}", pairs)
    means = [torch.stack(column).mean(dim=0) for column in zip(*whole, strict=True)]
    print_row("all, other minibatches", [(one, means) for one in whole])


def measured(method: L2TDLN, state: MethodState, batches: RoundBatches) -> list[Tensor]:
    """Loss `[1]`, gradient and hypergradient of the first step of a round."""
    problem, student, rate = method.objective.problem(state), state.student, 0.01
    phi, batch = method.learned_loss(state), batches.train[0]
    theta = student.theta.detach().requires_grad_()
    gradient, loss, _ = loss_gradients(problem, theta, phi, clone_buffers(student.buffers), batch)
    found = hypergradient(problem, student, phi, [batch], batches.val, rates=[rate])
    return [loss.reshape(1), gradient, found.gradient]


def with_pixels(batches: RoundBatches, task: Segmentation, pixels: int, seed: int) -> RoundBatches:
    """The first minibatch with so many pixels chosen of each image."""
    batch = batches.train[0]
    masks: Tensor = batch.targets
    seeds = range(seed * len(masks), (seed + 1) * len(masks))
    chosen = [chosen_pixels(mask, pixels, ignore=task.ignore, seed=own) for mask, own in zip(masks, seeds, strict=True)]
    targets = {"mask": masks, "chosen": torch.stack(chosen)}
    weights = torch.full_like(batch.weights, 1 / task.num_rows(targets).sum().item())
    return RoundBatches([Batch(batch.inputs, targets, weights, batch.indices)], batches.val)


def print_row(name: str, pairs: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> None:
    cells = []
    for place in range(3):
        squares = [(one[place] - other[place]).square().sum() for one, other in pairs]
        lengths = [other[place].square().sum() for _, other in pairs]
        cells.append(f"{(torch.stack(squares).mean() / torch.stack(lengths).mean()).sqrt().item():.3g}")
    print(f"| {' | '.join((name, *cells))} |", flush=True)


if __name__ == "__main__":
    main()
