# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the notebook in this folder from its first cell to its last and writes its outputs anew.

    make notebook-outputs

The file keeps no execution counts, times or versions, so that a diff shows what changed.
"""

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
SECONDS = 500  # a cell may take


def execute(notebook: Any, folder: Path) -> None:
    """Runs all cells of a notebook, with `folder` as its working directory, and replaces their outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: from the first cell that raises.
    """
    NotebookClient(
        notebook,
        resources={"metadata": {"path": str(folder)}},
        kernel_name=KERNEL["name"],
        timeout=SECONDS,
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        for part in (cell, *cell.get("outputs", ())):
            if "execution_count" in part:
                part["execution_count"] = None


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook, NOTEBOOK.parent)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
