"""Table 3 of the paper: what LSTM teacher and data reweighting add; then the loss's start and the schedule.

python jobs/ablation.py --size digits             # real scans, minutes on two cores; also: small, full
python jobs/ablation.py --resume runs/ablation-digits
"""

from pathlib import Path

from l2t_ray.exit_codes import exit_codes

if __name__ == "__main__":
    with exit_codes():
        from l2t_ray.studies.command import main  # takes seconds, in which one may press Ctrl-C

        main(__doc__, config=Path(__file__).parents[1] / "configs/studies/ablation.yaml")
