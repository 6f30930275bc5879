# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws the figures of docs/ from the recorded results, without measuring again.

    pip install 'radd_hf[viz]'
    python -m benchmarks.plots                 # draws docs/figures/*.png, each for light and for dark pages
    python -m benchmarks.plots --results DIR   # draws those of the results in another folder, into it

It reads speed.json, partial_caching.json and generative_quality.json. `python -m benchmarks`,
`python -m benchmarks.partial_caching` and `eval_generation.py` write them.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from radd_hf.endings import run_program
from radd_hf.evaluation.plots import quality_figure
from radd_hf.figure_style import WIDTH, Theme, figure_paths, label_log, label_values, save_figure

from .commands import ROOT

FIGURES = ROOT / "docs" / "figures"
Points = list[dict[str, Any]]
SIDES = {"baseline": (1, "o-"), "ours fp32": (0, "s-"), "ours bf16": (2, "D-")}  # place in the palette, style


def nfe_figure(points: Points, theme: Theme) -> Figure:
    """Plots the network evaluations of a batch against the steps, with a panel for each size of the batch."""
    sizes = sorted({(point["batch"], point["length"]) for point in points})
    figure = Figure(figsize=(WIDTH, 3.4 * len(sizes)))
    for axes, (batch, length) in zip(figure.subplots(len(sizes), squeeze=False)[:, 0], sizes, strict=True):
        chosen = [point for point in points if (point["batch"], point["length"]) == (batch, length)]
        steps = [point["steps"] for point in chosen]

        def draw(key: str, label: str, style: str, color: str, axes=axes, chosen=chosen, steps=steps) -> None:
            axes.plot(steps, [point[key] for point in chosen], style, color=color, label=label)

        axes.plot(steps, steps, ":", color=theme.faint, label="without a cache: one per step")
        draw("forwards_baseline", "baseline, whole batch", "o-", theme.colors[1])
        draw("forwards_ours", "ours, whole batch", "s-", theme.colors[0])
        draw("expected_of_a_row", "expected for one sequence", "--", theme.ink)
        axes.set(xlabel="steps", ylabel="network evaluations", xscale="log", yscale="log")
        axes.set_title(f"{batch} sequences of {length} tokens")
        label_values(axes.xaxis, steps)
        label_log(axes.yaxis)
        axes.legend(loc="upper left")
    return figure


def time_figure(points: Points, theme: Theme) -> Figure:
    """Plots the time of a step against the batch size, at the most common length, and against the length."""
    figure = Figure(figsize=(WIDTH, 3.4))
    left, right = figure.subplots(1, 2, sharey=True)
    lengths = [point["length"] for point in points]
    common = max(dict.fromkeys(lengths), key=lengths.count)
    draw_sides(left, [point for point in points if point["length"] == common], "batch", theme)
    left.set(title=f"sequences of {common} tokens", xlabel="sequences in the batch", ylabel="seconds per step")
    draw_sides(right, [point for point in points if point["batch"] == 1], "length", theme)
    right.set(title="one sequence", xlabel="length (tokens)")
    label_log(left.yaxis)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def memory_figure(points: Points, theme: Theme) -> Figure:
    """Plots memory against the size of the vocabulary, with a panel for each kind of step."""
    kinds = list(dict.fromkeys(point["what"] for point in points))
    figure = Figure(figsize=(WIDTH, 3.4))
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        draw_sides(axes, [point for point in points if point["what"] == kind], "vocab_size", theme)
        axes.set(title=kind, xlabel="vocabulary (tokens)", ylabel="MB above the weights")
        label_log(axes.yaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_sides(axes: Axes, points: Points, key: str, theme: Theme) -> None:
    points = sorted(points, key=lambda point: point[key])
    values = [point[key] for point in points]
    for side in points[0]["sides"]:
        place, style = SIDES["baseline" if side.startswith("baseline") else side]
        heights = [point["sides"][side]["median"] for point in points]
        axes.plot(values, heights, style, color=theme.colors[place], label=side)
    axes.set(xscale="log", yscale="log")
    label_values(axes.xaxis, values)


def partial_caching_figure(outcomes: Points, theme: Theme) -> Figure:
    """Plots time and error of each setting, one line each, with the slowest on top."""
    exact = next(outcome for outcome in outcomes if outcome["interval"] == 1)
    ordered = sorted(outcomes, key=lambda outcome: outcome["seconds"])
    places = range(len(ordered))
    figure = Figure(figsize=(WIDTH, 3.6))
    time, kl, nll = figure.subplots(1, 3, sharey=True)
    seconds = [outcome["seconds"] for outcome in ordered]
    time.barh(places, seconds, color=theme.colors[0], height=0.6)
    time.set(title="time", xlabel="seconds")
    time.set_yticks(places, [name_setting(outcome) for outcome in ordered])
    time.set_ylabel("refresh_interval, refresh_window")
    for axes, name, title in ((kl, "kl", "KL to the exact sampler"), (nll, "nll_above", "NLL above the exact sampler")):
        values = [outcome[name] for outcome in ordered]
        errors = [1.96 * outcome[f"{name}_error"] for outcome in ordered]
        axes.errorbar(values, places, xerr=errors, fmt="o", color=theme.colors[1], label="mean, 95 % interval")
        axes.axvline(0, color=theme.ink, linewidth=0.8)
        axes.axvline(0.01 * exact["nll"], color=theme.faint, linestyle="--", label="1 % of the NLL")
        axes.set(title=title, xlabel="nats per token")
    figure.legend(*kl.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def name_setting(outcome: dict[str, Any]) -> str:
    return "exact" if outcome["interval"] == 1 else f"{outcome['interval']}, {outcome['window']}"


SPEED_FIGURES: dict[str, Callable[[Points, Theme], Figure]] = {
    "nfe": nfe_figure,
    "time": time_figure,
    "memory": memory_figure,
}


def recorded_figures(folder: Path) -> dict[str, Callable[[Theme], Figure]]:
    """Returns a function to draw each figure whose results are in the folder."""

    def read(name: str) -> dict[str, Any]:
        path = folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    speed, partial_caching, quality = map(read, ("speed", "partial_caching", "generative_quality"))
    figures: dict[str, Callable[[Theme], Figure]] = {
        name: partial(draw, speed[name]) for name, draw in SPEED_FIGURES.items() if name in speed
    }
    if partial_caching:
        figures["partial_caching"] = partial(partial_caching_figure, partial_caching["outcomes"])
    if quality:
        figures["generative_quality"] = partial(quality_figure, quality)
    return figures


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=FIGURES, help="folder with the results; the figures are written to it"
    )
    args = parser.parse_args(argv)
    figures = recorded_figures(args.results)
    if not figures:
        raise ValueError(f"results={str(args.results)!r} must be a folder with a result, such as speed.json.")
    for name, draw in figures.items():
        save_figure(draw, args.results / f"{name}.png")
        print(f"wrote {' and '.join(map(str, figure_paths(args.results / f'{name}.png')))}")


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.plots")
