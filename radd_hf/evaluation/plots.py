# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Plots the quality and the cost of samples against the number of steps."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..figure_style import WIDTH, Theme, label_log, label_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERPLEXITY, ENTROPY, NFE = "generative perplexity (judge model)", "entropy of the tokens (nats)", "evaluations (NFE)"
MARKERS = "osD^v"


def quality_figure(result: dict, theme: Theme) -> "Figure":
    """Plots perplexity, entropy and NFE, measured and by the formula, against the steps. `result` is as in the JSON."""
    from matplotlib.figure import Figure

    judged = result["judge"] is not None
    layout = [[PERPLEXITY, ENTROPY], [NFE, "legend"]] if judged else [[ENTROPY, NFE], ["legend", "legend"]]
    figure = Figure(figsize=(WIDTH, 6 if judged else 4.5))
    panels = figure.subplot_mosaic(cast(Any, layout), height_ratios=(1, 1 if judged else 0.45))
    series: dict[str, list[dict]] = {}
    for row in result["rows"]:
        series.setdefault(series_of(row), []).append(row)
    ticks = sorted({row["steps"] or result["length"] for row in result["rows"]})
    for number, (name, rows) in enumerate(series.items()):
        style = {
            "color": theme.colors[number % len(theme.colors)],
            "marker": MARKERS[number % len(MARKERS)],
            "fillstyle": "none",
        }
        # Methods of one distribution agree, and their points would hide each other.
        shift = 1.04 ** (number - (len(series) - 1) / 2)
        for panel in layout[0] if judged else [ENTROPY]:
            draw_heights(panels[panel], panel, rows, shift, {**style, "label": name})
        if rows[0]["nfe_formula"] is not None:
            draw_nfe(panels[NFE], rows, result["length"], style)
    panels[NFE].plot(ticks, ticks, color=theme.faint, linestyle=":", label="one per step")
    panels[NFE].plot([], [], color=theme.ink, linewidth=1, label="NFE by the formula")
    panels[NFE].set_yscale("log")
    for panel, axes in panels.items():
        if panel == "legend":
            continue
        if panel != NFE and result["reference"] is not None:
            text = f"text of {Path(result['reference']['text']).name}"
            axes.axhline(height(panel, result["reference"])[0], color=theme.ink, linestyle="-.", label=text)
        axes.set_xscale("log")
        axes.set(xlabel="steps", ylabel=panel)
        label_values(axes.xaxis, ticks)
    label_values(panels[NFE].yaxis, ticks)
    if judged:
        panels[PERPLEXITY].set_yscale("log")
        label_log(panels[PERPLEXITY].yaxis)
    add_legend(panels["legend"], [panels[ENTROPY], panels[NFE]], columns=1 if judged else 3)
    return figure


def draw_heights(axes: "Axes", panel: str, rows: list[dict], shift: float, style: dict[str, Any]) -> None:
    """Draws a series with its standard errors. A method without steps is one horizontal line."""
    values, errors = zip(*(height(panel, row) for row in rows), strict=True)
    steps = [row["steps"] for row in rows]
    if steps == [None] and rows[0]["nfe_formula"] is not None:
        axes.axhline(values[0], color=style["color"], linestyle="--", label=style["label"])
        return
    # A method that chooses its number of steps is drawn at the measured number.
    steps = [rows[0]["nfe"]] if steps == [None] else steps
    axes.errorbar([step * shift for step in steps], values, errors, linewidth=1.2, **style)


def draw_nfe(axes: "Axes", rows: list[dict], length: int, style: dict[str, Any]) -> None:
    steps = [row["steps"] or length for row in rows]
    axes.plot(steps, [row["nfe"] for row in rows], linestyle="none", **style)
    axes.plot(steps, [row["nfe_formula"] for row in rows], color=style["color"], linewidth=1)


def add_legend(axes: "Axes", panels: "list[Axes]", columns: int) -> None:
    """Draws one legend for all panels into an empty panel."""
    entries: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    axes.axis("off")
    axes.legend(list(entries.values()), list(entries), loc="center", ncols=columns)


def series_of(row: dict) -> str:
    """Returns the name of a row's series. The rows of a series differ only in their steps."""
    name = row["method"] if row["order"] is None else f"{row['method']} {row['order']}"
    for bound, word in (("entropy_bound", "bound"), ("confidence_threshold", "threshold")):
        if row.get(bound) is not None:
            name += f", {word} {row[bound]:g}"
    return name if row.get("schedule") is None else f"{name}, {row['schedule']}"


def height(panel: str, figures: dict) -> tuple[float, float]:
    """Returns the value of a point in a panel, and its standard error."""
    if panel == PERPLEXITY and figures["judgement"] is None:  # all samples are empty
        return math.nan, math.nan
    if panel == PERPLEXITY:
        return figures["judgement"]["perplexity"], figures["judgement"]["perplexity_error"]
    return figures["token_entropy"], figures["token_entropy_error"]
