"""The main job on images with masks: a PSPNet under a learned loss, and beside it under cross-entropy.

python jobs/segmentation.py                                              # scenes of digits, which need no download
python jobs/segmentation.py --config configs/camvid.yaml data.root=DIR
"""

from functools import partial

from l2t_ray.train_command import main as train

main = partial(train, __doc__, config="configs/digit_scenes.yaml")

if __name__ == "__main__":
    main()
