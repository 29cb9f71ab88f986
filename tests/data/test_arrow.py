import os

import numpy as np
import pytest

from l2t_ray.data import arrow
from l2t_ray.data.arrow import read_images, read_source, write_images
from l2t_ray.interfaces import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0, 2, 1])
POSITIONS = np.array([3, 4, 8, 9, 10, 11, 20])


def write(path):
    write_images(path, IMAGES, LABELS, class_names="abc", source={"name": "toy"}, positions=POSITIONS)


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "deep" / "toy.arrow")
    return tmp_path / "deep" / "toy.arrow"


def test_round_trip(path):
    images = read_images(path)
    np.testing.assert_array_equal(images.images, IMAGES)
    np.testing.assert_array_equal(images.labels, LABELS)
    np.testing.assert_array_equal(images.positions, POSITIONS)
    assert images.class_names == ("a", "b", "c")
    assert images.source == read_source(path) == {"name": "toy"}
    assert len(images) == 7


def test_is_mapped_not_copied(path):
    """The array looks at the file itself: a byte changed there is seen here."""
    images = read_images(path).images
    assert not images.flags.owndata and not images.flags.writeable
    content = path.read_bytes()
    start = content.index(IMAGES.tobytes())
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes([255 - IMAGES[0, 0, 0, 0]]))
    assert images[0, 0, 0, 0] == 255 - IMAGES[0, 0, 0, 0]


def test_leaves_no_temporary_file(path):
    assert [file.name for file in path.parent.iterdir()] == ["toy.arrow"]


@pytest.mark.parametrize("keep", [0, 8, 200, -1, -300])
def test_truncated_file_is_named(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"toy\.arrow .*delete it"):
        read_images(path)


def test_changed_content_is_noticed(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(IMAGES.tobytes(), (IMAGES ^ 1).tobytes()))
    with pytest.raises(UserError, match=r"toy\.arrow .*sha256.*delete it"):
        read_images(path)
    assert len(read_images(path, check=False)) == 7


@pytest.mark.parametrize("old, new", [(b'"a"', b'"x"'), (b'"toy"', b'"tin"'), (b"[7, 3, 5, 4]", b"[7, 3, 4, 5]")])
def test_changed_facts_are_noticed(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 2  # the schema stands at the beginning and in the footer
    path.write_bytes(content.replace(old, new))
    with pytest.raises(UserError, match=r"toy\.arrow .*sha256.*delete it"):
        read_images(path)


@pytest.mark.parametrize("footer", [-1, 0, 1 << 30])
def test_a_footer_of_no_possible_length_is_named(path, footer):
    content = path.read_bytes()
    path.write_bytes(content[:-10] + footer.to_bytes(4, "little", signed=True) + content[-6:])
    for read in (read_images, read_source):
        with pytest.raises(UserError, match=r"toy\.arrow .*its footer has"):
            read(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "toy.arrow")
    with pytest.raises(UserError, match=r"toy\.arrow .*no regular file"):
        read_images(tmp_path / "toy.arrow")


def test_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no image file .*gone\.arrow"):
        read_images(tmp_path / "gone.arrow")


def test_label_without_a_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 class names"):
        write_images(tmp_path / "x.arrow", IMAGES, LABELS, class_names="ab", source={})


def test_writer_inside_another_writers_time(tmp_path, monkeypatch):
    """The second starts and ends while the first is half done: neither may spoil the other's file."""
    path, new_file = tmp_path / "toy.arrow", arrow.pa.ipc.new_file

    def interrupted(*args):
        monkeypatch.setattr(arrow.pa.ipc, "new_file", new_file)
        write(path)
        return new_file(*args)

    monkeypatch.setattr(arrow.pa.ipc, "new_file", interrupted)
    write(path)
    np.testing.assert_array_equal(read_images(path).images, IMAGES)
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_the_old_file(path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrow.pa.ipc, "new_file", full)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert len(read_images(path)) == 7 and list(path.parent.iterdir()) == [path]
