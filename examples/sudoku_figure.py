# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws a Sudoku puzzle as the shipped checkpoint fills it, in random order and most confident first.

    pip install 'radd_hf[viz]'
    python examples/sudoku_figure.py
    python examples/sudoku_figure.py --puzzle PUZZLE --output sudoku.png

The colour of a cell shows which network evaluation (event) filled it. Cells without colour are given, and crossed cells
are wrong. A second file, NAME-dark beside NAME, is for dark pages.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from radd_hf.app.sudoku import Solver, check_empty, check_puzzle, solutions, wrong_cells
from radd_hf.endings import run_program
from radd_hf.figure_style import LIGHT, WIDTH, Theme, check_figure, figure_paths, ramp, save_figure
from radd_hf.hub.loading import load_model, load_tokenizer
from sudoku import CHECKPOINT, read_puzzles

PUZZLES = Path(__file__).parent / "sudoku_puzzles.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "sudoku.png"
PANELS = {"random": "random order", "confidence": "most confident first"}


class Filled(NamedTuple):
    """A filled grid: its 81 digits, the event that filled each cell (81,), 0 for a given one, and the wrong cells."""

    title: str
    grid: str
    event: np.ndarray
    wrong: set[int]


def fill(solver: Solver, puzzle: str, seed: int) -> list[Filled]:
    filled = []
    for order, name in PANELS.items():
        output = solver.fill([puzzle], order=order, temperature=0.0, seed=seed)
        grid = solver.grid(output.sequences[0].tolist())
        wrong = wrong_cells(grid, solutions(puzzle))
        outcome = f"{len(wrong)} cells wrong" if wrong else "solved"
        filled.append(Filled(f"{name}: {outcome}", grid, output.reveal_step[0, :81].numpy() + 1, wrong))
    return filled


def draw_grid(axes: Axes, filled: Filled, theme: Theme) -> AxesImage:
    event, last = filled.event, filled.event.max()
    image = axes.imshow(np.ma.masked_equal(event, 0).reshape(9, 9), cmap=ramp(), vmin=1, vmax=last)
    for cell, digit in enumerate(filled.grid):
        row, column = divmod(cell, 9)
        on_colour = LIGHT.ground if event[cell] < 0.5 * last else LIGHT.ink
        colour = theme.faint if event[cell] == 0 else on_colour
        axes.text(column, row, digit, ha="center", va="center", fontsize=13, color=colour)
        if cell in filled.wrong:
            cross_out(axes, row, column)
    for line in range(10):
        width = 2 if line % 3 == 0 else 0.5
        axes.axhline(line - 0.5, color=theme.ink, linewidth=width)
        axes.axvline(line - 0.5, color=theme.ink, linewidth=width)
    axes.grid(visible=False)
    axes.set(title=filled.title, xticks=[], yticks=[], xlim=(-0.55, 8.55), ylim=(8.55, -0.55))
    axes.spines[:].set_visible(False)
    return image


def cross_out(axes: Axes, row: int, column: int) -> None:
    """Draws a cross that leaves room for the digit in its middle."""
    halo = [patheffects.withStroke(linewidth=4, foreground=LIGHT.ground)]
    for right, down in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        x, y = [column + right * 0.24, column + right * 0.4], [row + down * 0.24, row + down * 0.4]
        axes.plot(x, y, color="#c1121f", linewidth=2, path_effects=halo)


def sudoku_figure(grids: list[Filled], theme: Theme) -> Figure:
    """Draws the filled grids beside each other, with one colour scale."""
    figure = Figure(figsize=(WIDTH, 3.5))
    panels = figure.subplots(1, len(grids))
    images = [draw_grid(axes, filled, theme) for axes, filled in zip(panels, grids, strict=True)]
    last = int(grids[0].event.max())
    ticks = sorted({1, *range(10, last - 4, 10), last})
    bar = figure.colorbar(images[0], ax=panels, fraction=0.03, pad=0.02, shrink=0.9, ticks=ticks)
    bar.set_label("event that filled the cell")
    return figure


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--puzzle", help="81 characters, 0 or . for an empty cell; default: the first shipped puzzle")
    parser.add_argument("--output", type=Path, default=FIGURE, help="image file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random order")
    args = parser.parse_args(argv)
    check_figure("output", args.output)
    puzzle = read_puzzles(PUZZLES)[0] if args.puzzle is None else check_empty(check_puzzle(args.puzzle))
    solver = Solver(load_model(str(CHECKPOINT), dtype="float32").eval(), load_tokenizer(str(CHECKPOINT)))
    grids = fill(solver, puzzle, args.seed)
    for filled in grids:
        print(filled.title)
    save_figure(partial(sudoku_figure, grids), args.output)
    print(f"wrote {' and '.join(map(str, figure_paths(args.output)))}")


if __name__ == "__main__":
    run_program(main, Path(sys.argv[0]).name)
