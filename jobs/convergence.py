"""Checks the convergence section of the paper's supplement numerically, and draws it (docs/convergence.md)."""

from functools import partial

from l2t_ray.commands.check_convergence import main as run

main = partial(run, __doc__)

if __name__ == "__main__":
    main()
