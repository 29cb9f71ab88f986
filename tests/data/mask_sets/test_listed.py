"""CamVid and VOC in small copies of their layouts; the real CamVid where L2T_DATA has it."""

import numpy as np
import pytest
from test_mask_folders import make as make_mask_folder
from test_mask_folders import mask_of, save_image, save_mask

from l2t_ray.data import catalog
from l2t_ray.data.mask_sets.listed import CAMVID_CLASSES, VOC_CLASSES, open_camvid, open_voc
from l2t_ray.interfaces import UserError


def make_camvid(root, prefix=""):
    for part in ("train", "val", "test"):
        lines = []
        for number in range(2):
            name = f"{part}{number}.png"
            save_image(root / "CamVid" / part / name)
            mask = mask_of(number)
            mask[1] = 11
            save_mask(root / "CamVid" / f"{part}annot" / name, mask)
            lines.append(f"{prefix}{part}/{name} {prefix}{part}annot/{name}\n")
        (root / "CamVid" / f"{part}.txt").write_text("".join(lines))


@pytest.mark.parametrize("prefix", ["", "/SegNet/CamVid/"])
def test_camvid_is_read_as_its_lists_say(tmp_path, prefix):
    make_camvid(tmp_path, prefix)
    dataset = open_camvid(tmp_path)
    assert dataset.train.class_names == CAMVID_CLASSES and dataset.num_classes == 11
    assert dataset.validation.tolist() == [2, 3] and len(dataset.test) == 2
    expected = mask_of(1)
    expected[1] = 255
    np.testing.assert_array_equal(dataset.train.pairs[1][1], expected)
    assert dataset.notes == ("no training mask has the class 'road' (nor 7 others)",)


def make_voc(root, has_more=True):
    folder = root / "VOCdevkit/VOC2012"
    parts = {"train": ["a", "b"], "val": ["c"], "trainaug": ["a", "b", "d"]}
    for names in parts.values():
        for name in names:
            save_image(folder / f"JPEGImages/{name}.jpg")
            save_mask(folder / f"SegmentationClassAug/{name}.png", mask_of(1))
            if name != "d":
                save_mask(folder / f"SegmentationClass/{name}.png", mask_of(0), [(i, i, 9) for i in range(256)])
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for part, names in parts.items():
        if part != "trainaug" or has_more:
            (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return lists


@pytest.mark.parametrize("has_more", [True, False])
def test_voc_is_trained_on_the_augmented_part_where_it_is_there(tmp_path, has_more):
    make_voc(tmp_path, has_more)
    dataset = open_voc(tmp_path)
    assert len(dataset.train) == (3 if has_more else 2) and len(dataset.test) == 1 and dataset.validation is None
    assert dataset.train.class_names == VOC_CLASSES and dataset.num_classes == 21
    np.testing.assert_array_equal(dataset.train.pairs[0][1], mask_of(1 if has_more else 0))
    np.testing.assert_array_equal(dataset.test.pairs[0][1], mask_of(0))
    told = any("the list trainaug.txt of trainaug is absent" in note for note in dataset.notes)
    assert told is not has_more


def test_what_is_wrong_with_lists_is_said(tmp_path):
    with pytest.raises(UserError, match=r"has no CamVid/train\.txt; set data\.root"):
        open_camvid(tmp_path)
    with pytest.raises(UserError, match=r"data\.name=voc2012, but .* has no VOCdevkit/VOC2012/ImageSets/Segmentation"):
        open_voc(tmp_path)
    make_camvid(tmp_path)
    lists = make_voc(tmp_path)
    (lists / "trainaug.txt").write_text("a\nc\n")
    with pytest.raises(UserError, match=r"c\.jpg is in the train part and in the test part"):
        open_voc(tmp_path)
    (tmp_path / "CamVid/val.txt").write_text("val/val0.png\n")
    with pytest.raises(UserError, match=r"val\.txt has the line 'val/val0\.png'; expected an image and its mask"):
        open_camvid(tmp_path)
    (tmp_path / "CamVid/val.txt").write_text("val/no.png valannot/no.png\n")
    with pytest.raises(UserError, match=r"val\.txt lists .*val/no\.png, which is not there"):
        open_camvid(tmp_path)
    (tmp_path / "CamVid/val.txt").write_text("val/val0.png valannot/val0.png\n" * 2)
    with pytest.raises(UserError, match=r"val0\.png is in the validation part twice"):
        open_camvid(tmp_path)
    (tmp_path / "CamVid/val.txt").write_text(f"val/{'a' * 300} valannot/val0.png\n")
    with pytest.raises(UserError, match=r"val\.txt lists .*/val/a+, which is not there"):
        open_camvid(tmp_path)
    (tmp_path / "CamVid/val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt lists no image"):
        open_camvid(tmp_path)


@pytest.mark.parametrize(
    "name, build, changed",
    [
        ("camvid", make_camvid, "CamVid/trainannot/train0.png"),
        ("voc2012", make_voc, "VOCdevkit/VOC2012/SegmentationClassAug/d.png"),
        ("mask_folder", make_mask_folder, "validation/masks/0.png"),
    ],
)
def test_a_set_is_opened_anew_when_one_of_its_files_is_another(tmp_path, name, build, changed):
    build(tmp_path)
    first = catalog.load(name, root=tmp_path)
    assert catalog.load(name, root=tmp_path) is first
    save_mask(tmp_path / changed, mask_of(7))
    second = catalog.load(name, root=tmp_path)
    assert second is not first and second.train.digest() != first.train.digest()


@pytest.mark.data
def test_the_real_camvid(real_root):
    if not (real_root / "CamVid").is_dir():
        pytest.skip("no CamVid there")
    dataset = open_camvid(real_root)
    assert len(dataset.validation) and dataset.train.frame == dataset.test.frame == (360, 480)
    present = np.unique([np.unique(mask)[-1] for _, mask in dataset.test.pairs])
    assert set(present.tolist()) <= {*range(11), 255} and 255 in present
