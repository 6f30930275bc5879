# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Makes Sudoku grids to train on and puzzles to solve, by exact search and without a network.

    python examples/sudoku_data.py data/sudoku
    python examples/sudoku_data.py data/sudoku --grids 20000 --puzzles 10 --seed 1

    train.jsonl        full grids, a line {"text": "8162..."} for each: symmetries of random grids
    validation.jsonl   symmetries of other random grids; none is a symmetry of a training grid
    puzzles.csv        clues, puzzle (0: empty), solution: grids like those of the validation, with cells emptied

A symmetry of a grid renames its digits, moves its rows and columns, or transposes it, and keeps it valid. The default
makes a grid for every row that `configs/sudoku.yaml` trains on. It takes two or three minutes and 170 MB.

A grid is its 81 digits, row after row. The search is that of `radd_hf/app/sudoku.py`.
"""

import argparse
import csv
import json
import random
import sys
from itertools import permutations, product
from pathlib import Path

from radd_hf.app.sudoku import DIGITS, EVERY, search, solutions
from radd_hf.endings import run_program
from radd_hf.ranges import COUNT, COUNT_OR_ZERO, check_fields

# Orders of nine rows, or columns, that keep each band of three together.
LINES = [
    [3 * band + line for band, lines in zip(bands, each, strict=True) for line in lines]
    for bands in permutations(range(3))
    for each in product(permutations(range(3)), repeat=3)
]


# ---------------------------------------------------------------------------------------------------------
# Grids and puzzles
# ---------------------------------------------------------------------------------------------------------


def random_grid(randomly: random.Random) -> str:
    return next(search([EVERY] * 9, randomly))


def random_symmetry(grid: str, randomly: random.Random) -> str:
    """Returns the grid with digits renamed, rows and columns permuted within the rules, and perhaps transposed."""
    rows, columns = randomly.choice(LINES), randomly.choice(LINES)
    if randomly.random() < 0.5:
        moved = [grid[9 * row + column] for row in rows for column in columns]
    else:
        moved = [grid[9 * row + column] for column in columns for row in rows]
    return "".join(moved).translate(str.maketrans(DIGITS, "".join(randomly.sample(DIGITS, 9))))


def invariant(grid: str) -> tuple:
    """Returns a value that all symmetries of a grid share. Grids with different values are not symmetric.

    Two lines of one band define a permutation of the digits. Renaming digits and moving columns keep the lengths of its
    cycles. Moving lines and bands changes the order of the cycles, and transposing swaps the halves; sorting removes
    both differences.
    """
    transposed = "".join(grid[column::9] for column in range(9))
    return tuple(sorted(tuple(sorted(cycles_of_band(each, band) for band in range(3))) for each in (grid, transposed)))


def cycles_of_band(grid: str, band: int) -> tuple:
    """Returns the sorted cycle lengths of each of the three pairs of rows in a band, in sorted order."""
    rows = [grid[9 * row : 9 * row + 9] for row in range(3 * band, 3 * band + 3)]
    lengths = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        after, cycles = dict(zip(rows[one], rows[other], strict=True)), []
        while after:
            digit, length = next(iter(after)), 0
            while digit in after:
                digit, length = after.pop(digit), length + 1
            cycles.append(length)
        lengths.append(tuple(sorted(cycles)))
    return tuple(sorted(lengths))


def random_puzzle(grid: str, clues: int, randomly: random.Random) -> str | None:
    """Empties cells in random order down to `clues`, but keeps the solution unique. Returns None if that fails."""
    puzzle = list(grid)
    for cell in randomly.sample(range(81), 81):
        if sum(character != "0" for character in puzzle) == clues:
            break
        puzzle[cell] = "0"
        if len(solutions("".join(puzzle))) > 1:
            puzzle[cell] = grid[cell]
    return "".join(puzzle) if sum(character != "0" for character in puzzle) == clues else None


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def write_grids(path: Path, bases: list[str], count: int, randomly: random.Random) -> None:
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps({"text": random_symmetry(randomly.choice(bases), randomly)}) + "\n")


def write_puzzles(path: Path, bases: list[str], count: int, clues: list[int], randomly: random.Random) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["clues", "puzzle", "solution"])
        for each in clues:
            written = 0
            while written < count:
                solution = random_symmetry(randomly.choice(bases), randomly)
                puzzle = random_puzzle(solution, each, randomly)
                if puzzle is not None:
                    table.writerow([each, puzzle, solution])
                    written += 1


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write the files to")
    parser.add_argument("--grids", type=int, default=1_792_000, help="grids to train on; default: 1750 steps of 1024")
    parser.add_argument(
        "--bases", type=int, default=5000, help="random grids that the training grids are symmetries of"
    )
    parser.add_argument("--validation", type=int, default=1000, help="held-out grids, each from another random grid")
    parser.add_argument("--puzzles", type=int, default=100, help="puzzles for each number of clues")
    parser.add_argument(
        "--clues", default="28,34,40", help="numbers of clues, from 24 to 81; fewer than 28 take longer"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    counts = dict.fromkeys(("grids", "bases", "validation"), COUNT) | {"puzzles": COUNT_OR_ZERO}
    check_fields({name: getattr(args, name) for name in counts}, counts)
    numbers = args.clues.split(",")
    if not all(number.isdecimal() and 24 <= int(number) <= 81 for number in numbers):
        raise ValueError(f"clues={args.clues!r} must be numbers from 24 to 81, separated by commas, such as 28,34,40.")
    names = "train.jsonl", "validation.jsonl", "puzzles.csv"
    present = [name for name in names if (args.folder / name).exists()]
    if present:
        raise ValueError(f"folder={str(args.folder)!r} already has {present[0]}; pass another folder.")

    randomly = random.Random(args.seed)
    bases = [random_grid(randomly) for _ in range(args.bases)]
    known, others = {invariant(grid) for grid in bases}, list[str]()
    while len(others) < args.validation:
        grid = random_grid(randomly)
        if invariant(grid) not in known:
            others.append(grid)
    args.folder.mkdir(parents=True, exist_ok=True)
    write_grids(args.folder / "train.jsonl", bases, args.grids, randomly)
    write_grids(args.folder / "validation.jsonl", others, args.validation, randomly)
    write_puzzles(args.folder / "puzzles.csv", others, args.puzzles, [int(number) for number in numbers], randomly)
    print(
        f"{args.folder}: {args.grids} grids to train on, {args.validation} others, and {args.puzzles} puzzles each of "
        f"{args.clues} clues"
    )


if __name__ == "__main__":
    run_program(main, Path(sys.argv[0]).name)
