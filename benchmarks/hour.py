# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Prints what one GPU does in an hour, from the seconds that `python -m benchmarks --device cuda` measured.

    python -m benchmarks.hour

The model is the paper's small one (162 million parameters), computed in bfloat16; a text has 1024 tokens. A sample by N
steps has at most N network evaluations.
"""

import argparse
import json
import re
from pathlib import Path

from radd_hf.endings import run_program

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
LENGTH = 1024
# What is asked of the GPU, in which file its seconds are and in which case; groups of the pattern: rows and steps.
TASKS = (
    ("texts generated, {steps} steps", "sampling_h100.json", r"sample, Tweedie, B=(\d+), L=1024, (\d+) steps"),
    ("texts trained on", "speed_h100.json", r"training step, lambda_DCE, B=(\d+), L=1024()"),
)


def tasks_of_an_hour() -> list[tuple[str, int, float]]:
    """Returns for each task what it is, the rows of a batch, and the texts of an hour."""
    found = []
    for task, file, pattern in TASKS:
        for case in json.loads((FIGURES / file).read_text(encoding="utf-8"))["cases"]:
            if named := re.fullmatch(pattern, case["name"]):
                rows, steps = named.groups()
                texts = 3600 / case["sides"]["ours bf16"]["median"] * int(rows)
                found.append((task.format(steps=steps), int(rows), texts))
    return found


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args(argv)
    machine = json.loads((FIGURES / TASKS[0][1]).read_text(encoding="utf-8"))["machine"]
    print(machine["card"], "torch " + machine["torch"], sep=", ", end="\n\n")
    print("| in an hour | texts at once | texts | tokens |\n|---|---:|---:|---:|")
    for task, rows, texts in tasks_of_an_hour():
        print(f"| {task} | {rows} | {texts:,.0f} | {texts * LENGTH / 1e6:,.0f} million |")


if __name__ == "__main__":
    run_program(main, "benchmarks.hour")
