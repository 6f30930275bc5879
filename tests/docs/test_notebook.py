# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The notebook runs from its first cell to its last, and its saved outputs are those of the present code.

Jupyter is not in .venv: `make notebook` installs it beside and runs all of this. Without it the file itself is checked.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from support.paths import ROOT

NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"
SAVED = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = [cell for cell in SAVED["cells"] if cell["cell_type"] == "code"]
LOADED = SAVED["cells"].index(CODE[0]) + 1  # cells up to the one that loads the model
# Tags of cells whose outputs depend on how a machine rounds: the numbers of a training, and texts drawn after it.
NUMBERS_VARY, TEXT_VARIES = "numbers-vary", "text-varies"

needs_jupyter = pytest.mark.skipif(
    importlib.util.find_spec("nbclient") is None, reason="make notebook installs Jupyter"
)


def as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def shown(cell: dict) -> dict[str, str]:
    """Returns what a cell shows, by stream and media type, as far as it must be the same on every machine."""
    found: dict[str, str] = {}
    for output in cell["outputs"]:
        parts = output["data"] if "data" in output else {output["name"]: output["text"]}
        for kind, value in parts.items():
            found[kind] = found.get(kind, "") + re.sub(r"probability [\d.e-]+", "probability", as_text(value))
    tags = cell["metadata"].get("tags", ())
    if TEXT_VARIES in tags:
        return dict.fromkeys(found, "")
    return {kind: re.sub(r"[\d.]+", "#", text) for kind, text in found.items()} if NUMBERS_VARY in tags else found


# ---------------------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------------------


def test_the_file_holds_nothing_that_changes_at_every_run():
    assert set(SAVED["metadata"]) == {"kernelspec", "language_info"}
    assert set(SAVED["metadata"]["language_info"]) == {"name"}
    ids = [cell["id"] for cell in SAVED["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z-]+", cell_id) for cell_id in ids)  # words, which nobody drew
    for cell in CODE:
        assert set(cell["metadata"]) <= {"tags"}
        counts = [part["execution_count"] for part in (cell, *cell["outputs"]) if "execution_count" in part]
        assert set(counts) == {None}


def test_the_saved_outputs_name_no_machine_and_need_no_network():
    text = "".join(json.dumps(cell["outputs"]) for cell in CODE)
    assert not re.search(r"site-packages|/tmp/|/home/|/root/|https?:|<img|<link|\\u001b|\bsrc=", text)
    assert not any(output.get("name") == "stderr" for cell in CODE for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 100_000


def test_each_cell_has_its_output():
    by_id = {cell["id"]: shown(cell) for cell in CODE}
    assert all(by_id.values())
    for cell_id in ("display", "watch"):
        assert 'type="range"' in by_id[cell_id]["text/html"]


def test_the_notebook_links_to_pages_that_exist():
    links = [
        link
        for cell in SAVED["cells"]
        if cell["cell_type"] == "markdown"
        for link in re.findall(r"\]\(([^)#]+)", as_text(cell["source"]))
    ]
    assert len(links) >= 4
    for link in links:
        assert (NOTEBOOK.parent / link).exists(), link


# ---------------------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like the checkout, and nothing of Jupyter's own from before."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("checkpoints", "LICENSE"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "notebooks").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
            (folder / name).mkdir()
            patch.setenv(name, str(folder / name))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def run(folder: Path, number: int | None = None, source: str | None = None) -> list:
    """Runs the first cells of the notebook in a folder; with `source` as the last of them, if it is given."""
    import nbformat

    from notebooks.execute import execute

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = notebook.cells[:number]
    if source is not None:
        notebook.cells[-1].source = source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    execute(notebook, folder)
    nbformat.validate(notebook)
    return notebook.cells


@needs_jupyter
def test_the_notebook_runs_and_shows_what_it_has_saved(checkout):
    for cell, found in zip(SAVED["cells"], run(checkout / "notebooks"), strict=True):
        if cell["cell_type"] == "code":
            assert shown(found) == shown(cell), f"cell {cell['id']}: if this is right, run make notebook-outputs"
    assert not list((checkout / "notebooks").iterdir())


@needs_jupyter
def test_the_notebook_starts_in_the_folder_of_the_checkout_as_well(checkout):
    assert shown(run(checkout, LOADED)[-1]) == shown(CODE[0])


@needs_jupyter
def test_a_cell_that_fails_is_not_passed_over(checkout):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(checkout, LOADED, source="1 / 0")
