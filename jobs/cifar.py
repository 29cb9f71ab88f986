"""The main job by its first name, as CIFAR's: jobs/train.py is the same.

python jobs/cifar.py --config configs/cifar10.yaml data.root=DIR
"""

from functools import partial

from l2t_ray.train_command import main as train

main = partial(train, __doc__)

if __name__ == "__main__":
    main()
