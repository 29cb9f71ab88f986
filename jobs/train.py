"""The main job: trains a student with a learned loss, and beside it with cross-entropy.

python jobs/train.py --config configs/digits.yaml training.num_rounds=50
python jobs/train.py --resume runs/digits-20260101-120000
"""

from functools import partial

from l2t_ray.train_command import main as train

main = partial(train, __doc__)

if __name__ == "__main__":
    main()
