"""Published sets whose parts are listed in text files: CamVid and PASCAL VOC 2012."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from l2t_ray.data.listed_files import existing, folder_with, lines_of
from l2t_ray.data.mask_sets.coding import Numbered
from l2t_ray.data.mask_sets.mask_files import MaskFile, open_files
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.pictures import shown
from l2t_ray.interfaces import UserError

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
)
CAMVID_VOID = 11
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def open_camvid(root: Path) -> MaskedDataset:
    """CamVid with 11 classes in SegNet's layout: `CamVid/{train,val,test}.txt` list images and masks, a pair a line.

    Raises:
        UserError: if files are absent, or not what the lists say.
    """
    folder = folder_with(root, "camvid", ["CamVid", "."], "train.txt")
    files = {
        part: [_camvid_pair(folder, folder / f"{listed}.txt", line) for line in lines_of(folder / f"{listed}.txt")]
        for part, listed in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    _check_disjoint("camvid", files)
    return open_files("camvid", files, CAMVID_CLASSES, Numbered(len(CAMVID_CLASSES), ignore=CAMVID_VOID))


def _camvid_pair(folder: Path, path: Path, line: str) -> MaskFile:
    cells = line.split()
    if len(cells) != 2:
        raise UserError(f"{shown(path)} has the line {line!r}; expected an image and its mask, such as train/a.png.")
    # SegNet's own lists begin with the folder on its authors' machine.
    return MaskFile(*(existing(folder.joinpath(*Path(cell).parts[-2:]), path) for cell in cells))


def open_voc(root: Path) -> MaskedDataset:
    """PASCAL VOC 2012: trained on `trainaug` where its list and masks are there, tested on `val`.

    Raises:
        UserError: if files are absent, or not what the lists say.
    """
    folder = folder_with(root, "voc2012", ["VOCdevkit/VOC2012", "VOC2012", "."], "ImageSets/Segmentation")
    lists, augmented = folder / "ImageSets/Segmentation", folder / "SegmentationClassAug"
    has_more = (lists / "trainaug.txt").exists() and augmented.is_dir()
    test = _voc_files(folder, lists / "val.txt", folder / "SegmentationClass")
    train = _voc_files(folder, lists / "trainaug.txt" if has_more else lists / "train.txt",
                       augmented if has_more else folder / "SegmentationClass")  # fmt: skip
    files = {"train": train, "test": test}
    _check_disjoint("voc2012", files)
    dataset = open_files("voc2012", files, VOC_CLASSES, Numbered(len(VOC_CLASSES)))
    if has_more or not (augmented.is_dir() or (lists / "trainaug.txt").exists()):
        return dataset
    lacking = "the list trainaug.txt" if augmented.is_dir() else "the folder SegmentationClassAug"
    return replace(dataset, notes=(*dataset.notes, f"trained on train alone, for {lacking} of trainaug is absent"))


def _voc_files(folder: Path, path: Path, masks: Path) -> list[MaskFile]:
    # Lists of the augmented set come with names, or with paths of image and mask.
    stems = [Path(line.split()[0]).stem for line in lines_of(path)]
    return [
        MaskFile(existing(folder / f"JPEGImages/{stem}.jpg", path), existing(masks / f"{stem}.png", path))
        for stem in stems
    ]


def _check_disjoint(name: str, files: Mapping[str, Sequence[MaskFile]]) -> None:
    parts = {part: {file.image for file in listed} for part, listed in files.items()}
    for part, listed in files.items():
        if len(listed) > len(parts[part]):
            images = [file.image for file in listed]
            twice = next(image for image in images if images.count(image) > 1)
            raise UserError(f"data.name={name}: {shown(twice)} is in the list of the {part} part twice; leave one.")
    for part in [*parts][:-1]:
        if both := sorted(parts[part] & parts["test"]):
            raise UserError(
                f"data.name={name}: {shown(both[0])} is in the list of the {part} part and in that of the test part; "
                "take it out of one."
            )
