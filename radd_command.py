# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs radd_hf/app/cli.py as the console script `radd`. It does not import radd_hf, which takes seconds (torch)."""

import importlib.util
import runpy
from pathlib import Path


def main() -> None:
    package = importlib.util.find_spec("radd_hf")
    if package is None or package.origin is None:
        raise SystemExit("radd: error: the package radd_hf is not installed: pip install radd_hf")
    runpy.run_path(str(Path(package.origin).parent / "app" / "cli.py"), run_name="__main__")


if __name__ == "__main__":
    main()
