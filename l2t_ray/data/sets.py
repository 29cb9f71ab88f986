"""The data sets by name. A new one is a function that opens it, and a line here.

A function is given what it has parameters for: the settings `name`, `root`, `verify`, `download` and `image_size` of
the section `data`, and the keys of `data.options`. It returns a `Dataset` (images with one label each), a
`MaskedDataset` (images with a class for each pixel), a `BoxedDataset` (images with boxes) or an `ExampleDataset`
(anything else, for a task of one's own). Somebody's own is named by its import path.
"""

from typing import Literal, NamedTuple


class DataSet(NamedTuple):
    """Where a set is opened, as `module:function`, and what its images are labelled with."""

    make: str
    targets: Literal["classes", "masks", "boxes"] = "classes"
    state: str | None = None
    """A function of the same parameters that gives what the opened set depends on: another value, another set."""


_OF_CATALOG, _PUBLISHED = "l2t_ray.data.catalog", "l2t_ray.data.published"
_MASKS, _BOXES = "l2t_ray.data.mask_sets", "l2t_ray.data.box_sets"

DATA_SETS = {
    "digits": DataSet(f"{_OF_CATALOG}:open_digits"),
    "mnist": DataSet(f"{_PUBLISHED}:open_published", state=f"{_PUBLISHED}:state"),
    "fashion_mnist": DataSet(f"{_PUBLISHED}:open_published", state=f"{_PUBLISHED}:state"),
    "cifar10": DataSet(f"{_PUBLISHED}:open_published", state=f"{_PUBLISHED}:state"),
    "cifar100": DataSet(f"{_PUBLISHED}:open_published", state=f"{_PUBLISHED}:state"),
    "cifar100_coarse": DataSet(f"{_PUBLISHED}:open_published", state=f"{_PUBLISHED}:state"),
    "folder": DataSet("l2t_ray.data.own:open_own", state="l2t_ray.data.own:state"),
    "digit_scenes": DataSet(f"{_MASKS}.digit_scenes:open_digit_scenes", "masks"),
    "camvid": DataSet(f"{_MASKS}.listed:open_camvid", "masks", f"{_MASKS}.listed:camvid_state"),
    "voc2012": DataSet(f"{_MASKS}.listed:open_voc", "masks", f"{_MASKS}.listed:voc_state"),
    "mask_folder": DataSet(f"{_MASKS}.mask_folders:open_mask_folder", "masks", f"{_MASKS}.mask_folders:state"),
    "digit_boxes": DataSet(f"{_BOXES}.digit_boxes:open_digit_boxes", "boxes"),
    "coco": DataSet(f"{_BOXES}.coco:open_coco", "boxes"),
    "bccd": DataSet(f"{_BOXES}.coco:open_bccd", "boxes"),
    "voc_boxes": DataSet(f"{_BOXES}.voc:open_voc_boxes", "boxes"),
}
