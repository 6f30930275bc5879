# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Paths of the repository, and names of the files there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CHECKPOINT = ROOT / "checkpoints" / "radd-austen"
SUDOKU = ROOT / "checkpoints" / "radd-sudoku"
# The code in a checkpoint's folder, and its entries in config.json.
SHIPPED = tuple(
    f"{name}_radd.py"
    for name in (
        "settings",
        "configuration",
        "noise",
        "randomness",
        "text",
        "kernels",
        "inputs",
        "canvas",
        "display",
        "programs",
        "plan",
        "policy",
        "speculation",
        "draw",
        "state",
        "generation",
        "modeling",
        "pipeline",
    )
)
AUTO_MAP = {
    "AutoConfig": "configuration_radd.RaddConfig",
    "AutoModel": "modeling_radd.RaddForMaskedLM",
    "AutoModelForCausalLM": "modeling_radd.RaddForCausalLM",
    "AutoModelForMaskedLM": "modeling_radd.RaddForMaskedLM",
}


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder, by its path there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
