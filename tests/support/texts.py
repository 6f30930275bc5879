# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts that tests read: to train on, and the README's."""

import re

from support.paths import ROOT

SENTENCES = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"
# The README's lines of Python: a folder of ours, the authors' repository, the same by AutoModel.
README_CODE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
TEXTS = [f"Document {number}: {'on ' * (number % 7)}and so it ends." for number in range(300)]
