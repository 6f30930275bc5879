# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Prints how many texts one GPU handles in an hour, from the times of `python -m benchmarks --device cuda`.

    python -m benchmarks.hour

The model is the paper's small one (162 million parameters), in bfloat16. A text has 1024 tokens. A sample with N steps
takes at most N network evaluations.
"""

import argparse
import json
import re
from pathlib import Path

from radd_hf.endings import run_program

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
LENGTH = 1024
# The task, the file that holds its times, and the pattern of its case, whose groups are rows and steps.
TASKS = (
    ("texts generated, {steps} steps", "sampling_h100.json", r"sample, Tweedie, B=(\d+), L=1024, (\d+) steps"),
    ("texts trained on", "speed_h100.json", r"training step, lambda_DCE, B=(\d+), L=1024()"),
)


def tasks_of_an_hour() -> list[tuple[str, int, float]]:
    """Returns the name of each task, the rows of a batch, and the texts per hour."""
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
