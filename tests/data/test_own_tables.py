"""Tables of encoded images: class numbers are the file's own, and what is no label is none."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from test_own import encoded, picture

from l2t_ray.data.catalog import load
from l2t_ray.interfaces import UserError


def table(labels, names=None, images=None, kind=None):
    images = images or [encoded(picture(row % 250)) for row in range(len(labels))]
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels, kind)
    made = pa.table({"image": images, "label": labels, "other": list(range(len(labels)))})
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    return made


def write(root, train, test=None):
    parquet.write_table(train, root / "train.parquet", row_group_size=3)
    parquet.write_table(test if test is not None else train, root / "test.parquet")
    return load("folder", root=root)


@pytest.mark.parametrize(
    "labels, names, classes, numbers",
    [
        ([0, 1, 0, 1], ["zebra", "ant"], ("zebra", "ant"), [0, 1, 0, 1]),
        ([10.0, 9.0, 2.0, 2.0], None, ("2", "9", "10"), [2, 1, 0, 0]),
        ([10, 9, 2, 2], None, ("2", "9", "10"), [2, 1, 0, 0]),
        (["10", "9", "2"], None, ("2", "9", "10"), [2, 1, 0]),
        (["dog", "cat", "dog"], None, ("cat", "dog"), [1, 0, 1]),
        (["dog", "cat", "dog"], ["dog", "cat"], ("dog", "cat"), [0, 1, 0]),
        ([-1, 1, 1], None, ("-1", "1"), [0, 1, 1]),
        ([-2, -1, 0], None, ("-2", "-1", "0"), [0, 1, 2]),
        ([True, False], None, ("False", "True"), [1, 0]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), None, ("a", "b"), [1, 0, 1]),
        (pa.array([3, 4], pa.uint8()), None, ("3", "4"), [0, 1]),
        (pa.array(["b", "a"], pa.large_string()), None, ("a", "b"), [1, 0]),
    ],
)
def test_classes(tmp_path, labels, names, classes, numbers):
    train = write(tmp_path, table(labels, names)).train
    assert train.class_names == classes and train.labels.tolist() == numbers


@pytest.mark.parametrize("absent, names", [(-1, ["cat", "dog"]), (None, ["cat", "dog"]), (None, None), (np.nan, None)])
def test_rows_without_a_label_are_left_out_and_counted(tmp_path, absent, names):
    kind = pa.float64() if absent is np.nan else None
    dataset = write(tmp_path, table([0, absent, 1, 0], names, kind=kind), table([0, 1], names))
    assert dataset.train.labels.tolist() == [0, 1, 0]
    assert dataset.train.positions.tolist() == [0, 2, 3]  # a label file has one label for each row that was given
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert dataset.notes == (f"{tmp_path}/train.parquet: 1 of 4 rows have no label and were left out",)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_columns_of_bytes(tmp_path, kind):
    images = pa.array([encoded(picture(row)) for row in range(2)], kind)
    made = pa.table({"image": images, "label": [0, 1]})
    for part in ("train", "test"):
        with pa.OSFile(str(tmp_path / f"{part}.arrow"), "wb") as sink, pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made)
    assert load("folder", root=tmp_path).train.images[:, 0, 0, 0].tolist() == [0, 1]


def of_images(images):
    return pa.table({"image": images, "label": [0, 1]})


GOOD = table([0, 1, 0])
REFUSED = {
    "test without labels": (table([0, 1], ["a", "b"]), table([-1, -1], ["a", "b"]), r"test\.parquet has no labels"),
    "test of -1 without names": (GOOD, table([-1, -1]), r"test\.parquet has no labels \(all 2"),
    "nulls alone": (table(pa.nulls(2)), GOOD, r"train\.parquet has no labels"),
    "-1 that may be a class": (table([0, -1, 1]), GOOD, r"row 1 has the label -1, which may be a class"),
    "number without a name": (table([0, 5], ["a", "b"]), GOOD, r"row 1 has the label 5, but the 2 class names"),
    "name without an image": (table([0, 1], ["a", "b", "c"]), None, r"names 3 classes, but no image has the class 'c'"),
    "names twice": (table([0, 1], ["a", "a"]), GOOD, r"ClassLabel are no list of different names"),
    "fraction": (table([0.5, 1.0]), GOOD, r"row 0 has the label 0\.5, which is no whole number"),
    "endless": (table([1.0, float("inf")]), GOOD, r"row 1 has the label inf"),
    "list of labels": (table([[0], [1]]), GOOD, r"label is of type list<.*>, where one number or name"),
    "one-hot": (
        table(pa.FixedSizeListArray.from_arrays(pa.array([0, 1, 1, 0]), 2)),
        GOOD,
        r"label is of type fixed_size",
    ),
    "empty name": (table(["", "a"]), GOOD, r"row 0 has an empty label"),
    "bytes for labels": (table([b"a", b"b"]), GOOD, r"label is of type binary"),
    "class of the test alone": (GOOD, table([0, 2]), r"test\.parquet has the class '2', which"),
    "single class": (table([1, 1]), GOOD.slice(1, 1), r"single class, '1'"),
    "no image column": (
        GOOD.drop(["image"]),
        GOOD,
        r"needs .* columns image and label once each; it has 3 rows and label",
    ),
    "no rows": (GOOD.slice(0, 0), GOOD, r"needs at least one row"),
    "lists of pixels": (of_images([[1, 2], [3, 4]]), GOOD, r"row 0 of the column image holds no encoded image \(list"),
    "paths": (of_images([{"bytes": None, "path": "x.png"}] * 2), GOOD, r"row 0 .* holds only the path 'x\.png'"),
    "texts": (of_images(["iVBORw0", "iVBORw0"]), GOOD, r"holds no encoded image \(string\)"),
    "missing image": (of_images([encoded(picture(1)), None]), GOOD, r"row 1 of the column image holds no encoded"),
    "damaged image": (of_images([encoded(picture(1)), b"x"]), GOOD, r"^row 1 of .*train\.parquet is no readable image"),
}


@pytest.mark.parametrize("train, test, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_clear_is_refused_by_name(tmp_path, train, test, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path, train, test)


def test_a_pipe_is_not_waited_for(tmp_path):
    parquet.write_table(GOOD, tmp_path / "test.parquet")
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet cannot be read \(it is no regular file\)"):
        load("folder", root=tmp_path)


def test_a_converted_table_is_not_read_again(tmp_path, monkeypatch):
    first = write(tmp_path, GOOD)
    monkeypatch.setattr(parquet, "ParquetFile", lambda *_: pytest.fail("read again"))
    os.utime(next((tmp_path / "arrow").glob("*-train.arrow")))
    again = load("folder", root=tmp_path)
    assert again is not first and (again.train.images == first.train.images).all()
