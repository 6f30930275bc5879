# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills one Sudoku puzzle in two orders, and draws both boards as HTML that plays, for the page of `page.py`.

    puzzle, two orders -> denoise, one after the other -> two boards, whose cells appear event by event

An event is a network evaluation that fills cells. The boards play in the browser, by CSS. So the model does not wait
for the reader, and both boards play at once.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..display_radd import number_of
from ..hub.loading import load
from ..settings_radd import BOUNDS, ORDERS, TEXT_SETTINGS, is_adaptive, shortened
from .live import check_text, choose_seed, denoise
from .sudoku import Solver, check_empty, check_puzzle, is_valid, solutions, wrong_cells
from .turns import Stop
from .visualize import ramp_color

# The checkpoint that solves puzzles, in the folder of the page's first model.
CHECKPOINT = "radd-sudoku"
# The most partial grids that a search for solutions visits; they take a second or two. Most puzzles need one grid, hard
# puzzles a few hundred.
MOST_TRIES = 10_000
TITLES = {
    "forward": "left to right",
    "backward": "right to left",
    "random": "random order",
    "confidence": "most confident first",
    "margin": "largest margin first",
    "entropy": "lowest entropy first",
}
PLAYED, LONGEST_BEAT = 8.0, 0.4  # the most seconds that the longer board plays, and that one event takes


def checkpoint_beside(model: str) -> str | None:
    """Returns the folder of the checkpoint that solves puzzles if it lies beside the folder `model`."""
    folder = Path(model).absolute().parent / CHECKPOINT
    return str(folder) if Path(model).is_dir() and folder.is_dir() else None


@lru_cache(maxsize=1)
def load_solver(path: str) -> Solver:
    return Solver(*load(path, None, device=None))


def solve(
    stop: Stop, *, model: str, puzzle: str, left: str, right: str, entropy_bound: float | None, seed: int | None = None
) -> Iterator[tuple[str, str]]:
    """Fills a puzzle in two orders. Yields the boards and a line about them; the boards stay empty until the end.

    Args:
        puzzle: 81 cells, with 0 or . in empty ones; spaces are ignored. left, right: the orders of the boards.
        entropy_bound: bound of adaptive orders; None: one cell per event.

    Raises:
        ValueError: for an invalid puzzle or order, before any cell is filled.
    """
    for name, order in (("left", left), ("right", right)):
        if order not in ORDERS:
            raise ValueError(f"{name}={shortened(order)} must be one of {ORDERS}.")
    TEXT_SETTINGS["entropy_bound"].check("entropy_bound", entropy_bound)
    puzzle, answers = read_puzzle(puzzle)
    solver, seed, started = load_solver(model), choose_seed(seed), time.monotonic()
    (canvas,) = solver.canvas([puzzle])  # (82,)
    outputs: list[Any] = []
    unfilled = side_by_side(
        render_board(TITLES[order], puzzle, puzzle, [-1] * 81, set(), "", 0) for order in (left, right)
    )
    for order in (left, right):
        bounds = {"entropy_bound": entropy_bound} if is_adaptive(order) else dict.fromkeys(BOUNDS)
        settings = {"method": "ordered", "order": order, "temperature": 0.0, "seed": seed} | bounds
        output = None
        for drafts, output in denoise(solver.model, canvas, stop=stop, **settings):
            empty = solver.grid(drafts[0].tolist()).count("0")
            if output is None:
                yield unfilled, f"{TITLES[order]}: {puzzle.count('0') - empty} of {puzzle.count('0')} cells filled"
        if output is None:
            yield unfilled, stop.reason
            return
        outputs.append(output)
    beat = min(LONGEST_BEAT, PLAYED / max(evaluations_of(output) for output in outputs))
    boards = (
        render_output(solver, puzzle, answers, output, TITLES[order], beat)
        for order, output in zip((left, right), outputs, strict=True)
    )
    cells = number_of(puzzle.count("0"), "empty cell")
    again = '<button type="button" class="radd-again" data-radd="again">Play again</button>'
    yield side_by_side(boards) + again, f"{cells} · both boards in {time.monotonic() - started:.1f} s"


def side_by_side(boards: Iterable[str]) -> str:
    return f'<div class="radd-puzzles">{"".join(boards)}</div>'


def read_puzzle(text: str) -> tuple[str, list[str]]:
    """Returns the puzzle in a text, and its solution, or two solutions if there are several.

    Raises:
        ValueError: for an invalid puzzle, and for one whose solutions take too long to find.
    """
    check_text("puzzle", text, 82)
    puzzle, tries = "".join(text.split()), 0

    def visit() -> None:
        nonlocal tries
        tries += 1
        if tries > MOST_TRIES:
            raise ValueError(f"puzzle={puzzle!r} takes too long to solve by search: give it more clues.")

    puzzle = check_empty(check_puzzle(puzzle, visit=visit))
    return puzzle, solutions(puzzle, visit=visit)


def evaluations_of(output: Any) -> int:
    return int(cast(Tensor, output.num_function_evaluations)[0])


def render_output(solver: Solver, puzzle: str, answers: list[str], output: Any, title: str, beat: float) -> str:
    """Draws the board that `generate` filled, and the outcome below it."""
    grid = solver.grid(output.sequences[0].tolist())
    wrong = wrong_cells(grid, answers)
    outcome = "Solved" if is_valid(grid) else f"{len(wrong)} of {puzzle.count('0')} cells wrong"
    outcome = f"<b>{outcome}</b><br>{number_of(evaluations_of(output), 'network evaluation')}"
    return render_board(title, puzzle, grid, output.reveal_step[0, :81].tolist(), wrong, outcome, beat)


def render_board(
    title: str, puzzle: str, grid: str, events: Sequence[int], wrong: set[int], outcome: str, beat: float
) -> str:
    """Draws 81 cells. Each appears at its event (-1: given from the start); an event takes `beat` seconds."""
    last = max(*events, 1)
    cells = []
    for cell, digit in enumerate(grid):
        if puzzle[cell] != "0":
            cells.append(f"<span>{digit}</span>")
        elif digit == "0":
            cells.append("<span></span>")
        else:
            kind = "radd-cell radd-wrong" if cell in wrong else "radd-cell"
            style = f"--event: {events[cell]}; --ground: {ramp_color(events[cell] / last)}"
            cells.append(f'<span class="{kind}" style="{style}">{digit}</span>')
    return f"""<figure class="radd-puzzle" style="--beat: {beat:.3f}s; --events: {last + 1}">
<figcaption>{title[0].upper()}{title[1:]}</figcaption><div class="radd-board">{"".join(cells)}</div>
<p class="radd-outcome">{outcome}</p></figure>"""
