# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Gives every plot one style and saves it twice: for light pages, and for dark ones as NAME-dark beside NAME.

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(WIDTH, 3))
        ...
        return figure

    save_figure(draw, "docs/figures/nfe.png")  # writes nfe.png and nfe-dark.png

A figure is WIDTH inches wide. On a page that shows it 700 pixels wide, every letter is at least 10 pixels high.
matplotlib is optional, and imported only when a figure is drawn: `pip install 'radd_hf[viz]'`.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .results import check_output

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches
DOTS_PER_INCH = 180
FONT_SIZE = 9  # points
SMALL = 8  # points, for text where room is short


@dataclass(frozen=True)
class Theme:
    """Holds the colours of a plot for one kind of page.

    suffix: the end of the file's name.
    ground: the colour of the page.
    ink: the colour of text.
    faint: the colour of lines for comparison.
    colors: the colours of the series, distinct for colour-blind readers, too.
    """

    suffix: str
    ground: str
    ink: str
    faint: str
    colors: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """Returns the settings for `matplotlib.rc_context`."""
        from cycler import cycler

        inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
        grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
        return {
            **dict.fromkeys(inks, self.ink),
            **dict.fromkeys(grounds, self.ground),
            "axes.prop_cycle": cycler(color=self.colors),
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.faint,
            "grid.alpha": 0.3,
            "grid.linewidth": 0.6,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": FONT_SIZE,
            "axes.titlesize": FONT_SIZE,
            "axes.labelsize": FONT_SIZE,
            "xtick.labelsize": SMALL,
            "ytick.labelsize": SMALL,
            "legend.fontsize": SMALL,
            "legend.edgecolor": self.faint,
            "lines.linewidth": 1.5,
            "lines.markersize": 5,
            "errorbar.capsize": 2.5,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.08,  # inches
            "figure.constrained_layout.w_pad": 0.08,
        }


LIGHT = Theme("", "#ffffff", "#1d1f24", "#6b707c", ("#0072b2", "#d55e00", "#009e73", "#8f1d5a", "#4d4410"))
# The ground of Material's scheme "slate".
DARK = Theme("-dark", "#1e2129", "#e2e4e9", "#9298a6", ("#56a8f5", "#ff8a45", "#35c592", "#e8458f", "#f3ebac"))
THEMES = (LIGHT, DARK)


def draw_themed(draw: Callable[[Theme], "Figure"], theme: Theme) -> "Figure":
    """Returns `draw(theme)`, drawn with the settings of the theme."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, theme.settings())):
        return draw(theme)


def figure_paths(path: str | Path) -> list[Path]:
    """Returns the files of a figure: for light pages, and for dark ones."""
    return [Path(path).with_stem(Path(path).stem + theme.suffix) for theme in THEMES]


def save_figure(draw: Callable[[Theme], "Figure"], path: str | Path) -> None:
    """Draws a figure in each theme and writes the files of [`figure_paths`]."""
    for theme, file in zip(THEMES, figure_paths(path), strict=True):
        # Otherwise a PNG holds matplotlib's version, and changes with it.
        metadata = {"Software": None} if file.suffix.lower() == ".png" else None
        figure = draw_themed(draw, theme)
        figure.savefig(file, dpi=DOTS_PER_INCH, facecolor=theme.ground, metadata=metadata)


def check_figure(argument: str, path: str | Path | None) -> None:
    """Raises a ValueError, before the work, for a figure that could not be drawn or written; None names no figure."""
    if path is None:
        return
    require_matplotlib(argument, path)
    from matplotlib.backend_bases import FigureCanvasBase

    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix.removeprefix(".").lower() not in endings:
        raise ValueError(f"{argument}={str(path)!r} must end in one of {endings}.")
    for file in figure_paths(path):
        check_output(argument, file)


def require_matplotlib(argument: str, value: str | Path) -> None:
    """Raises a ValueError if an argument asks for a figure and matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            f"{argument}={str(value)!r} needs matplotlib, which is not installed: pip install 'radd_hf[viz]'"
        )


# ---------------------------------------------------------------------------------------------------------
# Parts of a plot
# ---------------------------------------------------------------------------------------------------------


def ramp() -> "Colormap":
    """Returns the colours of a sequence of steps: viridis without its darkest part, which a dark page would hide."""
    import matplotlib
    import numpy as np
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.2, 1, 256)), name="radd")


def label_values(axis: "Axis", values: Sequence[int], most: int = 10) -> None:
    """Puts a tick at every measured value, and numbers at the last value and at even distances before it."""
    every = math.ceil(len(values) / most)
    texts = [str(value) if (len(values) - 1 - place) % every == 0 else "" for place, value in enumerate(values)]
    axis.set_ticks(values, texts)
    axis.set_ticks([], minor=True)


def label_log(axis: "Axis", most: int = 6) -> None:
    """Gives a logarithmic axis two to `most` ticks with round numbers; call it when all is drawn."""
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(axis.get_view_interval())
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # From sparse to dense. The last choice, that of a linear axis, is for a range too short for the others.
    choices = [[head * 10.0**power for power in powers for head in heads] for heads in ((1,), (1, 3), (1, 2, 5))]
    choices.append(list(MaxNLocator(most - 1, min_n_ticks=2).tick_values(low, high)))
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    ticks = next((ticks for ticks in inside if 3 <= len(ticks) <= most), inside[-1])
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
