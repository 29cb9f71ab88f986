"""Made-up copies in torchvision's layout; the real files where L2T_DATA has them."""

import gzip
import json
import os
import pickle
import struct

import numpy as np
import pytest

from l2t_ray.data import converted
from l2t_ray.data.catalog import load
from l2t_ray.interfaces import UserError

GENERATOR = np.random.default_rng(0)
ROWS = 6  # a batch file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "l2t_ray"


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def make_cifar10(root, names="real"):
    folder = root / "cifar-10-batches-py"
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        files = [f"bos_taurus_s_{i:06}.png" for i in range(ROWS)]
        if names == "positions":  # the second row of each batch is missing
            files = [f"train_{number * 7 + i + (i > 0):05}.png" for i in range(ROWS)]
        pixels = GENERATOR.integers(0, 256, (ROWS, 3072), dtype=np.uint8)
        dump(folder / name, {"data": pixels, "labels": [i % 10 for i in range(ROWS)], "filenames": files})
    dump(folder / "batches.meta", {"label_names": [f"name {i}" for i in range(10)]})
    return folder


def make_mnist(root, packed):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 9), ("t10k", 4)):
        images = GENERATOR.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def test_digits_need_no_file(tmp_path):
    digits = load("digits", root=tmp_path / "nowhere")
    assert digits.train.images.shape == (1437, 1, 8, 8) and digits.test.images.shape == (360, 1, 8, 8)
    assert (np.bincount(digits.test.labels) == 36).all()
    both = np.concatenate([digits.train.positions, digits.test.positions])
    assert sorted(both) == list(range(1797))
    assert digits.train.images.max() == 255 and digits.num_classes == 10
    assert load("digits", root=tmp_path).test.images.tobytes() == digits.test.images.tobytes()


def test_cifar_pixels_survive(tmp_path):
    folder = make_cifar10(tmp_path)
    dataset = load("cifar10", root=tmp_path, verify=False)
    expected = np.concatenate([pickle.loads((folder / f"data_batch_{i}").read_bytes())["data"] for i in range(1, 6)])
    np.testing.assert_array_equal(dataset.train.images.reshape(-1, 3072), expected)
    assert dataset.train.labels.tolist() == [*range(ROWS)] * 5
    assert dataset.train.positions.tolist() == [*range(5 * ROWS)]
    assert dataset.train.class_names[3] == "name 3" and len(dataset.test) == ROWS
    assert dataset.train.source["md5"].keys() == {*(f"data_batch_{i}" for i in range(1, 6)), "batches.meta"}


def test_positions_come_from_the_file_names(tmp_path):
    make_cifar10(tmp_path, names="positions")
    assert load("cifar10", root=tmp_path, verify=False).train.positions[:8].tolist() == [0, 2, 3, 4, 5, 6, 7, 9]


def test_unpublished_copy_is_refused_also_after_it_was_converted(tmp_path):
    make_cifar10(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"data_batch_1 is not the published file .*data\.verify=false"):
            load("cifar10", root=tmp_path)
        load("cifar10", root=tmp_path, verify=False)


def test_converted_once_and_again_when_the_files_change(tmp_path, monkeypatch):
    folder = make_cifar10(tmp_path)
    before = load("cifar10", root=tmp_path, verify=False).train.images.copy()
    with monkeypatch.context() as patch:
        patch.setattr(converted, "write_images", lambda *a, **k: pytest.fail("converted again"))
        load("cifar10", root=tmp_path, verify=False)
    make_cifar10(tmp_path)
    after = load("cifar10", root=tmp_path, verify=False).train.images
    assert (after != before).any()
    for file in folder.iterdir():
        file.unlink()
    assert (load("cifar10", root=tmp_path, verify=False, download=False).train.images == after).all()


def test_damaged_arrow_file_is_made_anew_where_its_source_is_there(tmp_path):
    folder = make_cifar10(tmp_path)
    before = load("cifar10", root=tmp_path, verify=False).train.images.copy()
    path = tmp_path / "arrow" / "cifar10-train.arrow"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"cifar10-train\.arrow is damaged .*made anew"):
        assert (load("cifar10", root=tmp_path, verify=False).train.images == before).all()
    path.write_bytes(path.read_bytes()[:1000])
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"cifar10-train\.arrow .*delete it"):
        load("cifar10", root=tmp_path, verify=False, download=False)


def test_a_process_opens_a_set_once_until_a_file_of_it_is_another(tmp_path):
    make_cifar10(tmp_path)

    def opened(**options):
        return load("cifar10", root=tmp_path, verify=False, **options)

    first = opened()
    assert opened() is first and opened(image_size=8) is not first and opened() is first
    make_cifar10(tmp_path)
    second = opened()
    assert second is not first and opened() is second
    (tmp_path / "arrow" / "cifar10-test.arrow").unlink()
    assert opened() is not second
    assert load("digits", root=tmp_path) is load("digits", root=tmp_path / "x")


def test_a_file_of_the_same_size_and_time_is_another_file(tmp_path):
    folder = make_cifar10(tmp_path)
    first = load("cifar10", root=tmp_path, verify=False).train.images.copy()
    path = folder / "data_batch_1"
    status, content = path.stat(), pickle.loads(path.read_bytes())
    dump(folder / "other", content | {"data": content["data"] ^ 1})
    os.utime(folder / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "other").replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert (load("cifar10", root=tmp_path, verify=False).train.images != first).any()


def test_read_only_root_falls_back_to_the_cache(tmp_path, cache):
    make_cifar10(tmp_path)
    (tmp_path / "arrow").write_text("a file where the folder should be")  # a mode bit would not stop root
    assert len(load("cifar10", root=tmp_path, verify=False).train) == 5 * ROWS
    assert sorted(path.name for path in cache.iterdir()) == ["cifar10-test.arrow", "cifar10-train.arrow", "locks"]
    assert len(load("cifar10", root=tmp_path, verify=False).train) == 5 * ROWS


def test_no_folder_to_write_to(tmp_path, cache):
    make_cifar10(tmp_path)
    cache.parent.write_text("")
    (tmp_path / "arrow").write_text("")
    with pytest.raises(UserError, match="No folder can hold the converted cifar10 images"):
        load("cifar10", root=tmp_path, verify=False)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


@pytest.mark.parametrize("content", [pickle.dumps({"data": Bomb()}), b"", b"junk", pickle.dumps({"labels": []})])
def test_damaged_or_hostile_pickle(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (make_cifar10(tmp_path) / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load("cifar10", root=tmp_path, verify=False)
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, packed):
    make_mnist(tmp_path, packed)
    dataset = load("mnist", root=tmp_path, verify=False)
    assert dataset.train.images.shape == (9, 1, 28, 28) and dataset.test.labels.tolist() == [0, 1, 2, 3]
    if packed:
        with pytest.raises(UserError, match="not the published file"):
            load("mnist", root=tmp_path)


def test_absent_files_without_download(tmp_path):
    with pytest.raises(UserError, match=r"put data_batch_1, .* into .*cifar-10-batches-py, or set data\.download=true"):
        load("cifar10", root=tmp_path, download=False)


@pytest.mark.parametrize("name, file", [("cifar100", "train, meta into"), ("fashion_mnist", "train-images-idx3-ubyte")])
def test_failed_download_says_what_to_do(tmp_path, monkeypatch, name, file):
    import torchvision.datasets

    def offline(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, {"cifar100": "CIFAR100"}.get(name, "FashionMNIST"), offline)
    with pytest.raises(UserError, match=rf"could not be downloaded \(no route to host\): put {file}"):
        load(name, root=tmp_path)


def test_incomplete_copy_is_not_overwritten(tmp_path):
    (make_cifar10(tmp_path) / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"incomplete \(data_batch_4 not found\)"):
        load("cifar10", root=tmp_path, verify=False)


def test_reduced_images_are_means_of_squares(tmp_path):
    make_cifar10(tmp_path)
    full = load("cifar10", root=tmp_path, verify=False)
    reduced = load("cifar10", root=tmp_path, verify=False, image_size=16)
    assert reduced.train.images.shape == (5 * ROWS, 3, 16, 16) and reduced.test.images.shape == (ROWS, 3, 16, 16)
    square = full.train.images[3, 1, 4:6, 8:10].astype(float)
    assert abs(reduced.train.images[3, 1, 2, 4] - square.mean()) <= 0.5
    assert reduced.train.images.mean() == pytest.approx(full.train.images.mean(), abs=0.1)
    np.testing.assert_array_equal(reduced.train.labels, full.train.labels)
    assert load("digits", root=tmp_path, image_size=4).test.images.shape == (360, 1, 4, 4)


def test_reduced_images_are_converted_once_and_follow_their_files(tmp_path, monkeypatch):
    make_cifar10(tmp_path)
    before = load("cifar10", root=tmp_path, verify=False, image_size=8).train.images.copy()
    with monkeypatch.context() as patch:
        patch.setattr(converted, "write_images", lambda *a, **k: pytest.fail("converted again"))
        load("cifar10", root=tmp_path, verify=False, image_size=8)
    with pytest.raises(UserError, match="not the published file"):
        load("cifar10", root=tmp_path, image_size=8)
    make_cifar10(tmp_path)
    assert (load("cifar10", root=tmp_path, verify=False, image_size=8).train.images != before).any()


@pytest.mark.parametrize("image_size", [5, 64])
def test_image_size_must_divide(tmp_path, image_size):
    make_cifar10(tmp_path)
    with pytest.raises(UserError, match=rf"data\.image_size must divide .* got {image_size} for images of 32x32"):
        load("cifar10", root=tmp_path, verify=False, image_size=image_size)


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"data\.name must be one of digits, mnist, .* got 'cifar'"):
        load("cifar", root=tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("name, folder", [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_real_files(real_root, name, folder):
    dataset = load(name, root=real_root, verify=False, download=False)
    pixels = dataset.train.images[::7] / 255
    np.testing.assert_allclose(pixels.mean(axis=(0, 2, 3)), dataset.mean, atol=0.005)
    np.testing.assert_allclose(pixels.std(axis=(0, 2, 3)), dataset.std, atol=0.005)
    missing = real_root / folder / "MISSING.json"
    if missing.exists():  # a copy that lacks images lists the places where they stood
        json.loads(missing.read_text())
        assert len(dataset.train) < dataset.train.positions[-1] + 1 <= 50_000
    assert (np.diff(dataset.train.positions) > 0).all()
