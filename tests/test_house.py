# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""How the tests are kept: what they share is in `support`, every room of the package has one here, no file is long."""

import ast
from pathlib import Path

from support.paths import GOLDEN, ROOT

TESTS = ROOT / "tests"
LONGEST = 700  # lines
FILES = [path for path in sorted(TESTS.rglob("*.py")) if GOLDEN not in path.parents]


def imported(path: Path) -> set[str]:
    """Every part of the names of the modules that a file imports, wherever in the file it does."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return {part for name in names for part in name.split(".")}


def test_no_file_imports_a_test_or_conftest():
    assert len(FILES) > 50
    for path in FILES:
        found = {part for part in imported(path) if part.startswith("test_") or part == "conftest"}
        assert not found, f"{path} imports {sorted(found)}: what tests share belongs in tests/support"


def test_every_room_of_the_package_has_its_tests():
    rooms = {path.parent.name for path in (ROOT / "radd_hf").glob("*/*.py")}
    assert {"data", "training", "evaluation", "hub", "app"} <= rooms
    for room in rooms:
        assert list((TESTS / room).glob("test_*.py")), f"tests/{room} has no test"


def test_no_test_file_is_too_long():
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST, f"{path} has {lines} lines: split it by subject"
