"""Sets in the layout of COCO: what is read, what is left out and told, and what is refused."""

import json

import numpy as np
import pytest

from l2t_ray.data.box_sets import box_files
from l2t_ray.data.box_sets.coco import open_bccd, open_coco
from l2t_ray.interfaces import UserError
from tests.data.box_sets.conftest import save_image


def test_boxes_crowds_and_empty_images_are_as_the_file_says(coco):
    dataset = open_coco(coco())
    assert dataset.train.class_names == ("cat", "dog")  # by their ids, 7 and 90
    assert len(dataset.train) == 6 and dataset.validation.tolist() == [3, 4, 5] and len(dataset.test) == 3
    first, empty, last = dataset.train.boxes[:3]
    assert first.corners.tolist() == [[1, 2, 11, 22]] and first.labels.tolist() == [0]
    assert len(empty.labels) == 0 and empty.corners.shape == (0, 4)
    assert last.labels.tolist() == [1, 1] and last.crowd.tolist() == [True, False]
    assert dataset.train.most == 2 and dataset.train.sizes.tolist() == [[30, 40]] * 6
    assert [int(image[0, 0, 0]) for image in dataset.train.images] == [100] * 3 + [120] * 3
    assert dataset.notes == ("3 images have no box: nothing is to be found on them",)
    np.testing.assert_allclose(dataset.mean, [100 / 255] * 3)


def test_two_parts_are_for_training_and_test(coco):
    dataset = open_coco(coco(parts=("train", "val")))
    assert dataset.validation is None and (len(dataset.train), len(dataset.test)) == (3, 3)


def test_boxes_beyond_their_image_are_cut_and_those_without_area_left_out_and_counted(coco):
    def spoil(tree):
        for bbox in ([-5, -6, 10, 10], [30, 20, 100, 100], [3, 3, 0, 5], [50, 3, 5, 5], [9, 9, -4, 5]):
            tree["annotations"].append({"id": 9, "image_id": 11, "category_id": 7, "bbox": bbox})

    dataset = open_coco(coco(train=spoil))
    assert dataset.train.boxes[1].corners.tolist() == [[0, 0, 5, 4], [30, 20, 40, 30]]
    assert any(note.startswith("2 boxes cut at the edge of their image") for note in dataset.notes)
    assert any(note.startswith("3 boxes left out, having no area within their image") for note in dataset.notes)


def test_images_that_are_not_listed_are_left_out_and_told(coco):
    root = coco()
    save_image(root / "train/other.png")
    dataset = open_coco(root)
    assert len(dataset.train) == 6
    assert any("1 images of" in note and "(other.png) left out" in note for note in dataset.notes)


def test_classes_without_a_training_box_are_told(coco):
    dataset = open_coco(coco(train=lambda tree: tree["categories"].append({"id": 91, "name": "emu"})))
    assert "no training image has a box of the class 'emu'" in dataset.notes and dataset.num_classes == 3


def test_large_sets_are_read_when_asked_for_and_are_the_same(coco, monkeypatch):
    root = coco()
    whole = open_coco(root)
    monkeypatch.setattr(box_files, "IN_MEMORY", 0)
    read = open_coco(root)
    assert isinstance(read.train.images, box_files.FileImages) and (read.mean, read.std) == (whole.mean, whole.std)
    for a, b in zip(read.train.images, whole.train.images, strict=True):
        np.testing.assert_array_equal(a, b)
    before = read.train.digest()
    save_image(root / "train/train0.png", shade=3)
    assert open_coco(root).train.digest() != before


def test_another_box_is_another_set(coco):
    before = open_coco(coco()).train.digest()

    def move(tree):
        tree["annotations"][0]["bbox"][0] += 0.25

    assert open_coco(coco(train=move)).train.digest() != before


def changed(where, index, **values):
    def change(tree):
        tree[where][index] |= values

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tree: tree.pop("images"), r"instances_train\.json has no list of images"),
        (lambda tree: tree.update(annotations={"a": 1}), r"has no list of annotations"),
        (lambda tree: tree.update(categories=[3]), r"has no list of categories"),
        (lambda tree: tree.update(categories=[]), r"the annotation 1 is of the category 7, which is not listed"),
        (lambda tree: tree["images"].clear(), r"lists no image"),
        (
            lambda tree: tree["annotations"].clear(),
            r"data\.name=coco: no image of the train part has a box that counts",
        ),
        (changed("images", 1, id=10), r"has two images with the id 10"),
        (changed("images", 1, id="x"), r"an entry of images has the id 'x'; give a whole number"),
        (changed("images", 1, file_name="gone.png"), r"lists gone\.png, which is not in .*train; add the file"),
        (changed("images", 1, file_name="train0.png"), r"lists train0\.png twice"),
        (changed("images", 1, file_name=3), r"the image 11 has no file_name"),
        (changed("images", 1, width=41), r"says that .*train1\.png has 41x30 pixels, and it has 40x30"),
        (changed("images", 1, width="40"), r"the image 11 has the height 30 and the width '40'"),
        (changed("annotations", 1, image_id=99), r"the annotation 2 is on the image 99, which is not listed"),
        (changed("annotations", 1, category_id=8), r"the annotation 2 is of the category 8, which is not listed"),
        (changed("annotations", 1, bbox=[1, 2, 3]), r"the annotation 2 has the bbox \[1, 2, 3\]; give x, y"),
        (changed("annotations", 1, bbox=[1, 2, 3, float("nan")]), r"has the bbox \[1, 2, 3, nan\]"),
        (changed("annotations", 1, bbox=[1, 2, 3, 10**400]), r"has the bbox \[1, 2, 3, 10"),
        (changed("annotations", 1, bbox=None), r"has the bbox None"),
        (changed("categories", 1, id=90), r"has the category 90 \('cat'\) twice"),
        (changed("categories", 1, name="dog"), r"has the category 7 \('dog'\) twice"),
        (changed("categories", 1, name=None), r"the category 7 has no name"),
        (changed("categories", 1, name="a\nb"), r"has the class name 'a\\nb'; give .* of printable characters"),
        (changed("categories", 1, name="\ud800"), r"has the class name '\\ud800'"),
        (changed("categories", 1, name=3), r"has the class name 3"),
        (changed("annotations", 1, iscrowd="0"), r"the annotation 2 has the iscrowd '0'; give 0 or 1"),
        (changed("annotations", 1, iscrowd=2), r"has the iscrowd 2"),
        (changed("images", 1, file_name="a" * 300), r"lists a+, which is not in .*train; add the file"),
        (changed("images", 1, file_name="two\nlines"), r"lists two\\nlines, which is not in"),
        (
            changed("images", 1, file_name="../train/train0.png"),
            r"train0\.png is in the train part twice; list it once",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_sentence(coco, change, message):
    with pytest.raises(UserError, match=message):
        open_coco(coco(train=change))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100_000, b"7", b"", b'{"images": [1'])
def test_a_damaged_file_is_named(coco, content):
    root = coco()
    (root / "annotations/instances_val.json").write_bytes(content)
    with pytest.raises(UserError, match=r"instances_val\.json (cannot be read as JSON|holds a int)") as caught:
        open_coco(root)
    assert "\n" not in str(caught.value)


def test_other_parts_have_no_other_classes(coco):
    with pytest.raises(UserError, match=r"instances_test\.json has the category 7 as 'cow', .* has it as 'cat'"):
        open_coco(coco(test=changed("categories", 1, name="cow")))
    with pytest.raises(UserError, match=r"instances_val\.json has the category 3 as 'emu', .* does not have it"):
        open_coco(coco(val=lambda tree: tree["categories"].append({"id": 3, "name": "emu"})))


def test_parts_share_no_image(coco):
    root = coco()
    tree = json.loads((root / "annotations/instances_test.json").read_text())
    tree["images"][0]["file_name"] = "../train/train0.png"
    (root / "annotations/instances_test.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"train0\.png is in the train part and in the test part"):
        open_coco(root)


def test_absent_and_doubtful_files_are_named(coco, tmp_path):
    with pytest.raises(UserError, match=r"has no coco/annotations; set data\.root"):
        open_coco(tmp_path)
    root = coco(parts=("train",))
    with pytest.raises(UserError, match=r"has no instances_val\*\.json"):
        open_coco(root)
    with pytest.raises(UserError, match=r"has no person_keypoints_train\*\.json"):
        open_coco(root, annotations="person_keypoints")
    coco()
    (root / "annotations/instances_train2.json").write_text("{}")
    with pytest.raises(UserError, match=r"has instances_train\.json and instances_train2\.json for one part"):
        open_coco(root)


def test_an_image_that_is_none_is_named(coco):
    root = coco()
    (root / "test/test2.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"test2\.png is no readable image"):
        open_coco(root)


@pytest.mark.data
def test_real_blood_cells_and_photographs(real_root):
    if not (real_root / "bccd").is_dir():
        pytest.skip("no BCCD there")
    cells = open_bccd(real_root)
    assert (len(cells.train), len(cells.validation), len(cells.test)) == (292, 87, 72)
    assert cells.train.class_names == ("RBC", "WBC", "Platelets")
    assert sum(len(boxes.labels) for boxes in (*cells.train.boxes, *cells.test.boxes)) == 2804 + 1137 + 945
    photographs = open_coco(real_root)
    assert photographs.num_classes == 80 and sum(boxes.crowd.sum() for boxes in photographs.train.boxes) == 4
