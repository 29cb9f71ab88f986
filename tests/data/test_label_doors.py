"""Label files as people write them: each is read right, or refused in one sentence that says where and what to do."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.label_files import read_labels, read_matrix
from l2t_ray.interfaces import UserError

ANIMALS = ("cat", "dog", "frog")
CLEAN = np.arange(8) % 3
NOISY = np.array([1, 1, 2, 0, 2, 2, 0, 1])
FILES = tuple(f"train/{ANIMALS[label]}/{number:02}.png" for number, label in enumerate(CLEAN))
LINES = [str(label) for label in NOISY]
ONE_HOT = np.eye(3)[NOISY]


def images(names=ANIMALS, files=FILES, positions=range(8)):
    positions = np.array(positions)
    return ImageSet(np.zeros((8, 1, 2, 2), np.uint8), CLEAN, positions, names, {}, files)


def saved(write, *arguments, **keywords):
    buffer = io.BytesIO()
    write(buffer, *arguments, **keywords)
    return buffer.getvalue()


def npy(array):
    return saved(np.save, array)


def npz(**arrays):
    return saved(np.savez, **arrays)


def table(features=None, **columns):
    made = pa.table(columns)
    if features:
        made = made.replace_schema_metadata({"huggingface": features})
    buffer = io.BytesIO()
    parquet.write_table(made, buffer)
    return buffer.getvalue()


def text(*lines, end="\n", encoding="utf-8"):
    return (end.join(lines) + end).encode(encoding)


def named(*order):
    """A CSV of files and labels, in an order of its own."""
    return text("file,label", *(f"{FILES[row]},{NOISY[row]}" for row in order or (3, 1, 0, 2, 7, 6, 5, 4)))


ZEBRA = '{"info": {"features": {"label": {"names": ["frog", "cat", "dog"], "_type": "ClassLabel"}}}}'
SHUFFLED = [3, 1, 0, 2, 7, 6, 5, 4]

RIGHT = {
    "a header.csv": text("label", *LINES),
    "no header.csv": text(*LINES),
    "names.csv": text("label", *(ANIMALS[label] for label in NOISY)),
    "names and no header.csv": text(*(ANIMALS[label] for label in NOISY)),
    "quotes.csv": text('"label"', *(f'"{ANIMALS[label]}"' for label in NOISY)),
    "spaces around.csv": text(" label ", *(f"  {label} " for label in NOISY)),
    "CRLF.csv": text("label", *LINES, end="\r\n"),
    "CR.csv": text("label", *LINES, end="\r"),
    "byte order mark.csv": text("label", *LINES, encoding="utf-8-sig"),
    "byte order mark and no header.csv": text(*LINES, encoding="utf-8-sig"),
    "UTF-16.csv": text("label", *LINES, encoding="utf-16"),
    "trailing blank lines.csv": text("label", *LINES, "", "", ""),
    "a comment above.csv": text("# made by hand, in May", "label", *LINES),
    "floats.csv": text("label", *(f"{label}.0" for label in NOISY)),
    "savetxt.csv": text("# label", *(f"{label:.18e}" for label in NOISY)),
    "semicolons.csv": text("label;note", *(f"{label};a, b" for label in NOISY)),
    "tabs.csv": text("label\tnote", *(f"{label}\t-" for label in NOISY)),
    "tabs.tsv": text("file\tlabel", *(f"{FILES[row]}\t{NOISY[row]}" for row in SHUFFLED)),
    "shouted.CSV": text("label", *LINES),
    "pandas' index.csv": text(",0", *(f"{row},{label}" for row, label in enumerate(NOISY))),
    "pandas' index, shuffled.csv": text(",label", *(f"{row},{NOISY[row]}" for row in SHUFFLED)),
    "index.csv": text("index,label", *(f"{row},{NOISY[row]}" for row in SHUFFLED)),
    "files.csv": named(),
    "stems.csv": text("id,label", *(f"{FILES[row][-6:-4]},{NOISY[row]}" for row in SHUFFLED)),
    "ends of paths.csv": text("image,label", *(f"{FILES[row][6:]},{NOISY[row]}" for row in SHUFFLED)),
    "absolute paths.csv": text("path,label", *(f"/mnt/x/{FILES[row]},{NOISY[row]}" for row in SHUFFLED)),
    "files under another name, with a note.csv": text(
        "label,what I drew", *(f"{NOISY[row]},{FILES[row]}" for row in SHUFFLED)
    ),
    "an index of floats, with a note.parquet": table(
        index=[float(r) for r in SHUFFLED], label=NOISY[SHUFFLED], x=NOISY
    ),
    "backslashes.csv": text("path,label", *(f"{FILES[row]},{NOISY[row]}".replace("/", "\\") for row in SHUFFLED)),
    "blank column of notes.csv": text("file,label,note", *(f"{FILES[row]},{NOISY[row]}," for row in SHUFFLED)),
    "one-hot under class names.csv": text(
        "frog,cat,dog",
        *(",".join(str(int(ANIMALS[label] == name)) for name in ("frog", "cat", "dog")) for label in NOISY),
    ),
    "one-hot without names.csv": text(*(",".join(str(int(x)) for x in row) for row in ONE_HOT)),
    "whole.npy": npy(NOISY),
    "a column.npy": npy(NOISY[:, None]),
    "floats.npy": npy(NOISY.astype(np.float32)),
    "bytes.npy": npy(NOISY.astype(np.uint8)),
    "big-endian.npy": npy(NOISY.astype(">i8")),
    "strings.npy": npy(np.array(ANIMALS)[NOISY]),
    "byte strings.npy": npy(np.array(ANIMALS, dtype="S")[NOISY]),
    "digits as strings.npy": npy(NOISY.astype(str)),
    "one-hot.npy": npy(ONE_HOT),
    "one-hot in Fortran's order.npy": npy(np.asfortranarray(ONE_HOT)),
    "one-hot of truth values.npy": npy(ONE_HOT.astype(bool)),
    "fields.npy": npy(np.array([(row, NOISY[row]) for row in SHUFFLED], dtype=[("index", "i8"), ("label", "i8")])),
    "one array.npz": npz(y=NOISY),
    "index.npz": npz(index=np.array(SHUFFLED), y=NOISY[SHUFFLED]),
    "tensor.pt": saved(lambda buffer: torch.save(torch.from_numpy(NOISY), buffer)),
    "plain.parquet": table(label=NOISY),
    "text.parquet": table(label=[ANIMALS[label] for label in NOISY]),
    "categories.parquet": table(label=pa.array([ANIMALS[label] for label in NOISY]).dictionary_encode()),
    "one-hot rows.parquet": table(label=ONE_HOT.tolist()),
    "files.parquet": table(file=[FILES[row] for row in SHUFFLED], label=NOISY[SHUFFLED]),
    "its own numbers.parquet": table(ZEBRA, label=[("frog", "cat", "dog").index(ANIMALS[label]) for label in NOISY]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_is_read_right(tmp_path, name):
    (tmp_path / name).write_bytes(RIGHT[name])
    column = "label" if "note" in name or name in ("semicolons.csv", "tabs.csv") else None
    assert read_labels(tmp_path / name, images(), column=column).tolist() == NOISY.tolist()


REFUSED = {
    "a number for a header.csv": (text("0", *LINES), r"has 9 labels for 8 .*is the first line, 0, the column's name\?"),
    "one too many.csv": (text("label", *LINES, "1"), "has 9 labels for 8"),
    "one too few.csv": (text("label", *LINES[1:]), "has 7 labels for 8"),
    "twice as many.csv": (text("label", *LINES, *LINES), "has 16 labels for 8"),
    "only a header.csv": (text("label"), "has 0 labels for 8"),
    "nothing.csv": (b"", "it is empty"),
    "a blank line.csv": (text("label", *LINES[:4], "", *LINES[4:]), "line 6 is empty"),
    "an empty field.csv": (text("label", *LINES[:4], '""', *LINES[5:]), r"has no label in line 6 \(''\)"),
    "nan.csv": (text("label", *LINES[:7], "nan"), r"has no label in line 9 \('nan'\)"),
    "minus one.csv": (text("label", *LINES[:7], "-1"), "has -1 in line 9"),
    "a half.csv": (text("label", *LINES[:7], "2.5"), "has 2.5 in line 9"),
    "one class more.csv": (text("label", *LINES[:7], "3"), "has the label 3, and the data set has classes 0 to 2"),
    "a stranger.csv": (text("label", *["cat"] * 7, "Dog"), "'Dog', which is no class .* line 9; is 'dog' meant"),
    "names and numbers.csv": (text("label", *["cat"] * 7, "1"), "'1', which is no class .* not both"),
    "ragged.csv": (text("label,note", *(f"{x}," for x in LINES[:7]), "1"), "line 9 has 1 values, the first 2"),
    "twice the name.csv": (text("label,label", *(f"{x},{x}" for x in LINES)), "two columns are called 'label'"),
    "an open quote.csv": (text("label", *LINES[:7], '"1'), "cannot be read"),
    "Latin-1.csv": ("label\ncaf\xe9".encode("latin-1"), "is not UTF-8"),
    "UTF-16 without a mark.csv": ("label\n1\n".encode("utf-16-le"), "zero bytes"),
    "several columns.csv": (text("worst,best", *(f"{x},{x}" for x in LINES)), "name one of them"),
    "decimal commas.csv": (
        text("label;file", *(f"{x},0;{f}" for x, f in zip(LINES, FILES, strict=True))),
        "'1,0', which is no class",
    ),
    "a file of None.parquet": (table(file=[*FILES[:7], None], label=NOISY), "names 'None' in row 7"),
    "an index of halves.parquet": (table(index=[k + 0.5 for k in range(8)], label=NOISY), "file names such as '0.5'"),
    "no such image.csv": (named(0, 1, 2, 3, 4, 5, 6).replace(b"06.png", b"66.png"), "'train/cat/66.png' in line 8"),
    "an image missing.csv": (named(0, 1, 2, 3, 4, 5, 6), "has no label for 1 .* 'train/dog/07.png'"),
    "an image twice.csv": (named(0, 1, 2, 3, 4, 5, 6, 7, 7), "in line 10, .* line 9 is for that image, too"),
    "index from 1.csv": (text("index,label", *(f"{k + 1},{x}" for k, x in enumerate(LINES))), "'8' in line 9"),
    "an index twice.csv": (text("id,label", *(f"{k // 2},{x}" for k, x in enumerate(LINES))), "is for that image, too"),
    "another part.csv": (named().replace(b"train/", b"validation/"), "none of the 8 training images"),
    "probabilities.npy": (npy(np.full((8, 3), 1 / 3)), r"has 3 numbers an image that are not one-hot .*argmax"),
    "nearly one-hot.npy": (npy(ONE_HOT * 0.99), "that are not one-hot"),
    "two ones.npy": (npy(np.ones((8, 3))), "that are not one-hot"),
    "one-hot, flattened.npy": (npy(ONE_HOT.ravel()), r"has 24 labels for 8 .*flattened"),
    "one-hot, turned.npy": (npy(ONE_HOT.T), r"shape \(3, 8\)"),
    "a row.npy": (npy(NOISY[None]), r"shape \(1, 8\)"),
    "a single number.npy": (npy(np.int64(1)), r"shape \(\)"),
    "nothing.npy": (npy(np.zeros(0, np.int64)), "has 0 labels for 8"),
    "truth values.npy": (npy(NOISY > 0), "true and false"),
    "complex.npy": (npy(NOISY.astype(complex)), "type complex128"),
    "dates.npy": (npy(NOISY.astype("datetime64[D]")), "type datetime64"),
    "infinity.npy": (npy(np.where(NOISY == 0, np.inf, NOISY)), "has inf in row 3"),
    "minus one, unsigned.npy": (npy((NOISY - 1).astype(np.uint64)), "has the label 18446744073709551615"),
    "objects.npy": (saved(lambda b: np.save(b, NOISY.astype(object), allow_pickle=True)), "holds Python objects"),
    "objects.npz": (saved(lambda b: np.savez(b, y=NOISY.astype(object))), "holds Python objects"),
    "several.npz": (npz(a=NOISY, b=NOISY), "'a', 'b'; name one of them"),
    "a null.parquet": (table(label=[*NOISY[:7].tolist(), None]), "has no label in row 7"),
    "a null name.parquet": (table(label=["cat"] * 7 + [None]), "has no label in row 7"),
    "other classes.parquet": (table(ZEBRA.replace("dog", "wolf"), label=NOISY), "'wolf', which is no class"),
    "half precision.pt": (
        saved(lambda b: torch.save(torch.from_numpy(NOISY).bfloat16(), b)),
        r"torch\.bfloat16.*\.float\(\)",
    ),
    "labels.pkl": (b"cos\nsystem\n(S'true'\ntR.", r"must end in"),
    "labels.json": (b"[1, 2]", "must end in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_a_sentence(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_labels(tmp_path / name, images())
    assert name in str(refused.value) or "data.noise.column" in str(refused.value)


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("0", "1", "2"), [0, 1, 2, 2], [0, 1, 2, 2]),
        (("1", "2", "10"), [10, 2, 1, 1], [2, 1, 0, 0]),
        (("1", "10", "2"), [10, 2, 1, 1], [1, 2, 0, 0]),  # sorted as text
        (("1", "10", "2"), ["10", "2", "1", "1"], [1, 2, 0, 0]),
        (("10.0", "2.0", "9.0"), [2, 9, 10, 2], [1, 2, 0, 1]),
        (("007", "008", "009"), [7, 8, 9, 7], [0, 1, 2, 0]),
        (("nan", "inf", "none"), ["none", "nan", "inf", "nan"], [2, 0, 1, 0]),
        (("1", "2", "3"), [0, 1, 2, 1], "has the label 0, .* the classes called 1, 2, 3"),
        (("0", "1", "2"), [1, 2, 3, 1], "has the label 3, and the data set has classes 0 to 2"),
        (("1", "2", "none"), [0, 1, 2, 1], "has the label 1, which is the name of class 0 and the number of class '2'"),
        (("a", "b", "c"), [0, 1, 2, 1], [0, 1, 2, 1]),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_numbers_are_the_names_of_classes_that_are_called_by_numbers(tmp_path, names, labels, expected, suffix):
    path = tmp_path / f"labels{suffix}"
    path.write_bytes(npy(np.array(labels)) if suffix == ".npy" else text("label", *map(str, labels)))
    four = ImageSet(np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.int64), np.arange(4), names)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            read_labels(path, four)
    else:
        assert read_labels(path, four).tolist() == expected


def test_half_precision_that_cannot_tell_the_classes_apart_is_refused(tmp_path):
    np.save(tmp_path / "labels.npy", np.full(4, 2049).astype(np.float16))
    many = ImageSet(
        np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.int64), np.arange(4), tuple(f"c{k}" for k in range(3000))
    )
    with pytest.raises(UserError, match="float16, which cannot tell 3000 classes apart"):
        read_labels(tmp_path / "labels.npy", many)


def test_files_and_numbers_that_say_different_things_are_refused(tmp_path):
    """Files 0.png, 1.png, 10.png: 2 is no file's name and the third one's number, 1 the second one's of both."""
    files = tuple(f"train/a/{name}.png" for name in (0, 2, 1, 3, 4, 5, 6, 7))
    path = tmp_path / "labels.csv"
    path.write_bytes(text("id,label", *(f"{row},{label}" for row, label in enumerate(NOISY))))
    with pytest.raises(UserError, match="both as file names and as numbers, differently"):
        read_labels(path, images(files=files))
    path.write_bytes(path.read_bytes().replace(b"id,", b"index,"))
    assert read_labels(path, images(files=files)).tolist() == NOISY.tolist()
    path.write_bytes(path.read_bytes().replace(b"index,", b"file,"))
    assert read_labels(path, images(files=files)).tolist() == NOISY[[0, 2, 1, 3, 4, 5, 6, 7]].tolist()


def test_a_name_that_several_images_have_is_refused(tmp_path):
    files = tuple(f"train/{row}/a.png" for row in range(8))
    (tmp_path / "labels.csv").write_bytes(text("file,label", *(f"a.png,{label}" for label in NOISY)))
    with pytest.raises(UserError, match="8 images are called; give more of their paths"):
        read_labels(tmp_path / "labels.csv", images(files=files))


def test_files_are_of_no_use_where_the_data_set_knows_none(tmp_path):
    (tmp_path / "labels.csv").write_bytes(named())
    with pytest.raises(UserError, match="knows its images by number alone"):
        read_labels(tmp_path / "labels.csv", images(files=None))


def test_an_index_counts_the_images_of_the_published_set(tmp_path):
    order = np.random.default_rng(0).permutation(12)
    (tmp_path / "labels.csv").write_bytes(text("index,label", *(f"{place},{place % 3}" for place in order)))
    found = read_labels(tmp_path / "labels.csv", images(positions=[0, 2, 3, 7, 8, 9, 10, 11]))
    assert found.tolist() == [0, 2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("count", [7, 9, 11, 13, 60])
def test_a_copy_that_lacks_images_takes_labels_for_all_that_were_published_or_for_its_own(tmp_path, count):
    np.save(tmp_path / "labels.npy", np.arange(count) % 3)
    with pytest.raises(UserError, match=f"has {count} labels for 8"):
        read_labels(tmp_path / "labels.npy", images(positions=[0, 2, 3, 7, 8, 9, 10, 11]))


def test_labels_of_validation_images_are_not_in_the_file(tmp_path):
    np.save(tmp_path / "labels.npy", NOISY)
    with pytest.raises(UserError, match="set apart for validation keep their own"):
        read_labels(tmp_path / "labels.npy", images(), num_own=5)


def three_hundred():
    labels = np.repeat(np.arange(3), 100)
    return ImageSet(np.zeros((300, 1, 2, 2), np.uint8), labels, np.arange(300), ANIMALS)


def test_labels_that_agree_by_chance_alone_are_refused(tmp_path):
    many, random = three_hundred(), np.random.default_rng(0)
    noisy = np.where(random.random(300) < 0.6, random.integers(3, size=300), many.labels)
    np.save(tmp_path / "labels.npy", noisy)
    assert (read_labels(tmp_path / "labels.npy", many) == noisy).all()
    np.save(tmp_path / "labels.npy", random.permutation(noisy))
    with pytest.raises(UserError, match="stand in another order or number the classes otherwise"):
        read_labels(tmp_path / "labels.npy", many)


def test_what_was_made_of_a_file_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO", logger="l2t_ray")
    many = three_hundred()
    turned = (many.labels + 1 + np.arange(300) % 2) % 3
    np.save(tmp_path / "labels.npy", np.eye(3)[turned])
    for _ in range(2):
        assert (read_labels(tmp_path / "labels.npy", many) == turned).all()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "one-hot rows" in said[0] and "on 100% of the images" in said[1]


MATRIX = np.array([[0.8, 0.2, 0], [0, 1, 0], [0.1, 0.2, 0.7]])


def rows_of(matrix, names=None):
    return [",".join([*([names[k]] if names else []), *map(str, row)]) for k, row in enumerate(matrix)]


@pytest.mark.parametrize(
    "lines",
    [
        rows_of(MATRIX),
        ["cat,dog,frog", *rows_of(MATRIX)],
        ["frog,cat,dog", *rows_of(MATRIX[:, [2, 0, 1]])],
        ["0,1,2", *rows_of(MATRIX)],
        [",0,1,2", *rows_of(MATRIX, "012")],
        ["true,frog,cat,dog", *rows_of(MATRIX[[1, 0, 2]][:, [2, 0, 1]], ["dog", "cat", "frog"])],
    ],
)
def test_a_matrix_follows_the_names_of_its_rows_and_columns(tmp_path, lines):
    (tmp_path / "matrix.csv").write_bytes(text(*lines))
    np.testing.assert_array_equal(read_matrix(tmp_path / "matrix.csv", 3, class_names=ANIMALS), MATRIX)


def test_a_matrix_with_text_in_it_is_refused(tmp_path):
    (tmp_path / "matrix.csv").write_bytes(text("a,b,c", "1,0,0", "0,1,x", "0,0,1"))
    with pytest.raises(UserError, match="must hold 3 x 3 numbers"):
        read_matrix(tmp_path / "matrix.csv", 3)
