# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads Sudoku puzzles, solves them by exact search, and fills them with a model of grids.

    check_puzzle(text) -> puzzle -> solutions(puzzle), by search
                                 -> Solver(model, tokenizer).fill([puzzle]), by the network

The page in the browser and `examples/sudoku*.py` use it. A puzzle is a text of 81 cells, row after row, with 0 in empty
cells. The search keeps, for each digit, the set of cells that may have it. A set is an integer whose bit n is cell n.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from ..modeling_radd import RaddForMaskedLM

DIGITS = "123456789"
EMPTY = "0."
Boards = list[int]  # for each digit the set of cells that may have it


def cells(members: Iterable[int]) -> int:
    """Returns a set of cells as an integer."""
    return sum(1 << cell for cell in members)


EVERY = cells(range(81))
UNITS = {f"row {row + 1}": [9 * row + column for column in range(9)] for row in range(9)}
UNITS |= {f"column {column + 1}": [9 * row + column for row in range(9)] for column in range(9)}
UNITS |= {
    f"box {3 * band + stack + 1}": [27 * band + 3 * stack + 9 * row + column for row in range(3) for column in range(3)]
    for band in range(3)
    for stack in range(3)
}
UNIT_SETS = [cells(unit) for unit in UNITS.values()]
# For each cell the other cells of its row, column and box.
PEERS = [cells({other for unit in UNITS.values() if cell in unit for other in unit} - {cell}) for cell in range(81)]


# ---------------------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------------------


def is_valid(grid: str) -> bool:
    """Tells whether a grid is full, and each row, column and box has every digit."""
    return len(grid) == 81 and all({grid[cell] for cell in unit} == set(DIGITS) for unit in UNITS.values())


def check_puzzle(puzzle: str, name: str = "puzzle", visit: Callable[[], None] | None = None) -> str:
    """Returns a puzzle with 0 in its empty cells.

    Args:
        visit: see [`search`].

    Raises:
        ValueError: for anything but 81 cells of 1-9, 0 and "."; for a digit that stands twice in a row, column or box
            (the message names both cells); and for a puzzle without a solution.
    """
    if len(puzzle) != 81:
        raise ValueError(f"{name}={puzzle!r} has {len(puzzle)} characters; it must have 81, one for each cell.")
    for cell, character in enumerate(puzzle):
        if character not in DIGITS + EMPTY:
            raise ValueError(
                f"{name}={puzzle!r} has {character!r} in {place_of(cell)}; a cell must be 1-9, and an empty cell 0 or "
                "a dot."
            )
    for unit, members in UNITS.items():
        for digit in DIGITS:
            found = [place_of(cell) for cell in members if puzzle[cell] == digit]
            if len(found) > 1:
                raise ValueError(f"{name}={puzzle!r} has {digit} twice in {unit}: in {found[0]} and in {found[1]}.")
    if not solutions(puzzle, limit=1, visit=visit):
        raise ValueError(f"{name}={puzzle!r} has no solution; it must have one.")
    return puzzle.replace(".", "0")


def place_of(cell: int) -> str:
    """Names a cell for people."""
    return f"row {cell // 9 + 1}, column {cell % 9 + 1}"


def solutions(puzzle: str, limit: int = 2, visit: Callable[[], None] | None = None) -> list[str]:
    """Returns at most `limit` solutions of a puzzle. Two show that the solution is not unique.

    visit: see [`search`].
    """
    boards = [EVERY] * 9
    for cell, character in enumerate(puzzle):
        if character in DIGITS:
            boards = with_digit(boards, DIGITS.index(character), 1 << cell)
    return list(islice(search(boards, visit=visit), limit))


def search(
    boards: Boards, randomly: random.Random | None = None, visit: Callable[[], None] | None = None
) -> Iterator[str]:
    """Yields every solution. It tries the digits of a cell in ascending order, or `randomly`.

    The search calls `visit` for every partial grid. `visit` may raise an exception to end a search that takes too long:
    some puzzles without a solution take hours.
    """
    if visit is not None:
        visit()
    found = deduce(boards)
    if found is None:
        return
    boards, two, three = found
    if not two:
        yield "".join(digit_of(boards, cell) for cell in bits(EVERY))
        return
    pairs = two & ~three  # cells with two candidates
    cell = pairs & -pairs or min(bits(two), key=lambda cell: sum(bool(board & cell) for board in boards))
    digits = [digit for digit in range(9) if boards[digit] & cell]
    if randomly is not None:
        randomly.shuffle(digits)
    for digit in digits:
        yield from search(with_digit(boards, digit, cell), randomly, visit)


def digit_of(boards: Boards, cell: int) -> str:
    """Returns the only digit that a cell, given as a set of one, may have."""
    return next(digit for digit, board in zip(DIGITS, boards, strict=True) if board & cell)


def bits(members: int) -> Iterator[int]:
    """Yields each cell of a set, as a set of one."""
    while members:
        yield members & -members
        members &= members - 1


def with_digit(boards: Boards, digit: int, cell: int) -> Boards:
    """Returns the boards after a cell, given as a set of one, gets a digit."""
    others = [board & ~cell for board in boards]
    others[digit] = boards[digit] & ~PEERS[cell.bit_length() - 1]
    return others


def deduce(boards: Boards) -> tuple[Boards, int, int] | None:
    """Fills every cell that has one candidate, and every digit that has one place in a row, column or box.

    Returns:
        The boards, the cells with at least two candidates, and the cells with at least three; None for a contradiction.
    """
    done = 0
    while True:
        one = two = three = 0
        for board in boards:
            three |= two & board
            two |= one & board
            one |= board
        if one != EVERY:
            return None
        singles = one & ~two & ~done
        if singles:
            for digit in range(9):
                for cell in bits(boards[digit] & singles):
                    boards = with_digit(boards, digit, cell)
            done |= singles
            continue
        forced = []
        for digit, board in enumerate(boards):
            for unit in UNIT_SETS:
                places = board & unit
                if not places:
                    return None
                if not places & (places - 1) and not places & done:
                    forced.append((digit, places))
        if not forced:
            return boards, two, three
        for digit, cell in forced:
            boards = with_digit(boards, digit, cell)


def check_empty(puzzle: str, name: str = "puzzle") -> str:
    """Returns the puzzle. Raises a ValueError if it has no empty cell."""
    if "0" not in puzzle:
        raise ValueError(f"{name}={puzzle!r} has no empty cell, so there is nothing to fill.")
    return puzzle


# ---------------------------------------------------------------------------------------------------------
# A model of grids
# ---------------------------------------------------------------------------------------------------------


class Solver:
    """Fills puzzles with a model of grids. A grid is a row of 82 tokens: its cells, then the end of the text.

    The end of the text is needed. The network was trained on rows of 82 tokens, and it knows a position only by its
    distances from other tokens. It has not seen 81 cells without an end.
    """

    def __init__(self, model: RaddForMaskedLM, tokenizer: Any):
        missing = [digit for digit in DIGITS if digit not in tokenizer.get_vocab()]
        if missing or tokenizer.eos_token_id is None:
            raise ValueError(f"model has no token for {missing or 'the end of a text'}; it must be a model of grids.")
        if model.config.max_position_embeddings != 82:
            name = model.config.name_or_path
            raise ValueError(f"model={name!r} must be a model of grids: rows of 82 tokens, 81 cells and an end.")
        self.model, self.end = model, tokenizer.eos_token_id
        self.ids = dict(zip(DIGITS, tokenizer.convert_tokens_to_ids(list(DIGITS)), strict=True))
        self.ids["0"] = model.config.mask_token_id
        self.characters = {token: character for character, token in self.ids.items()}

    def canvas(self, puzzles: Sequence[str]) -> torch.Tensor:
        """Returns (B, 82) ids, the mask in empty cells."""
        return torch.tensor([[*(self.ids[character] for character in puzzle), self.end] for puzzle in puzzles])

    def grid(self, ids: Sequence[int]) -> str:
        """Returns the 81 characters of a row: 0 for the mask, ? for other tokens that are not digits."""
        return "".join(self.characters.get(token, "?") for token in ids[:81])

    def fill(self, puzzles: Sequence[str], **settings: Any) -> Any:
        """Returns the output of `generate` for puzzles with 0 in their empty cells."""
        canvas = self.canvas(puzzles)
        return self.model.generate(canvas, method="ordered", return_dict_in_generate=True, **settings)


def wrong_cells(grid: str, answers: list[str]) -> set[int]:
    """Returns the cells that differ from the only solution. For several solutions: cells that break a rule."""
    if len(answers) == 1:
        return {cell for cell in range(81) if grid[cell] != answers[0][cell]}
    return {
        cell
        for unit in UNITS.values()
        for cell in unit
        if grid[cell] not in DIGITS or sum(grid[other] == grid[cell] for other in unit) > 1
    }
