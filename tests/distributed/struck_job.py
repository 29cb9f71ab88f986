"""The main job on a cluster of several machines, of which one is to die: a driver process of its own.

python struck_job.py MARK ROUND worker|teacher CONFIG key=value ...
"""

import sys
from pathlib import Path

import sabotage
from sabotage import Blow

from l2t_ray.distributed import launch, worker
from l2t_ray.run import Experiment


def main() -> None:
    mark, round_index, victim, config, *overrides = sys.argv[1:]
    sabotage.register()
    blow = Blow(Path(mark), int(round_index), takes_machine=True)
    if victim == "teacher":
        launch.first_teacher = sabotage.teacher_struck(blow)
    if victim == "worker":
        worker.train_worker = sabotage.worker_struck(blow, rank=0)
    Experiment.from_yaml(config, overrides).run()


if __name__ == "__main__":
    main()
