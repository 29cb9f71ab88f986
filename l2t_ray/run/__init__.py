"""An experiment from its configuration to its run directory: what the jobs call.

runs/<name>/config.yaml         the resolved configuration, without credentials
            fingerprint.json    what is computed, and by which code
            run.lock            while it runs: the process that does
            metrics.parquet     one row a round and method
            noise.json          where labels are wrong: matrix, realised rate, seed
            imbalance.json      where classes are of unequal size on purpose: the training images of each, seed
            confusion.npz       test images by class and answer, an array for each method
            figures/*.png
            suspects.csv        training labels, the most suspicious first, if the method has a memory of its images
                                (`suspects-<arm>.csv`: of a control)
            profile/            traces, if asked for
            loss.safetensors    the learned loss, with loss.md beside it
            model.safetensors   the trained student, for `l2t_ray.load_model`
            predictions.csv     what it says of each test image (of a control: `model-<arm>`, `predictions-<arm>`)
            checkpoints/
            summary.json        the final metrics, written last: a run that has one is finished
"""

from l2t_ray.exit_codes import exit_codes
from l2t_ray.run.paths import with_absolute_paths, working_directory
from l2t_ray.run.ready_experiment import Experiment
from l2t_ray.run.results import ARTIFACTS, Result, protocol, summarise

__all__ = [
    "ARTIFACTS",
    "Experiment",
    "Result",
    "exit_codes",
    "protocol",
    "summarise",
    "with_absolute_paths",
    "working_directory",
]
