"""The Sudoku tab of the page in the browser, without gradio: one puzzle, two orders, boards that play."""

import re

import pytest

from radd_hf.app import boards
from radd_hf.app.boards import checkpoint_beside, read_puzzle, render_board, solve
from radd_hf.app.sudoku import is_valid
from radd_hf.app.turns import Stop
from support.paths import CHECKPOINT, SUDOKU

PUZZLE = "730012900508769030106045070049203000010004600000091000080907000070006004300400200"
SOLUTION = "734812956528769431196345872649283715813574629257691348485927163972136584361458297"
NEARLY = "000000000" + SOLUTION[9:]
FIELDS = {"model": str(SUDOKU), "puzzle": NEARLY, "left": "random", "right": "confidence", "entropy_bound": None}


def digits_of(page: str) -> list[str]:
    return ["".join(re.findall(r"<span[^>]*>(\d)</span>", board)) for board in page.split("<figure")[1:]]


def test_both_boards_fill_one_cell_an_event_and_the_given_cells_stay():
    page, line = list(solve(Stop(), **FIELDS, seed=0))[-1]
    assert line.startswith("9 empty cells")
    for board, digits in zip(page.split("<figure")[1:], digits_of(page), strict=True):
        events = sorted(int(event) for event in re.findall(r"--event: (\d+)", board))
        assert events == list(range(9))
        assert digits[9:] == SOLUTION[9:]
        assert "9 network evaluations" in board
        assert ("Solved" in board) == is_valid(digits) == ("radd-wrong" not in board)


def test_a_bound_is_for_adaptive_orders_alone():
    page, _ = list(solve(Stop(), **FIELDS | {"entropy_bound": 1e6}, seed=0))[-1]
    assert re.findall(r"(\d+) network evaluations?", page) == ["9", "1"]


def test_the_boards_are_empty_until_both_orders_are_done():
    pages = [page for page, _ in solve(Stop(), **FIELDS, seed=0)]
    assert all(digits_of(page) == [SOLUTION[9:]] * 2 for page in pages[:-1])
    assert len(pages) > 2


def test_a_run_that_is_stopped_says_so():
    stop = Stop()
    run = solve(stop, **FIELDS | {"puzzle": PUZZLE}, seed=0)
    next(run)
    stop.set_because("Stopped after 1 s")
    *_, (_, line) = run
    assert line == "Stopped after 1 s"


def test_a_wrong_cell_is_crossed_out():
    grid = SOLUTION.replace("7", "1", 1)
    page = render_board("title", NEARLY, grid, [*range(9), *[-1] * 72], {0}, "", 0.1)
    assert re.findall(r'class="radd-cell radd-wrong" style="[^"]*">(\d)', page) == ["1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"left": "fast"}, "left='fast' must be one of"),
        ({"right": None}, "right=None must be one of"),
        ({"entropy_bound": -1}, "entropy_bound=-1 must be a number of nats"),
        ({"puzzle": SOLUTION}, "has no empty cell"),
        ({"puzzle": "12"}, "has 2 characters; it must have 81"),
        ({"puzzle": None}, "puzzle=None must be a text"),
        ({"puzzle": "1" * 9999}, "has 9999 characters; it must have at most"),
        ({"puzzle": "<b>" + NEARLY[3:]}, "has '<' in row 1, column 1"),
        ({"puzzle": "11" + "0" * 79}, "has 1 twice in row 1"),
    ],
)
def test_what_is_no_puzzle_or_order_is_refused_before_the_model_is_loaded(fields, message, monkeypatch):
    monkeypatch.setattr(boards, "load_solver", None)
    with pytest.raises(ValueError, match=message):
        list(solve(Stop(), **FIELDS | fields))


def test_spaces_and_line_breaks_in_a_puzzle_are_skipped():
    lines = "\n".join(NEARLY[row : row + 9].replace("0", ". ") for row in range(0, 81, 9))
    assert read_puzzle(lines) == (NEARLY, [SOLUTION])


def test_a_puzzle_whose_search_would_take_hours_is_refused():
    hard = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    with pytest.raises(ValueError, match="takes too long to solve by search"):
        read_puzzle(hard)


def test_the_checkpoint_for_puzzles_is_the_one_beside_the_model(tmp_path):
    assert checkpoint_beside(str(CHECKPOINT)) == str(SUDOKU)
    (tmp_path / "model").symlink_to(CHECKPOINT)
    assert checkpoint_beside(str(tmp_path / "model")) is None
    assert checkpoint_beside("someone/model") is None
