"""Figure 1 of the paper: the gradients that a loss gives to the student.

python jobs/gradients.py --size digits             # real scans, minutes on two cores; also: small, full
python jobs/gradients.py --resume runs/gradients-digits
"""

from pathlib import Path

from l2t_ray.exit_codes import exit_codes

if __name__ == "__main__":
    with exit_codes():
        from l2t_ray.studies.command import main  # takes seconds, in which one may press Ctrl-C

        main(__doc__, config=Path(__file__).parents[1] / "configs/studies/gradients.yaml")
