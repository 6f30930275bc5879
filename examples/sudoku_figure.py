# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws one Sudoku puzzle as the shipped checkpoint fills it, in random order and most confident first.

    pip install 'radd_hf[viz]'
    python examples/sudoku_figure.py
    python examples/sudoku_figure.py --puzzle PUZZLE --output sudoku.png

The colour of a cell is the event that filled it, white cells are given, and crossed ones are wrong.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from radd_hf.app.sudoku import Solver, check_empty, check_puzzle, solutions, wrong_cells
from radd_hf.endings import run_program
from radd_hf.hub.loading import load_model, load_tokenizer
from sudoku import CHECKPOINT, read_puzzles

PUZZLES = Path(__file__).parent / "sudoku_puzzles.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "sudoku.png"
PANELS = {"random": "random order", "confidence": "most confident first"}


def draw_grid(axes: Axes, grid: str, event: np.ndarray, wrong: set[int], last: int) -> None:
    """Draws 81 cells by the event that filled each, -1 where it was given."""
    image = axes.imshow(np.ma.masked_less(event, 0).reshape(9, 9), cmap="viridis", vmin=0, vmax=last)
    for cell, digit in enumerate(grid):
        row, column = divmod(cell, 9)
        given, dark = event[cell] < 0, event[cell] < 0.6 * last
        colour = "black" if given or not dark else "white"
        axes.text(column, row, digit, ha="center", va="center", fontsize=13, color=colour, alpha=0.55 if given else 1)
        if cell in wrong:
            axes.plot([column - 0.4, column + 0.4], [row - 0.4, row + 0.4], color="red", linewidth=2)
            axes.plot([column - 0.4, column + 0.4], [row + 0.4, row - 0.4], color="red", linewidth=2)
    for line in range(10):
        width = 2 if line % 3 == 0 else 0.5
        axes.axhline(line - 0.5, color="black", linewidth=width)
        axes.axvline(line - 0.5, color="black", linewidth=width)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.figure.colorbar(image, ax=axes, label="event", fraction=0.046)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--puzzle", help="81 characters, 0 or . for an empty cell; default: the first shipped one")
    parser.add_argument("--output", type=Path, default=FIGURE)
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    args = parser.parse_args(argv)
    puzzle = read_puzzles(PUZZLES)[0] if args.puzzle is None else check_empty(check_puzzle(args.puzzle))
    solver = Solver(load_model(str(CHECKPOINT), dtype="float32").eval(), load_tokenizer(str(CHECKPOINT)))

    figure, panels = plt.subplots(1, len(PANELS), figsize=(10, 4.4), constrained_layout=True)
    for axes, (order, title) in zip(panels, PANELS.items(), strict=True):
        output = solver.fill([puzzle], order=order, temperature=0.0, seed=args.seed)
        grid = solver.grid(output.sequences[0].tolist())
        wrong = wrong_cells(grid, solutions(puzzle))
        draw_grid(axes, grid, output.reveal_step[0, :81].numpy(), wrong, puzzle.count("0") - 1)
        outcome = f"{len(wrong)} cells wrong" if wrong else "solved"
        axes.set_title(f"{title}: {outcome}")
        print(f"{title}: {outcome}")
    figure.savefig(args.output, dpi=90, metadata={"Software": None})
    plt.close(figure)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_program(main, Path(sys.argv[0]).name)
