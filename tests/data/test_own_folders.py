"""Folders as they lie on people's disks: what is read, what is passed over with a word, what is refused by name."""

import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_own import make_folder, picture, save

from l2t_ray.data.catalog import load
from l2t_ray.interfaces import UserError


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def copy(root, name):
    """One more image of a cat, under another name."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "train" / "cat" / "0.png", root / name)


HIDDEN = [
    "train/.ipynb_checkpoints/0-checkpoint.png",
    "train/cat/.ipynb_checkpoints/0-checkpoint.png",
    "train/cat/._0.png",
    "train/__MACOSX/cat/._0.png",
    "train/.DS_Store",
    "train/cat/Thumbs.db",
    "train/desktop.ini",
]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_things_are_passed_over_and_counted(tmp_path, name):
    copy(make_folder(tmp_path), name)
    dataset = load("folder", root=tmp_path)
    assert len(dataset.train) == 6 and dataset.train.class_names == ("cat", "dog")
    assert dataset.notes == (f"{tmp_path}/train: 1 hidden files or folders skipped",)


@pytest.mark.parametrize(
    "name", ["train/cat/x.JPG", "train/cat/x.jpeg_", "train/cat/x.txt", "train/cat/x", "train/cat/deep/er/x.png"]
)
def test_images_under_other_names_are_read(tmp_path, name):
    copy(make_folder(tmp_path), name)
    dataset = load("folder", root=tmp_path)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 3 and dataset.notes == ()


@pytest.mark.parametrize("name", ["train/cat/notes.txt", "train/metadata.csv", "train/cat/LICENSE"])
def test_files_that_are_no_images_are_named(tmp_path, name):
    write(make_folder(tmp_path) / name)
    dataset = load("folder", root=tmp_path)
    inside = name.removeprefix("train/")
    assert dataset.notes == (f"{tmp_path}/train: 1 files that are no images skipped ({inside})",)
    assert len(dataset.train) == 6


@pytest.mark.parametrize("name", ["new\nline.png", "a b.png", "100%?#.png", "löwe.png", "name\udcff.png", "[bold].png"])
def test_names_of_any_letters(tmp_path, name):
    copy(make_folder(tmp_path), f"train/cat/{name}")
    assert len(load("folder", root=tmp_path).train) == 7
    (tmp_path / "train" / "cat" / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"is no readable image") as refusal:
        load("folder", root=tmp_path)
    assert "\n" not in str(refusal.value) and str(refusal.value).encode()


def test_links_are_followed(tmp_path):
    root = make_folder(tmp_path / "root")
    elsewhere = make_folder(tmp_path / "elsewhere")
    (root / "train" / "cat" / "link.png").symlink_to(elsewhere / "train" / "dog" / "1.png")
    for part in ("train", "test"):
        (root / part / "emu").symlink_to(elsewhere / "train" / "dog")
    dataset = load("folder", root=root)
    assert dataset.train.class_names == ("cat", "dog", "emu") and len(dataset.train) == 10


def fifo(root):
    os.mkfifo(root / "train" / "cat" / "pipe.png")


def fifo_of_another_ending(root):
    os.mkfifo(root / "train" / "cat" / "pipe")


def bound_socket(root):
    # By way of a short link: a socket's path may have about 100 letters.
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as bound:
        (Path(short) / "x").symlink_to(root / "train" / "cat")
        bound.bind(f"{short}/x/socket.png")


REFUSED = {
    "pipe": (fifo, r"train/cat/pipe\.png is neither a file nor a folder"),
    "pipe without ending": (fifo_of_another_ending, r"train/cat/pipe is neither a file nor a folder"),
    "socket": (bound_socket, r"train/cat/socket\.png is neither a file nor a folder"),
    "device": (lambda root: (root / "train/cat/null.png").symlink_to("/dev/null"), r"null\.png is neither a file"),
    "lost link": (lambda root: (root / "train/cat/l.png").symlink_to("gone"), r"l\.png is a link that leads nowhere"),
    "link to itself": (lambda root: (root / "train/cat/l.png").symlink_to("l.png"), r"l\.png is a link that leads"),
    "circle": (
        lambda root: (root / "train/cat/up").symlink_to(root / "train/cat"),
        r"cat/up is a link to a folder above",
    ),
    "empty class": (lambda root: (root / "train/emu").mkdir(), r"train/emu holds no image"),
    "class of hidden files": (lambda root: write(root / "test/emu/.gitkeep"), r"test/emu holds no image"),
    "class of texts": (lambda root: write(root / "train/emu/a.txt"), r"train/emu holds no image"),
    "class of the test alone": (
        lambda root: copy(root, "test/emu/1.png"),
        r"test has the class 'emu', which .*train has not",
    ),
    "other case": (
        lambda root: (root / "test/cat").rename(root / "test/Cat"),
        r"has the class 'Cat', which .* has not \(it has 'cat', which is written in other letters\)",
    ),
    "line break in a class": (lambda root: copy(root, "train/a\nb/1.png"), r"class 'a\\nb' has a letter"),
    "no text in a class": (lambda root: copy(root, "train/a\udcff/1.png"), r"class 'a\\udcff' has a letter"),
    "image beside the classes": (lambda root: copy(root, "train/1.png"), r"train/1\.png lies in no folder of a class"),
    "another format": (lambda root: write(root / "train/cat/a.HEIC"), r"cat/a\.HEIC is of a format that is not read"),
    "empty file": (lambda root: write(root / "train/cat/a.png", ""), r"train/cat/a\.png is no readable image"),
    "huge file": (lambda root: os.truncate(root / "train/cat/0.png", 1 << 40), r"0\.png is no readable image \(it has"),
    "two trains": (lambda root: write(root / "train.parquet"), r"has both train and train\.parquet"),
    "file for a folder": (
        lambda root: (shutil.rmtree(root / "test"), write(root / "test")),
        r"test is no folder",
    ),
}


@pytest.mark.parametrize("spoil, message", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.timeout(20)
def test_what_is_not_clear_is_refused_by_name(tmp_path, spoil, message):
    spoil(make_folder(tmp_path))
    with pytest.raises(UserError, match=message) as refusal:
        load("folder", root=tmp_path)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    make_folder(tmp_path)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # a mode bit would not stop root
    with pytest.raises(UserError, match=r"train/dog cannot be listed \(Permission denied\)"):
        load("folder", root=tmp_path)


@pytest.mark.parametrize(
    "make, note",
    [
        (lambda root: (root / "val").mkdir(), r"/val is not read: images to validate on lie in validation"),
        (lambda root: shutil.rmtree(root / "test/dog"), r"no test image has the class 'dog'"),
        (
            lambda root: [copy(root, f"{part}/CAT/1.png") for part in ("train", "test")],
            r"the classes 'CAT' and 'cat' are written nearly alike",
        ),
    ],
)
def test_what_is_odd_but_may_be_meant_is_noted(tmp_path, make, note):
    make(make_folder(tmp_path))
    (said,) = load("folder", root=tmp_path).notes
    assert re.search(note, said)


def test_a_file_of_the_same_size_and_time_is_another_image(tmp_path):
    make_folder(tmp_path)
    assert load("folder", root=tmp_path).train.images[0, 0].max() == 0
    path = tmp_path / "train" / "cat" / "0.png"
    status = path.stat()
    save(picture(200), tmp_path / "other.png")
    assert (tmp_path / "other.png").stat().st_size == status.st_size
    os.utime(tmp_path / "other.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "other.png").replace(path)
    assert load("folder", root=tmp_path).train.images[0, 0].max() == 200


def test_notes_are_kept_with_the_images(tmp_path):
    make_folder(tmp_path, mode="L")
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
    save(Image.fromarray(deep), tmp_path / "train" / "cat" / "deep.png")
    write(tmp_path / "test" / ".DS_Store")
    first = load("folder", root=tmp_path)
    (tmp_path / "arrow" / "x").mkdir()  # so that the set is opened again
    assert first.notes == (
        f"{tmp_path}/test: 1 hidden files or folders skipped",
        "1 of 13 images converted from 16 or 32 bit: 0..4095 (12 bit; the largest value is 3780) became 0..255",
    )
    os.utime(next((tmp_path / "arrow").glob("*-train.arrow")))
    again = load("folder", root=tmp_path)
    assert again is not first and again.notes == first.notes and again.mean == first.mean
