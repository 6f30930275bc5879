# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the command `radd` within the test, and makes the folder of a model for it."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from radd_hf.app import cli


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_radd(arguments: list[str], capsys: Any, monkeypatch: Any, stdin: str | None = None) -> SimpleNamespace:
    """Returns exit status, standard output and standard error. Without `stdin`, standard input is a terminal."""
    monkeypatch.setattr(sys, "argv", ["radd"])  # a script renames it
    monkeypatch.setattr(sys, "stdin", Terminal() if stdin is None else io.StringIO(stdin))
    try:
        code = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    written = capsys.readouterr()
    return SimpleNamespace(code=code, out=written.out, err=written.err)


def save_model(path: Path, model: Any, tokenizer: Any) -> str:
    """Saves a model and its tokenizer, and returns the folder."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
