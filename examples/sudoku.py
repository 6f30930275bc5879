# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Solves Sudoku puzzles with the shipped checkpoint, and compares the orders in which it fills cells.

    python examples/sudoku.py 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
    python examples/sudoku.py PUZZLE --order random
    python examples/sudoku.py --file examples/sudoku_puzzles.csv --orders random,confidence --entropy_bounds 0.01

A puzzle is its 81 cells, row after row, with 0 or . for an empty cell. A terminal shows the grid as it fills. At the
end, the grid is printed beside a second grid that numbers the network evaluation (the event) that filled each cell.
--file prints a table: for each order (one cell per evaluation) and each bound (several cells per evaluation), the share
of puzzles solved and the network evaluations of a puzzle.

The network has learnt grids, not rules. Nothing checks a digit before it fills a cell, and no digit is changed later.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from radd_hf.app.sudoku import Solver, check_empty, check_puzzle, is_valid, solutions, wrong_cells
from radd_hf.endings import note, run_program
from radd_hf.hub.loading import load_model, load_tokenizer
from radd_hf.ranges import COUNT, NOT_NEGATIVE, check_fields
from radd_hf.results import check_output
from radd_hf.settings_radd import ORDERS, TEXT_SETTINGS

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "radd-sudoku"
GIVEN, WRITTEN, NEWEST, WRONG = "bold", "cyan", "bold black on bright_yellow", "bold white on red"


# ---------------------------------------------------------------------------------------------------------
# One puzzle
# ---------------------------------------------------------------------------------------------------------


def board(cells: Sequence[str], style_of: Callable[[int], str], width: int) -> Text:
    """Draws 81 cells in boxes. Each cell is `width` characters wide."""
    text = Text()
    for cell, value in enumerate(cells):
        row, column = divmod(cell, 9)
        if column == 0 and row in (3, 6):
            text.append("+".join(["-" * (3 * width + 1)] * 3) + "\n")
        text.append(" " if column in (0, 3, 6) else "")
        text.append(value.rjust(width - 1), style_of(cell))
        text.append(" " + ("|" if column in (2, 5) else "\n" if column == 8 and row < 8 else ""))
    return text


def shown(grid: str) -> str:
    return grid.replace("0", ".")


class Watch:
    """A streamer of `generate` that draws the grid in the terminal after every network evaluation."""

    def __init__(self, solver: Solver, puzzle: str, live: Live, pause: float):
        self.solver, self.puzzle, self.live, self.pause = solver, puzzle, live, pause
        self.before = puzzle

    def put_draft(self, canvas: torch.Tensor) -> None:
        """Draws a canvas (1, 82), then pauses."""
        grid = self.solver.grid(canvas[0].tolist())
        newest = [cell for cell in range(81) if grid[cell] != self.before[cell]]
        self.live.update(board(shown(grid), lambda cell: self.style(cell, newest), 2), refresh=True)
        self.before = grid
        time.sleep(self.pause)

    def style(self, cell: int, newest: list[int]) -> str:
        return GIVEN if self.puzzle[cell] != "0" else NEWEST if cell in newest else WRITTEN

    def put(self, ids: torch.Tensor) -> None: ...

    def end(self) -> None: ...


def solve_and_show(solver: Solver, puzzle: str, settings: dict[str, Any], pause: float) -> bool:
    """Solves one puzzle, shows it, and tells whether every row, column and box has every digit."""
    console = Console(highlight=False)
    answers = solutions(puzzle)
    if len(answers) > 1:
        note("This puzzle has more than one solution; each of them counts as solved.")
    started = time.perf_counter()
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            output = solver.fill([puzzle], streamer=Watch(solver, puzzle, live, pause), **settings)
    else:
        output = solver.fill([puzzle], **settings)
    seconds = time.perf_counter() - started

    grid = solver.grid(output.sequences[0].tolist())
    wrong = wrong_cells(grid, answers)
    marked = [digit + ("x" if cell in wrong else " ") for cell, digit in enumerate(grid)]
    events = [str(step + 1) if step >= 0 else "." for step in output.reveal_step[0, :81].tolist()]
    table = Table.grid(padding=(0, 6, 0, 0))
    table.add_row("the grid", "the event that filled each cell")
    table.add_row(
        board(marked, lambda cell: WRONG if cell in wrong else GIVEN if puzzle[cell] != "0" else WRITTEN, 3),
        board(events, lambda cell: GIVEN if puzzle[cell] != "0" else WRITTEN, 3),
    )
    console.print(table)
    outcome = "Solved" if is_valid(grid) else f"Not solved: {len(wrong)} cells are wrong (x)"
    evaluations = int(output.num_function_evaluations)
    console.print(f"{outcome}. {puzzle.count('0')} cells, {evaluations} evaluations, {seconds:.1f} s.")
    return is_valid(grid)


# ---------------------------------------------------------------------------------------------------------
# A file of puzzles
# ---------------------------------------------------------------------------------------------------------


def read_puzzles(path: Path) -> list[str]:
    """Returns the column "puzzle" of a CSV file, or the first column of a file without that header.

    Raises:
        ValueError: if a puzzle is invalid or has no empty cell, naming its line; if the file has no puzzles.
    """
    lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    head = lines[0] if lines else []
    column, first = (head.index("puzzle"), 1) if "puzzle" in head else (0, 0)
    puzzles = []
    for number, line in enumerate(lines[first:], start=first + 1):
        if line:
            name = f"file={str(path)!r}, line {number}: puzzle"
            puzzles.append(check_empty(check_puzzle(line[column] if column < len(line) else "", name), name))
    if not puzzles:
        raise ValueError(f"file={str(path)!r} has no puzzle; it must have one on each line, or a column named puzzle.")
    several = sum(len(solutions(puzzle)) > 1 for puzzle in puzzles)
    if several:
        note(f"{several} of the {len(puzzles)} puzzles have more than one solution; each of them counts as solved.")
    return puzzles


def measure(solver: Solver, puzzles: list[str], batch_size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Solves all puzzles in batches. Returns which are solved (a string of 0 and 1), and the mean evaluations."""
    solved, evaluations = "", 0
    for first in range(0, len(puzzles), batch_size):
        output = solver.fill(puzzles[first : first + batch_size], **settings)
        solved += "".join("01"[is_valid(solver.grid(ids))] for ids in output.sequences.tolist())
        evaluations += int(output.num_function_evaluations.sum())
    return {"solved": solved, "evaluations": evaluations / len(puzzles)}


def header(clues: list[int]) -> str:
    groups = "".join(f"{f'{number} clues':>10}" for number in sorted({*clues}))
    return f"{'order':<28}{'solved':>8}{groups}{'evaluations':>13}"


def line(name: str, result: dict[str, Any], clues: list[int]) -> str:
    """Formats a line of the table: shares of puzzles solved, over all and by clues; mean evaluations of a puzzle."""
    text = f"{name:<28}{result['solved'].count('1') / len(clues):>8.1%}"
    for number in sorted({*clues}):
        group = [solved for solved, own in zip(result["solved"], clues, strict=True) if own == number]
        text += f"{group.count('1') / len(group):>10.1%}"
    return f"{text}{result['evaluations']:>13.1f}"


def compare(solver: Solver, puzzles: list[str], args: argparse.Namespace, rows: dict[str, dict]) -> None:
    """Prints the table, and writes the results. Each row is printed and written as soon as it is ready."""
    clues = [81 - puzzle.count("0") for puzzle in puzzles]
    print(
        f"{len(puzzles)} puzzles, temperature {args.temperature:g}, seed {args.seed}\n\n{header(clues)}{'seconds':>9}",
        flush=True,
    )
    results: dict[str, Any] = {"model": Path(args.model).resolve().name, "temperature": args.temperature}
    results |= {"seed": args.seed, "rows": {}}
    for name, settings in rows.items():
        started = time.perf_counter()
        results["rows"][name] = measure(solver, puzzles, args.batch_size, settings)
        seconds = (time.perf_counter() - started) / len(puzzles)
        print(f"{line(name, results['rows'][name], clues)}{seconds:>9.2f}", flush=True)
        if args.output is not None:
            args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------


def settings_of(args: argparse.Namespace, order: str, bound: float | None = None) -> dict[str, Any]:
    """Returns the arguments of `generate`."""
    settings = {"order": order, "temperature": args.temperature, "seed": args.seed}
    return settings if bound is None else settings | {"entropy_bound": bound}


def rows_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the rows of the table: from names to arguments of `generate`."""
    orders = [order.strip() for order in args.orders.split(",")] if args.orders else []
    for order in orders:
        if order not in ORDERS:
            raise ValueError(f"orders={args.orders!r} has {order!r}; each must be one of {ORDERS}.")
    try:
        bounds = [float(bound) for bound in args.entropy_bounds.split(",")] if args.entropy_bounds else []
    except ValueError:
        raise ValueError(f"entropy_bounds={args.entropy_bounds!r} must be numbers, separated by commas.") from None
    for bound in bounds:
        TEXT_SETTINGS["entropy_bound"].check("entropy_bounds", bound)
    if not orders and not bounds:
        raise ValueError("orders='' and entropy_bounds='' leave nothing to compare; pass an order or a bound.")
    rows = {order: settings_of(args, order) for order in orders}
    return rows | {f"entropy, entropy_bound {bound:g}": settings_of(args, "entropy", bound) for bound in bounds}


def check_mode(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuses an argument that would have no effect: one for --file without --file, or one for a puzzle with --file."""
    # From the argument for one puzzle to that for --file.
    of_one = {"order": "orders", "entropy_bound": "entropy_bounds"}
    of_many = {many: one for one, many in of_one.items()} | {"first": None, "output": None}
    for name, other in (of_many if args.file is None else of_one).items():
        if getattr(args, name) != parser.get_default(name):
            mode = "--file" if args.file is None else "one puzzle"
            instead = "" if other is None else f": pass {other} here"
            raise ValueError(f"{name}={str(getattr(args, name))!r} is for {mode}{instead}.")


def main(argv: list[str]) -> bool | None:
    """Returns whether the puzzle is solved; None with --file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("puzzle", nargs="?", help="81 characters, 0 or . for an empty cell")
    parser.add_argument(
        "--order", choices=ORDERS, help="order of filling cells; default: confidence, or entropy with --entropy_bound"
    )
    parser.add_argument("--entropy_bound", type=float, help="bound in nats, to fill several cells per evaluation")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two drawings in a terminal")
    parser.add_argument("--file", type=Path, help="CSV file of puzzles to compare orders on, instead of PUZZLE")
    parser.add_argument(
        "--orders", default="random,forward,confidence,margin,entropy", help="orders to compare with --file; '': none"
    )
    parser.add_argument(
        "--entropy_bounds", default="0.001,0.01,0.1", help="bounds to compare with --file, in nats; '': none"
    )
    parser.add_argument("--first", type=int, help="number of puzzles to read from the file; default: all")
    parser.add_argument("--batch_size", type=int, default=50, help="puzzles of the file that are solved together")
    parser.add_argument("--output", type=Path, help="JSON file to write the results of --file to")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest digit")
    parser.add_argument("--seed", type=int, default=0, help="seed of random orders, and of digits above temperature 0")
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder of a model of grids")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    ranges = {"pause": NOT_NEGATIVE, "first": COUNT, "batch_size": COUNT}
    check_fields({name: getattr(args, name) for name in ranges}, ranges)
    for name in ("entropy_bound", "temperature"):
        TEXT_SETTINGS[name].check(name, getattr(args, name))
    if (args.puzzle is None) == (args.file is None):
        raise ValueError("pass either a puzzle of 81 characters, or --file with a file of puzzles.")
    check_mode(args, parser)
    check_output("output", args.output)

    if args.file is not None:
        rows, puzzles = rows_of(args), read_puzzles(args.file)[: args.first]
    else:
        puzzles = [check_empty(check_puzzle("".join(args.puzzle.split())))]
        order = args.order or ("confidence" if args.entropy_bound is None else "entropy")
    model = load_model(args.model, dtype="float32").to(args.device).eval()
    solver = Solver(model, load_tokenizer(args.model))
    if args.file is None:
        return solve_and_show(solver, puzzles[0], settings_of(args, order, args.entropy_bound), args.pause)
    compare(solver, puzzles, args, rows)
    return None


if __name__ == "__main__":
    run_program(main, Path(sys.argv[0]).name)
