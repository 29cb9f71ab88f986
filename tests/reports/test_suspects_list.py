"""What is shown of a written list of suspicious labels."""

from io import StringIO

import pytest
from rich.console import Console

from l2t_ray.interfaces import UserError
from l2t_ray.reports.suspects_list import worst, worst_table

HEADINGS = "index,given_label,suggested_label,score\n"


def test_labels_in_whose_place_another_class_is_suggested_are_shown_from_the_worst(tmp_path):
    path = tmp_path / "suspects.csv"
    path.write_text(f"{HEADINGS}7,cat,cat,0.9\n4,cat,[dog],0.8\n3,cat,ox,0.7\n1,ox,cat,\n")
    found = worst(path, 2)
    assert [line["index"] for line in found.lines] == ["4", "3"]
    assert (found.num_suspected, found.num_labels) == (3, 4)
    written = Console(file=StringIO(), width=80)
    written.print(worst_table(found.lines))
    shown = written.file.getvalue()
    assert "suggested label" in shown and "[dog]" in shown and "ox" in shown and "0.9" not in shown


def test_a_list_without_a_suspicion_is_one(tmp_path):
    (tmp_path / "suspects.csv").write_text(f"{HEADINGS}7,cat,cat,0.9\n")
    assert worst(tmp_path / "suspects.csv", 5) == ([], 0, 1)


@pytest.mark.parametrize("content", [b"", b"index\n1\n", b"index,given_label,suggested_label\n\xff\xfe,a,b\n"])
def test_a_file_that_is_no_list_is_said_to_be_damaged(tmp_path, content):
    (tmp_path / "suspects.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"suspects\.csv is damaged; --resume .* writes it again\.$"):
        worst(tmp_path / "suspects.csv", 5)
