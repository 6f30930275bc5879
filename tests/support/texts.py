# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts for tests: some to train on, and the code of README and docs."""

import re

from support.paths import ROOT

SENTENCES = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


def python_of(page: str) -> list[str]:
    """Returns the blocks of Python in a Markdown file of the repository."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


# The lines by which the README loads a model and fills a text.
README_CODE = python_of("README.md")[0]
# The lines that load the authors' model: by our class, and by transformers' auto class.
AUTHORS_CODE = [code for code in python_of("docs/migrating.md") if '"JingyangOu/radd-t-dce"' in code]
TEXTS = [f"Document {number}: {'on ' * (number % 7)}and so it ends." for number in range(300)]
