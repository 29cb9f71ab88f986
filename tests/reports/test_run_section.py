"""A run on the report page: its table, its pictures at their natural size, and nothing that breaks the page."""

import re
import struct

from l2t_ray.reports.page import write_page
from l2t_ray.reports.run_section import ShownRun


def png(width, height):
    """As much of one as its size takes."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height) + b"rest"


RUN = ShownRun(
    "a <b>/x",
    "digit_scenes",
    [
        {"arm": "cross_entropy", "headline": "miou", "test_miou": 0.5, "seconds": 1.0},
        {"arm": "l2t_dln", "headline": "miou", "test_miou": 0.52, "seconds": 2.0},
    ],
    {"miou_and_error": png(160, 80), "examples": png(1600, 800), "round_time": png(1, 1)},
)


def test_pictures_stand_in_their_order_with_what_they_show_at_a_size_to_read(tmp_path):
    page, markdown, *pictures = write_page(tmp_path, [], [RUN])
    text = page.read_text()
    sizes = re.findall(r'height="(\d+)" style="width: (\d+)px" src="data:image/png;base64,', text)
    assert sizes == [("480", "960"), ("48", "96")]  # pixels of a page: 160 to the inch are 96
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions[0].startswith("The first test images") and captions[1].startswith("mIoU on the test images")
    assert [path.name for path in pictures] == ["run-a-b-x-examples.png", "run-a-b-x-miou_and_error.png"]
    assert all(f"figures/{path.name}" in markdown.read_text() and path.exists() for path in pictures)


def test_what_is_wider_than_the_page_moves_in_a_frame_of_its_own(tmp_path):
    text = write_page(tmp_path, [], [RUN])[0].read_text()
    assert text.count('<div class="scroll" tabindex="0"><img') == 2
    assert "figure.picture img { max-width: none; }" in text and ".scroll { overflow-x: auto;" in text


def test_the_table_has_a_row_for_each_arm_and_names_break_nothing(tmp_path):
    text = write_page(tmp_path, [], [RUN])[0].read_text()
    assert "<td>52.00</td><td>+2.00</td>" in text and "test mIoU [%]" in text
    assert "Run a &lt;b&gt;/x on digit_scenes" in text and "<b>" not in text
    assert 'href="#run-a-b-x"' in text and 'id="run-a-b-x"' in text
