"""Whether a data set that a user's own function made can be trained on."""

import numpy as np

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.boxed_sets import BoxedDataset, BoxedSet, clipped
from l2t_ray.data.dataset import Dataset
from l2t_ray.data.example_sets import ExampleDataset, ExampleSet, check_examples
from l2t_ray.data.masked_sets import MaskedDataset, MaskedSet
from l2t_ray.interfaces import UserError

AnyDataset = Dataset | MaskedDataset | BoxedDataset | ExampleDataset


def checked(name: str, made: object) -> AnyDataset:
    """What `data.name`'s function gave, if it is one of the records and its parts fit one another.

    Raises:
        UserError: if not.
    """
    if not isinstance(made, AnyDataset):
        raise UserError(
            f"{name} must return a Dataset, a MaskedDataset, a BoxedDataset or an ExampleDataset (l2t_ray.data), got a "
            f"{type(made).__name__}."
        )
    parts = {"train": made.train, "test": made.test}
    if type(made.train) is not type(made.test):
        raise UserError(f"train and test of {name} are of two kinds; give both the same.")
    ignored = [part.ignore for part in parts.values() if isinstance(part, MaskedSet)]
    if len(set(ignored)) > 1:
        raise UserError(f"train of {name} ignores the number {ignored[0]}, test {ignored[1]}; give both the same.")
    channels = set()
    for part, images in parts.items():
        where = f"the {part} part of {name}"
        if not len(images):
            raise UserError(f"{where} is empty; give at least one example.")
        match images:
            case MaskedSet():
                channels.add(_masked_channels(where, images))
            case ExampleSet():
                check_examples(where, images)
            case BoxedSet():
                channels.add(_boxed_channels(where, images))
            case _:
                channels.add(_labelled_channels(where, images))
    if made.train.class_names != made.test.class_names:
        raise UserError(f"train and test of {name} name other classes; give both the same names, in one order.")
    if len(channels) > 1:
        raise UserError(
            f"images of {name} have {' and '.join(map(str, sorted(channels)))} channels; give all the same."
        )
    if channels:
        _check_statistics(name, made, channels.pop())
    if made.validation is not None and not _are_rows(made.validation, len(made.train)):
        raise UserError(
            f"validation of {name} must be different row numbers of train, at least one and not all of its "
            f"{len(made.train)}."
        )
    return made


def _labelled_channels(where: str, images: ImageSet) -> int:
    pixels, labels = np.asanyarray(images.images), np.asanyarray(images.labels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise UserError(
            f"images of {where} must be uint8 [n, channels, height, width], got {pixels.dtype} of shape {pixels.shape}."
        )
    if labels.dtype != np.int64 or labels.shape != (len(pixels),):
        raise UserError(
            f"labels of {where} must be int64 [{len(pixels)}], one an image, got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    if len(images.positions) != len(pixels):
        raise UserError(f"positions of {where} must be one an image, got {len(images.positions)} for {len(pixels)}.")
    if labels.min() < 0 or labels.max() >= len(images.class_names):
        strange = int(labels.min() if labels.min() < 0 else labels.max())
        raise UserError(f"{where} has the label {strange}, where {len(images.class_names)} classes have names.")
    return pixels.shape[1]


def _masked_channels(where: str, images: MaskedSet) -> int:
    if not len(images.pairs) == len(images.sizes) == len(images.names):
        raise UserError(
            f"{where} has {len(images.pairs)} images, {len(images.sizes)} sizes and {len(images.names)} names; give "
            "one of each for each image."
        )
    channels = 0
    for name, size, (image, mask) in zip(images.names, images.sizes.tolist(), images.pairs, strict=True):
        if image.dtype != np.uint8 or image.ndim != 3:
            raise UserError(
                f"{name} of {where} must be uint8 [channels, height, width], got {image.dtype} of shape {image.shape}."
            )
        if mask.dtype.kind not in "iu" or list(mask.shape) != list(image.shape[1:]) or list(mask.shape) != size:
            raise UserError(
                f"the mask of {name} of {where} must be whole numbers {list(image.shape[1:])}, like its image and "
                f"sizes, got {mask.dtype} of shape {mask.shape}, and sizes say {size}."
            )
        present = np.unique(mask)
        strange = present[((present < 0) | (present >= len(images.class_names))) & (present != images.ignore)]
        if len(strange):
            raise UserError(
                f"the mask of {name} of {where} has the class number {int(strange[0])}, where "
                f"{len(images.class_names)} classes have names and {images.ignore} is ignored."
            )
        if channels and channels != len(image):
            raise UserError(f"{name} of {where} has {len(image)} channels, the image before it {channels}.")
        channels = len(image)
    return channels


def _boxed_channels(where: str, images: BoxedSet) -> int:
    counts = {"images": len(images.images), "boxes": len(images.boxes), "names": len(images.names)}
    if strange := next((what for what, count in counts.items() if count != len(images.sizes)), None):
        raise UserError(
            f"{where} has {counts[strange]} {strange} and {len(images.sizes)} sizes; give one of each for each image."
        )
    channels = 0
    for name, size, image, boxes in zip(images.names, images.sizes.tolist(), images.images, images.boxes, strict=True):
        if image.dtype != np.uint8 or image.ndim != 3 or list(image.shape[1:]) != size:
            raise UserError(
                f"{name} of {where} must be uint8 [channels, height, width], and sizes say {size}, got {image.dtype} "
                f"of shape {image.shape}."
            )
        count = len(boxes.labels)
        shapes = (boxes.corners.shape, boxes.labels.shape, boxes.crowd.shape)
        kinds = (boxes.corners.dtype.kind, boxes.labels.dtype.kind, boxes.crowd.dtype.kind)
        if shapes != ((count, 4), (count,), (count,)) or kinds != ("f", "i", "b"):
            raise UserError(
                f"boxes of {name} of {where} must be float [k, 4], whole numbers [k] and bool [k] (Boxes.of makes them "
                f"so), got the shapes {shapes}."
            )
        if count and not 0 <= boxes.labels.min() <= boxes.labels.max() < len(images.class_names):
            raise UserError(
                f"boxes of {name} of {where} have the labels {boxes.labels.min()} to {boxes.labels.max()}, where "
                f"{len(images.class_names)} classes have names."
            )
        within = clipped(boxes, *size)
        if within.num_cut or within.num_empty or not np.isfinite(boxes.corners).all():
            raise UserError(
                f"boxes of {name} of {where} must be x1 < x2, y1 < y2 within its {size[1]}x{size[0]} pixels; cut them "
                "with l2t_ray.data.boxed_sets.clipped."
            )
        if channels and channels != len(image):
            raise UserError(f"{name} of {where} has {len(image)} channels, the image before it {channels}.")
        channels = len(image)
    return channels


def _check_statistics(name: str, made: AnyDataset, channels: int) -> None:
    for what, values, is_good in (
        ("mean", made.mean, np.isfinite(made.mean).all()),
        ("std", made.std, np.isfinite(made.std).all() and min(made.std, default=0) > 0),
    ):
        if len(values) != channels or not is_good:
            raise UserError(
                f"{what} of {name} must be {channels} {'positive ' if what == 'std' else ''}numbers, one a channel, "
                f"got {tuple(values)}."
            )


def _are_rows(rows: np.ndarray, count: int) -> bool:
    is_whole = rows.ndim == 1 and rows.dtype.kind in "iu" and 0 < len(rows) < count
    return is_whole and len(np.unique(rows)) == len(rows) and int(rows.min()) >= 0 and int(rows.max()) < count
