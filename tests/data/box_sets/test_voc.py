"""Sets in the layout of VOC: pixels counted from 1, difficult objects, classes by name."""

import pytest

from l2t_ray.data.box_sets.voc import VOC_CLASSES, open_voc_boxes
from l2t_ray.interfaces import UserError


def test_boxes_begin_at_the_edge_of_their_first_pixel_and_difficult_ones_are_crowds(voc, tmp_path):
    voc()
    dataset = open_voc_boxes(tmp_path)
    (boxes, *others) = dataset.train.boxes
    assert boxes.corners.tolist() == [[0, 0, 10, 20], [2, 3, 40, 30]] and boxes.crowd.tolist() == [False, True]
    assert [dataset.train.class_names[label] for label in boxes.labels] == ["cat", "dog"]
    assert dataset.train.class_names == VOC_CLASSES and len(others) == 3
    assert dataset.validation.tolist() == [2, 3] and len(dataset.test) == 2


def test_without_a_validation_list_there_are_two_parts(voc, tmp_path):
    voc(parts=("train", "val"))
    dataset = open_voc_boxes(tmp_path)
    assert dataset.validation is None and len(dataset.test) == 2


def test_own_classes_are_those_that_there_are_or_as_listed(voc, tmp_path):
    folder = voc(objects=(("bolt", 0, 1, 1, 9, 9), ("axle", 0, 1, 1, 9, 9)))
    assert open_voc_boxes(tmp_path).train.class_names == ("axle", "bolt")
    (folder / "classes.txt").write_text("nut\nbolt\naxle\n")
    dataset = open_voc_boxes(tmp_path)
    assert dataset.train.class_names == ("nut", "bolt", "axle") and dataset.train.boxes[0].labels.tolist() == [1, 2]
    (folder / "classes.txt").write_text("nut\nnut\n")
    with pytest.raises(UserError, match=r"names the class 'nut' twice"):
        open_voc_boxes(tmp_path)


def test_sizes_that_nobody_filled_in_are_not_compared(voc, tmp_path):
    voc(size=(0, 0))
    assert open_voc_boxes(tmp_path).train.sizes.tolist() == [[30, 40]] * 4


@pytest.mark.parametrize(
    "objects, message",
    [
        ([("cat", 0, 1, 1, 9, 9), ("catt", 0, 1, 1, 9, 9)], r"train_0\.xml has the class 'catt', which is none of"),
        ([("", 0, 1, 1, 9, 9)], r"train_0\.xml has an object without a name"),
        ([("cat", 0, 1, "x", 9, 9)], r"train_0\.xml has bndbox/ymin 'x'; give a number of pixels"),
        ([("cat", 0, 1, "nan", 9, 9)], r"has bndbox/ymin 'nan'"),
        ([("cat", 0, 1, "", 9, 9)], r"has bndbox/ymin ''"),
        ([("cat", 0, 9, 9, 3, 3)], r"no image of the train part has a box that counts"),
        ([("cat", 1, 1, 1, 9, 9)], r"no image of the train part has a box that counts"),
    ],
)
def test_what_is_wrong_in_an_annotation_is_said_in_one_sentence(voc, tmp_path, objects, message):
    voc(objects=objects)
    with pytest.raises(UserError, match=message):
        open_voc_boxes(tmp_path)


@pytest.mark.parametrize("content", [b"<annotation>", b"", b"\x00\xff", b"<a></b>"])
def test_a_damaged_annotation_is_named(voc, tmp_path, content):
    (voc() / "Annotations/val_1.xml").write_bytes(content)
    with pytest.raises(UserError, match=r"val_1\.xml cannot be read as XML") as caught:
        open_voc_boxes(tmp_path)
    assert "\n" not in str(caught.value)


def test_absent_files_and_other_sizes_are_named(voc, tmp_path):
    folder = voc(size=(30, 40))
    with pytest.raises(UserError, match=r"train_0\.xml says that .*train_0\.jpg has 30x40 pixels, and it has 40x30"):
        open_voc_boxes(tmp_path)
    voc()
    (folder / "Annotations/test_1.xml").unlink()
    with pytest.raises(UserError, match=r"test\.txt lists .*test_1\.xml, which is not there"):
        open_voc_boxes(tmp_path)
    voc()
    (folder / "JPEGImages/test_1.jpg").unlink()
    with pytest.raises(UserError, match=r"test\.txt lists .*test_1\.jpg, which is not there"):
        open_voc_boxes(tmp_path)
    with pytest.raises(UserError, match=r"has no VOCdevkit/VOC2007/ImageSets/Main; set data\.root"):
        open_voc_boxes(tmp_path, year=2007)


def test_a_part_of_another_class_is_refused(voc, tmp_path):
    folder = voc(objects=(("bolt", 0, 1, 1, 9, 9),))
    path = folder / "Annotations/test_0.xml"
    path.write_text(path.read_text().replace("bolt", "screw"))
    with pytest.raises(UserError, match=r"test_0\.xml has the class 'screw', which is none of bolt"):
        open_voc_boxes(tmp_path)
