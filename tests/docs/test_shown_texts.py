"""docs/: what a page shows beneath its lines of Python is what they print."""

import re

import pytest

from support.paths import GOLDEN, ROOT

BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", flags=re.DOTALL)
PAGES = ("quickstart", "generation", "sudoku")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_what_its_lines_print(page, monkeypatch, capsys):
    """Another processor may round differently, and then some texts differ; most lines stay."""
    monkeypatch.chdir(ROOT)
    names, shown, printed = {"__name__": "a_page"}, [], []
    for code, output in BLOCK.findall((ROOT / f"docs/{page}.md").read_text()):
        exec(compile(code.replace("JingyangOu/radd-t-dce", str(GOLDEN / "hub")), page, "exec"), names)
        found = capsys.readouterr().out
        if output:
            shown, printed = shown + output.splitlines(), printed + found.splitlines()
    assert len(shown) >= 1
    assert len(printed) == len(shown)
    differ = sum(one != other for one, other in zip(shown, printed, strict=True))
    assert differ <= len(shown) / 2
