# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks the layout of the repository: imports point one way, and each room (subpackage) has tests of its own."""

import ast
import re
from pathlib import Path

from support.paths import GOLDEN, ROOT

TESTS = ROOT / "tests"
LONGEST = 700  # lines
FILES = [path for path in sorted(TESTS.rglob("*.py")) if GOLDEN not in path.parents]


def imported(path: Path) -> set[str]:
    """Returns every part of the dotted names that a file imports, anywhere in the file."""
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


# Floors of the package, lowest first: a module may import from its own line and the lines before it.
ORDER = (
    ("settings_radd", "randomness_radd", "version", "endings", "options", "results", "ranges", "figure_style"),
    ("configuration_radd", "noise_radd"),
    ("text_radd", "kernels_radd", "inputs_radd", "canvas_radd", "display_radd"),
    ("programs_radd", "plan_radd", "policy_radd", "speculation_radd"),
    ("draw_radd",),
    ("state_radd",),
    ("generation_radd",),
    ("pipeline_radd",),
    ("modeling_radd",),
    ("losses",),
    ("policy_likelihood",),
    ("likelihood", "information", "processes"),
    ("__init__",),
    ("data",),
    ("hub",),
    ("evaluation",),
    ("training",),
    ("jobs", "serving"),
    ("app", "__main__"),
)
FLOOR = {name: floor for floor, names in enumerate(ORDER) for name in names}


def first_part(path: Path) -> str:
    """Returns the subpackage that a file is in, or the name of a module outside of them."""
    return path.relative_to(ROOT / "radd_hf").parts[0].removesuffix(".py")


def names_of_the_package(path: Path) -> set[str]:
    """Returns the subpackages and modules of the package that a file imports, within functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            inside = path.parent
            for _ in range(max(node.level - 1, 0)):
                inside = inside.parent
            parts = (node.module or "").split(".") if node.module else []
            if not node.level:
                if parts[:1] != ["radd_hf"]:
                    continue
                inside, parts = ROOT / "radd_hf", parts[1:]
            for alias in node.names:
                target = inside.joinpath(*parts)
                if target == ROOT / "radd_hf":  # from .. import name: a subpackage, a module or a name of __init__
                    known = (target / alias.name).is_dir() or (target / f"{alias.name}.py").is_file()
                    found.add(alias.name if known else "__init__")
                else:
                    found.add(first_part(target))
    return found


def test_imports_point_one_way():
    files = list((ROOT / "radd_hf").rglob("*.py"))
    assert {first_part(path) for path in files} == set(FLOOR)
    for path in files:
        own = first_part(path)
        if own == "__init__":  # which imports from higher floors, but only when a name is used
            continue
        above = {name for name in names_of_the_package(path) if FLOOR[name] > FLOOR[own]}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def names_its_encoding(call: ast.Call) -> bool:
    """Tells whether a call that opens a file says how its bytes are text, or that they are none."""
    mode = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    binary = any(isinstance(value, str) and re.fullmatch(r"[rwax]b\+?", value) for value in mode)
    return binary or any(keyword.arg in ("encoding", None) for keyword in call.keywords)


def test_every_file_of_text_is_opened_with_its_encoding():
    """Python's default is that of the machine, which need not be UTF-8."""
    sources = [
        path for folder in ("radd_hf", "benchmarks", "examples", "docs") for path in (ROOT / folder).rglob("*.py")
    ]
    for path in (*sources, *ROOT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            foreign = isinstance(owner, ast.Name) and owner.id in ("os", "Image", "kept", "zstandard")
            if name in ("read_text", "write_text", "FileHandler") or (name == "open" and not foreign):
                assert names_its_encoding(node), (
                    f"{path.relative_to(ROOT)}:{node.lineno} opens text without its encoding"
                )
