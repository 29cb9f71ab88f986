"""A study of your own: any settings of an experiment, varied over grids, distributions and seeds.

python jobs/study.py --config configs/studies/example.yaml
python jobs/study.py --resume runs/example
"""

from l2t_ray.exit_codes import exit_codes

if __name__ == "__main__":
    with exit_codes():
        from l2t_ray.studies.command import main  # takes seconds, in which one may press Ctrl-C

        main(__doc__)
