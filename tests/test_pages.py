"""What tests take from a page: its blocks, its files, its commands."""

import sys

import pytest
from pages import PAGES, Block, Page

PAGE = """
Begin with `l2t show runs/x`.

<!-- file: five_of_pages.py -->
```python
FIVE = 5
```

```python
import five_of_pages

doubled = 2 * five_of_pages.FIVE + given
```

```sh
l2t train --config quick \\
    name=a   # the first
make run && make "test it"
```

- In a list:

  ```sh
  l2t report
  ```
"""


@pytest.fixture
def page(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    return Page(str(tmp_path / "page.md"))


def test_a_block_sees_the_files_and_what_is_given(page, tmp_path):
    with page.ran(tmp_path, {"given": 1}) as ran:
        assert ran.names["doubled"] == 11 and ran.modules["five_of_pages"].FIVE == 5
    assert "five_of_pages" not in sys.modules and str(tmp_path) not in sys.path


def test_a_block_that_fails_is_not_passed_over(page, tmp_path):
    with pytest.raises(NameError, match="given"), page.ran(tmp_path):
        pass
    assert "five_of_pages" not in sys.modules


def test_commands_are_words_without_comments_one_for_each_program(page):
    assert page.commands == [
        ["l2t", "train", "--config", "quick", "name=a"],
        ["make", "run"],
        ["make", "test it"],
        ["l2t", "report"],
        ["l2t", "show", "runs/x"],
    ]


def test_a_quotation_without_an_end_is_no_command(page):
    page.blocks = [page.blocks[0]._replace(language="sh", text='l2t "show\n')]
    with pytest.raises(AssertionError, match="has no end"):
        page.commands  # noqa: B018


@pytest.mark.parametrize("name", PAGES)
def test_no_block_escapes_the_tests_by_not_saying_what_it_is(name):
    assert [block.text for block in PAGES[name].blocks if block.is_untold] == []
    assert PAGES[name].text.count("```") == 2 * len(PAGES[name].blocks)


def test_a_block_of_commands_or_python_must_say_so():
    assert Block("", None, "l2t report\n").is_untold and Block("py", None, "").is_untold
    assert not Block("", None, "runs/x/config.yaml   the settings\n").is_untold
