"""A user's own images, from folders and tables."""

import io

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from l2t_ray.data import pictures
from l2t_ray.data.catalog import load
from l2t_ray.interfaces import UserError


def picture(shade, size=(8, 8), mode="RGB"):
    return Image.new(mode, size, shade if mode == "L" else (shade, 0, 255))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_folder(root, parts=("train", "test"), **kinds):
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            for i in range(3):
                save(picture(60 * label + i, **kinds), root / part / name / f"{i}.png")
    return root


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_folder(tmp_path, monkeypatch):
    make_folder(tmp_path)
    dataset = load("folder", root=tmp_path)
    assert dataset.train.images.shape == (6, 3, 8, 8) and dataset.train.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.validation is None
    assert dataset.train.images[4].max(axis=(1, 2)).tolist() == [61, 0, 255]
    assert dataset.mean == pytest.approx((31 / 255, 0, 1), abs=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "pixels_of", lambda *a, **k: pytest.fail("decoded again"))
        load("folder", root=tmp_path)
    save(picture(200), tmp_path / "train" / "cat" / "new.png")
    assert len(load("folder", root=tmp_path).train) == 7


def test_clean_images_that_are_set_apart(tmp_path):
    dataset = load("folder", root=make_folder(tmp_path, ("train", "validation", "test"), mode="L"))
    assert dataset.train.images.shape == (12, 1, 8, 8) and dataset.validation.tolist() == [*range(6, 12)]


def test_sizes_are_made_equal(tmp_path):
    make_folder(tmp_path)
    save(picture(90, size=(20, 10)), tmp_path / "train" / "dog" / "wide.png")
    with pytest.raises(UserError, match=r"wide\.png has 20x10 pixels.*set data\.image_size"):
        load("folder", root=tmp_path)
    assert load("folder", root=tmp_path, image_size=5).train.images.shape == (7, 3, 5, 5)


@pytest.mark.parametrize("is_struct", [True, False])
def test_parquet(tmp_path, is_struct):
    for part in ("train", "test"):
        contents = [encoded(picture(i)) for i in range(4)]
        image = [{"bytes": content, "path": None} for content in contents] if is_struct else contents
        parquet.write_table(pa.table({"image": image, "label": [10, 9, 10, 9]}), tmp_path / f"{part}.parquet")
    dataset = load("folder", root=tmp_path)
    assert dataset.train.class_names == ("9", "10") and dataset.train.labels.tolist() == [1, 0, 1, 0]
    assert dataset.train.images[3, 0, 0, 0] == 3


def test_arrow_with_class_names_of_hugging_face(tmp_path):
    names = b'{"info": {"features": {"label": {"names": ["frog", "cow"]}}}}'
    table = pa.table({"image": [encoded(picture(i)) for i in range(2)], "label": [0, 1]})
    table = table.replace_schema_metadata({b"huggingface": names})
    for part in ("train", "test"):
        with pa.OSFile(str(tmp_path / f"{part}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    dataset = load("folder", root=tmp_path)
    assert [dataset.train.class_names[label] for label in dataset.train.labels] == ["frog", "cow"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: (root / "test").rename(root / "tset"), r"neither test/<class>/\*\.png nor test\.parquet"),
        (lambda root: save(picture(1), root / "test" / "cow" / "1.png"), "has the class 'cow', which"),
        (lambda root: (root / "train" / "cat" / "0.png").write_bytes(b"no"), r"0\.png is no readable image"),
        (lambda root: (root / "train.parquet").write_bytes(b"no") and (root / "train").rename(root / "x"), "read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, message):
    spoil(make_folder(tmp_path))
    with pytest.raises(UserError, match=message):
        load("folder", root=tmp_path)
