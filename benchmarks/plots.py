# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a run: evaluations against steps, time against batch and length, memory against vocabulary."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Points = list[dict[str, Any]]
COLOURS = ("C3", "C0", "C2")  # of the sides, the baseline's first


def plot_nfe(points: Points, path: Path) -> None:
    batches = sorted({(point["batch"], point["length"]) for point in points})
    figure, all_axes = plt.subplots(1, len(batches), figsize=(5 * len(batches), 4), squeeze=False)
    for axes, (batch, length) in zip(all_axes[0], batches, strict=True):
        chosen = [point for point in points if (point["batch"], point["length"]) == (batch, length)]
        steps = [point["steps"] for point in chosen]

        def draw(key: str, label: str, style: str, axes=axes, chosen=chosen, steps=steps) -> None:
            axes.plot(steps, [point[key] for point in chosen], style, label=label)

        axes.plot(steps, steps, ":", color="0.5", label="without a cache")
        draw("forwards_baseline", "baseline: forwards of the batch", "C3o-")
        draw("forwards_ours", "ours: forwards of the batch", "C0o-")
        draw("expected_of_a_row", "expectation of a row", "k--")
        axes.set(xlabel="steps", ylabel="evaluations", title=f"B={batch}, L={length}", xscale="log", yscale="log")
        label_ticks(axes, steps)
        axes.legend(fontsize=8)
    save(figure, path)


def plot_time(points: Points, path: Path) -> None:
    """Against the batch at the length that has several batches, and against the length at one row."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    lengths = [point["length"] for point in points]
    common = max(dict.fromkeys(lengths), key=lengths.count)
    draw_sides(left, [point for point in points if point["length"] == common], "batch")
    left.set(title=f"a step, L={common}", xlabel="rows", ylabel="seconds")
    draw_sides(right, [point for point in points if point["batch"] == 1], "length")
    right.set(title="a step, B=1", xlabel="length", ylabel="seconds")
    save(figure, path)


def plot_memory(points: Points, path: Path) -> None:
    kinds = list(dict.fromkeys(point["what"] for point in points))
    figure, all_axes = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), squeeze=False)
    for axes, kind in zip(all_axes[0], kinds, strict=True):
        draw_sides(axes, [point for point in points if point["what"] == kind], "vocab_size")
        axes.set(title=kind, xlabel="vocabulary", ylabel="MB above the weights")
    save(figure, path)


def draw_sides(axes, points: Points, key: str) -> None:
    points = sorted(points, key=lambda point: point[key])
    sides = points[0]["sides"] if points else ()
    for side, colour in zip(sides, COLOURS, strict=False):
        values = [point["sides"][side]["median"] for point in points]
        axes.plot([point[key] for point in points], values, "o-", color=colour, label=side)
    axes.set(xscale="log", yscale="log")
    label_ticks(axes, [point[key] for point in points])
    axes.legend(fontsize=8)


def label_ticks(axes, values: list[int]) -> None:
    """Ticks where something was measured, with the number itself rather than a power of ten."""
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


PLOTS = {"nfe": plot_nfe, "time": plot_time, "memory": plot_memory}
