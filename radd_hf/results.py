# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes results to files: checks a file before the work, makes JSON that any reader accepts, replaces whole files."""

import json
import math
import os
from pathlib import Path
from typing import Any


def check_output(argument: str, path: str | Path | None) -> None:
    """Raises a ValueError for a file that cannot be written. Call it before the work. None means no file."""
    if path is None:
        return
    file = Path(path).absolute()
    if file.is_dir():
        raise ValueError(f"{argument}={str(path)!r} is a folder; it must be a file.")
    if not file.parent.is_dir():
        raise ValueError(f"{argument}={str(path)!r}: there is no folder {str(Path(path).parent)!r}.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ValueError(f"{argument}={str(path)!r} cannot be written: permission denied.")


def to_json(figures: Any, **settings: Any) -> str:
    """Returns figures as JSON, with null for NaN and infinity, which JSON lacks. `settings` go to `json.dumps`."""
    return json.dumps(_finite(figures), allow_nan=False, **settings)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Replaces the text of a file in one step. If the process is killed, the old or the new file is there."""
    beside = path.with_name(f"{path.name}.partial")
    write_synced(beside, text)
    beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk, where they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
