"""Table 4 of the paper: the student's learning rate is raised, under the learned loss, SLF and cross-entropy.

python jobs/lr_robustness.py --size digits             # real scans, minutes on two cores; also: small, full
python jobs/lr_robustness.py --resume runs/lr_robustness-digits
"""

from pathlib import Path

from l2t_ray.exit_codes import exit_codes

if __name__ == "__main__":
    with exit_codes():
        from l2t_ray.studies.command import main  # takes seconds, in which one may press Ctrl-C

        main(__doc__, config=Path(__file__).parents[1] / "configs/studies/lr_robustness.yaml")
