"""Published sets whose parts are listed in text files: CamVid and PASCAL VOC 2012."""

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

from l2t_ray.data.converted import stamps, stamps_below
from l2t_ray.data.listed_files import check_disjoint, existing, folder_with, lines_of
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
    files = _camvid_files(root)
    check_disjoint("camvid", {part: [file.image for file in listed] for part, listed in files.items()})
    return open_files("camvid", files, CAMVID_CLASSES, Numbered(len(CAMVID_CLASSES), ignore=CAMVID_VOID))


def camvid_state(root: Path) -> Hashable:
    """Of all files that decide what `open_camvid` gives: another value, another set."""
    return stamps([path for listed in _camvid_files(root).values() for file in listed for path in file])


def _camvid_files(root: Path) -> dict[str, list[MaskFile]]:
    folder = folder_with(root, "camvid", ["CamVid", "."], "train.txt")
    return {
        part: [_camvid_pair(folder, folder / f"{listed}.txt", line) for line in lines_of(folder / f"{listed}.txt")]
        for part, listed in (("train", "train"), ("validation", "val"), ("test", "test"))
    }


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
    folder = _voc_folder(root)
    lists, augmented = folder / "ImageSets/Segmentation", folder / "SegmentationClassAug"
    has_more = (lists / "trainaug.txt").exists() and augmented.is_dir()
    test = _voc_files(folder, lists / "val.txt", folder / "SegmentationClass")
    train = _voc_files(folder, lists / "trainaug.txt" if has_more else lists / "train.txt",
                       augmented if has_more else folder / "SegmentationClass")  # fmt: skip
    files = {"train": train, "test": test}
    check_disjoint("voc2012", {part: [file.image for file in listed] for part, listed in files.items()})
    dataset = open_files("voc2012", files, VOC_CLASSES, Numbered(len(VOC_CLASSES)))
    if has_more or not (augmented.is_dir() or (lists / "trainaug.txt").exists()):
        return dataset
    lacking = "the list trainaug.txt" if augmented.is_dir() else "the folder SegmentationClassAug"
    return replace(dataset, notes=(*dataset.notes, f"trained on train alone, for {lacking} of trainaug is absent"))


def voc_state(root: Path) -> Hashable:
    """Of all files that decide what `open_voc` gives: another value, another set."""
    parts = ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass", "SegmentationClassAug")
    folder = _voc_folder(root)
    return stamps_below(folder / part for part in parts)


def _voc_folder(root: Path) -> Path:
    return folder_with(root, "voc2012", ["VOCdevkit/VOC2012", "VOC2012", "."], "ImageSets/Segmentation")


def _voc_files(folder: Path, path: Path, masks: Path) -> list[MaskFile]:
    # Lists of the augmented set come with names, or with paths of image and mask.
    stems = [Path(line.split()[0]).stem for line in lines_of(path)]
    return [
        MaskFile(existing(folder / f"JPEGImages/{stem}.jpg", path), existing(masks / f"{stem}.png", path))
        for stem in stems
    ]
