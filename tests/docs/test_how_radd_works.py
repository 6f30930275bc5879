"""docs/how_radd_works.md: its code is the script's and its numbers are those that the script prints."""

import re

import pytest

from docs import how_radd_works
from support.paths import ROOT

PAGE = (ROOT / "docs/how_radd_works.md").read_text()
SCRIPT = (ROOT / "docs/how_radd_works.py").read_text()


@pytest.fixture(scope="module")
def printed():
    """The script ends with an error where two of its sums differ that should not."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(how_radd_works, "print", lambda *parts: lines.append(" ".join(parts)), raising=False)
        how_radd_works.main()
    return "\n".join(lines) + "\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_shows_lines_of_the_script():
    assert len(blocks("python")) >= 7
    for block in blocks("python"):
        assert f"\n{block}" in SCRIPT


def test_what_the_page_shows_as_printed_is_printed(printed):
    assert len(blocks("text")) >= 9
    for block in blocks("text"):
        assert f"\n{block}" in f"\n{printed}"


def test_the_page_leaves_nothing_out_that_is_printed(printed):
    shown = "".join(blocks("text"))
    assert [line for line in printed.split("\n") if line and line not in shown] == []


def test_every_number_in_the_text_of_the_page_is_printed(printed):
    text = re.sub(r"```.*?```|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+", "", PAGE, flags=re.DOTALL)
    text = re.sub(
        r"\((?:[A-Z]\.)?\d+(?:\.\d+)?\)|section \d(\.\d)?|Theorem 2|version 4", "", text
    )  # where it stands in the paper
    numbers = re.findall(r"\b\d[\d,.]*\d\b", text)
    assert numbers
    assert [number for number in numbers if number not in printed] == []
