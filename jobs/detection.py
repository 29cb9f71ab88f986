"""The main job on images with boxes: YOLO-v3 under a learned combination of its loss terms, and beside it under the
fixed loss, in the form that people train with and in the paper's (docs/detection.md).

python jobs/detection.py                                              # canvases of digits, which need no download
python jobs/detection.py --config configs/bccd.yaml data.root=DIR     # blood cells
"""

from functools import partial

from l2t_ray.train_command import main as train

main = partial(train, __doc__, config="configs/digit_boxes.yaml")

if __name__ == "__main__":
    main()
