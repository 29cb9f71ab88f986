"""A user's labels by every kind of file, and files that are refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.label_files import read_labels, read_matrix
from l2t_ray.interfaces import UserError

NAMES = ("cat", "dog", "frog")
CLEAN = np.arange(8) % 3
NOISY = np.array([1, 1, 2, 0, 2, 2, 0, 1])


def images(positions=range(8)):
    positions = np.array(positions)
    labels = CLEAN[: len(positions)]
    return ImageSet(np.zeros((len(labels), 1, 2, 2), np.uint8), labels, positions, NAMES)


def written(path, labels=NOISY, clean=None):
    """The labels in a file of the kind that the path's end says."""
    columns = {"worst": labels} | ({} if clean is None else {"clean_label": clean})
    match path.suffix:
        case ".npy":
            np.save(path, labels)
        case ".npz":
            np.savez(path, **columns)
        case ".csv":
            path.write_text(
                "\n".join([",".join(columns), *(",".join(map(str, r)) for r in zip(*columns.values(), strict=True))])
            )
        case ".parquet":
            parquet.write_table(pa.table(columns), path)
        case ".pt":
            torch.save(columns, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet", ".pt"])
def test_labels_arrive_by_any_door(tmp_path, suffix):
    assert read_labels(written(tmp_path / f"labels{suffix}"), images()).tolist() == NOISY.tolist()


def test_names_stand_for_numbers_and_a_csv_may_be_bare(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("label\n" + "\n".join(NAMES[i] for i in NOISY))
    assert read_labels(path, images()).tolist() == NOISY.tolist()
    path.write_text("\n".join(map(str, NOISY)))
    assert read_labels(path, images()).tolist() == NOISY.tolist()


def test_labels_of_the_whole_published_set_are_taken_by_position(tmp_path):
    path = written(tmp_path / "all.npy", np.arange(12) % 3)
    assert read_labels(path, images([0, 2, 3, 7, 8, 9, 10, 11])).tolist() == [0, 2, 0, 1, 2, 0, 1, 2]


def test_only_own_images_have_labels_in_the_file(tmp_path):
    path = written(tmp_path / "five.npy", NOISY[:5])
    assert read_labels(path, images(), num_own=5).tolist() == [*NOISY[:5], *CLEAN[5:]]


def test_clean_labels_in_the_file_give_away_another_order(tmp_path):
    path = written(tmp_path / "labels.npz", clean=CLEAN)
    assert read_labels(path, images(), column="worst").tolist() == NOISY.tolist()
    written(path, clean=CLEAN[::-1])
    with pytest.raises(UserError, match="stand in another order"):
        read_labels(path, images(), column="worst")


def test_published_pickle_of_numpy_1_is_read_and_runs_nothing(tmp_path):
    """CIFAR-10_human.pt is such a file: NumPy arrays by the old name of NumPy's module."""
    path = tmp_path / "CIFAR-10_human.pt"
    torch.save({"worse_label": NOISY, "clean_label": CLEAN}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(content)
    assert b"numpy.core.multiarray" in content
    assert read_labels(path, images(), column="worse_label").tolist() == NOISY.tolist()

    class Hostile:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"worse_label": Hostile()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(path, images())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "labels, column, message",
    [
        (NOISY, "aggregate", r"data\.noise\.column is 'aggregate', and .* has 'worst'"),
        (NOISY[:5], None, "has 5 labels for 8 training images"),
        (NOISY + 1, None, "has the label 3, and the data set has classes 0 to 2"),
        (NOISY - 1, None, "must be whole numbers from 0"),
        (NOISY + 0.5, None, "must be whole numbers from 0"),
        (np.full(8, np.nan), None, "must be whole numbers from 0"),
        (np.array(["cat", "cow"] * 4), None, "'cow', which is no class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, column, message):
    with pytest.raises(UserError, match=message):
        read_labels(written(tmp_path / "labels.npz", labels), images(), column=column)


@pytest.mark.parametrize("name", ["labels.txt", "damaged.npz", "damaged.parquet", "damaged.pt", "damaged.npy"])
def test_files_that_are_none_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="there is no file"):
        read_labels(tmp_path / name, images())
    (tmp_path / name).write_bytes(b"not this")
    with pytest.raises(UserError, match=r"cannot be read|must end in"):
        read_labels(tmp_path / name, images())


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_matrix(tmp_path, suffix):
    matrix = np.array([[0.8, 0.2, 0], [0, 1, 0], [0.1, 0.2, 0.7]])
    path = tmp_path / f"matrix{suffix}"
    np.save(path, matrix) if suffix == ".npy" else np.savetxt(path, matrix, delimiter=",")
    np.testing.assert_allclose(read_matrix(path, 3), matrix)
    with pytest.raises(UserError, match="must hold 4 x 4 numbers"):
        read_matrix(path, 4)
