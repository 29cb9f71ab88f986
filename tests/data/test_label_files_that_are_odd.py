"""Files of labels that are damaged, or hold something else than their names say."""

import unicodedata
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.label_files import read_labels, read_matrix
from l2t_ray.interfaces import UserError

LABELS = np.array([1, 1, 2, 0, 2, 2, 0, 1])


def images(labels=LABELS, class_names=("cat", "dog", "frog")):
    return ImageSet(np.zeros((len(labels), 1, 2, 2), np.uint8), labels, np.arange(len(labels)), class_names)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".parquet", ".npy"])
def test_a_damaged_file_is_named_wherever_the_damage_is(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    match suffix:
        case ".npz":
            np.savez_compressed(path, label=LABELS)
        case ".pt":
            torch.save(torch.from_numpy(LABELS), path, _use_new_zipfile_serialization=False)
        case ".parquet":
            parquet.write_table(pa.table({"label": LABELS}), path)
        case ".npy":
            np.save(path, LABELS)
    content = path.read_bytes()
    refused, places = 0, range(0, len(content), len(content) // 100)
    for place in places:
        for damaged in (content[:place], content[:place] + b"\xff" + content[place + 1 :]):
            path.write_bytes(damaged)
            try:
                read_labels(path, images())
            except UserError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > len(places) / 2


def test_an_archive_with_a_member_that_is_no_array_is_refused(tmp_path):
    np.savez(tmp_path / "labels.npz", label=LABELS)
    with zipfile.ZipFile(tmp_path / "labels.npz", "a") as file:
        file.writestr("notes.txt", "by hand")
    with pytest.raises(UserError, match=r"has 'notes\.txt', which is no array"):
        read_labels(tmp_path / "labels.npz", images(), column="label")


def test_numpy_files_that_go_by_each_others_name_are_refused(tmp_path):
    np.savez(tmp_path / "labels.npz", label=LABELS)
    (tmp_path / "labels.npz").rename(tmp_path / "labels.npy")
    with pytest.raises(UserError, match=r"of the kind \.npz by its content"):
        read_labels(tmp_path / "labels.npy", images())
    np.save(tmp_path / "labels.npy", LABELS)
    (tmp_path / "labels.npy").rename(tmp_path / "labels.npz")
    with pytest.raises(UserError, match=r"of the kind \.npy by its content"):
        read_labels(tmp_path / "labels.npz", images())


@pytest.mark.parametrize("beside", ["clean", "clean_label", "index"])
@pytest.mark.parametrize("length", [5, 11])
def test_arrays_beside_the_labels_are_as_long(tmp_path, beside, length):
    np.savez(tmp_path / "labels.npz", **{"label": LABELS, beside: np.arange(length) % 3})  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=rf"has 8 labels, and an array '{beside}' of shape \({length},\)"):
        read_labels(tmp_path / "labels.npz", images(), column="label")


FIVE = ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    "numbering, said",
    [
        ([1, 2, 3, 4, 0], "on 100% if its numbers are shifted by one"),
        ([4, 0, 1, 2, 3], "on 100% if its numbers are shifted by one"),
        ([2, 3, 4, 0, 1], "on 100% if its numbers are shifted by 2"),
        ([0, 3, 1, 4, 2], "on 100% if its numbers are given to other classes, such as 1 to '2'"),
    ],
)
@pytest.mark.parametrize("with_index", [True, False])
def test_classes_that_are_numbered_otherwise_are_refused(tmp_path, numbering, said, with_index):
    clean = np.random.default_rng(0).integers(5, size=200)
    index = {"index": np.arange(200)} if with_index else {}
    np.savez(tmp_path / "labels.npz", label=np.array(numbering)[clean], **index)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=said):
        read_labels(tmp_path / "labels.npz", images(clean, FIVE))


def test_another_numbering_is_found_behind_a_few_wrong_labels(tmp_path):
    generator = np.random.default_rng(0)
    clean = generator.integers(5, size=200)
    observed = np.where(generator.random(200) < 0.05, generator.integers(5, size=200), (clean + 1) % 5)
    np.save(tmp_path / "labels.npy", observed)
    with pytest.raises(UserError, match=r"on 9\d% if its numbers are shifted by one"):
        read_labels(tmp_path / "labels.npy", images(clean, FIVE))


@pytest.mark.parametrize("num_classes", [3, 5])
def test_labels_that_are_all_wrong_at_random_are_noise(tmp_path, num_classes):
    generator = np.random.default_rng(0)
    clean = generator.integers(num_classes, size=200)
    observed = (clean + generator.integers(1, num_classes, size=200)) % num_classes
    np.save(tmp_path / "labels.npy", observed)
    assert (read_labels(tmp_path / "labels.npy", images(clean, FIVE[:num_classes])) == observed).all()


def quantised(labels):
    return torch.quantize_per_tensor(labels.float(), 1.0, 0, torch.quint8)


@pytest.mark.parametrize(
    "change, said",
    [
        (torch.Tensor.bfloat16, r"of torch\.bfloat16, .* after \.float\(\)"),
        (lambda labels: labels.float().to(torch.float8_e4m3fn), r"of torch\.float8_e4m3fn, .* after \.float\(\)"),
        (torch.Tensor.to_sparse, r"of torch\.int64 and layout torch\.sparse_coo, .* after \.to_dense\(\)"),
        (quantised, r"of torch\.quint8, .* after \.dequantize\(\)"),
        (lambda labels: labels.to("meta"), r"of torch\.int64, .* device meta, without values"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_numpy_has_not_are_named_with_a_remedy(tmp_path, change, said):
    torch.save({"label": change(torch.from_numpy(LABELS))}, tmp_path / "labels.pt")
    with warnings.catch_warnings(record=True) as warned, pytest.raises(UserError, match=f"a tensor 'label' {said}"):
        warnings.simplefilter("always")
        read_labels(tmp_path / "labels.pt", images())
    assert not warned


ACCENTED = ("caf\u00e9", "na\u00eff", "the")


@pytest.mark.parametrize("of_file", ["NFC", "NFD"])
@pytest.mark.parametrize("of_set", ["NFC", "NFD"])
def test_class_names_are_the_same_in_either_form_of_unicode(tmp_path, of_file, of_set):
    there = images(class_names=tuple(unicodedata.normalize(of_set, name) for name in ACCENTED))
    written = [unicodedata.normalize(of_file, name) for name in ACCENTED]
    path = tmp_path / "labels.csv"
    for lines in (
        ["label", *(written[label] for label in LABELS)],
        [written[label] for label in LABELS],
        [",".join(written[::-1]), *(",".join(str(int(k == label)) for k in (2, 1, 0)) for label in LABELS)],
    ):
        path.write_text("\n".join(lines), encoding="utf-8")
        assert read_labels(path, there).tolist() == LABELS.tolist()
    parquet.write_table(pa.table({written[0]: [written[label] for label in LABELS]}), tmp_path / "labels.parquet")
    column = unicodedata.normalize("NFD", ACCENTED[0])
    assert read_labels(tmp_path / "labels.parquet", there, column=column).tolist() == LABELS.tolist()
    turned = np.eye(3)[[1, 2, 0]]
    rows = [",".join([name, *map(str, row)]) for name, row in zip(written, turned, strict=True)]
    path.write_text("\n".join([",".join(["true", *written]), *rows]), encoding="utf-8")
    assert (read_matrix(path, 3, class_names=there.class_names) == turned).all()


@pytest.mark.parametrize("head", ["label,", "label,,", ",label,"])
def test_columns_without_anything_in_them_do_not_count(tmp_path, head):
    start = "," if head.startswith(",") else ""
    (tmp_path / "labels.csv").write_text("\n".join([head, *(f"{start}{label}," for label in LABELS)]))
    assert read_labels(tmp_path / "labels.csv", images()).tolist() == LABELS.tolist()
    (tmp_path / "labels.csv").write_text("\n".join(f"{label},," for label in LABELS))
    assert read_labels(tmp_path / "labels.csv", images()).tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    "class_names, order", [(("1", "2", "10"), (0, 1, 2)), (("1", "2", "10"), (2, 0, 1)), (("cat", "dog", "frog"), None)]
)
def test_numbers_above_one_hot_rows_name_the_classes(tmp_path, class_names, order):
    head = ["0", "1", "2"] if order is None else [class_names[k] for k in order]
    rows = [",".join(str(int(k == label)) for k in order or (0, 1, 2)) for label in LABELS]
    (tmp_path / "labels.csv").write_text("\n".join([",".join(head), *rows]))
    assert read_labels(tmp_path / "labels.csv", images(class_names=class_names)).tolist() == LABELS.tolist()


@pytest.mark.parametrize("name", ["labels.npz", "labels.parquet", "labels.pt", "labels.csv"])
def test_a_table_without_columns_is_said_to_have_none(tmp_path, name):
    np.savez(tmp_path / "labels.npz")
    parquet.write_table(pa.table({}), tmp_path / "labels.parquet")
    torch.save({}, tmp_path / "labels.pt")
    (tmp_path / "labels.csv").write_text('""\n""\n')
    with pytest.raises(UserError, match="has no column"):
        read_labels(tmp_path / name, images())
