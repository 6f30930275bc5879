"""The Sudoku examples: grids, puzzles and their search; the second shipped checkpoint, and what it solves."""

import csv
import functools
import json
import os
import random
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModel, AutoTokenizer, pipeline

import sudoku
import sudoku_data
from radd_hf.app.sudoku import DIGITS, UNITS, is_valid, solutions, wrong_cells
from radd_hf.data.blocks import Blocks
from radd_hf.data.documents import load_documents, tokenize
from radd_hf.evaluation.perplexity import main as evaluate
from radd_hf.training import train
from sudoku_data import invariant, random_grid, random_puzzle, random_symmetry
from support.paths import CHECKPOINT, ROOT, SUDOKU
from support.tokenizers import letters
from support.toys import random_model

FILE = ROOT / "examples" / "sudoku_puzzles.csv"
ROWS = list(csv.DictReader(FILE.read_text().splitlines()))
RECORD = json.loads((ROOT / "docs" / "figures" / "sudoku.json").read_text())["rows"]
GRID = ROWS[0]["solution"]
NEARLY = "0" * 5 + GRID[5:]  # five empty cells
BOUND = "entropy, entropy_bound 0.01"
PUZZLES = int(os.environ.get("RADD_SUDOKU", "12"))  # of the 300 that are solved again; all take a quarter of an hour


@pytest.fixture(scope="module")
def solver() -> sudoku.Solver:
    model = AutoModel.from_pretrained(SUDOKU, trust_remote_code=True, dtype=torch.float32)
    return sudoku.Solver(model, AutoTokenizer.from_pretrained(SUDOKU, trust_remote_code=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sudoku"
    make_data(folder)
    return folder


def make_data(folder: Path, seed: int = 0) -> None:
    sizes = {"grids": 40, "bases": 12, "validation": 6, "puzzles": 2, "seed": seed}
    sudoku_data.main([str(folder), *(f"--{name}={value}" for name, value in sizes.items())])


def grids_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------------------


def fits(grid: list[str], cell: int) -> bool:
    return all(grid[other] != grid[cell] for unit in UNITS.values() if cell in unit for other in unit if other != cell)


def every_solution(grid: list[str]) -> set[str]:
    """Tries every digit in the first empty cell, and nothing cleverer."""
    if "0" not in grid:
        return {"".join(grid)}
    cell, found = grid.index("0"), set()
    for digit in DIGITS:
        grid[cell] = digit
        if fits(grid, cell):
            found |= every_solution(grid)
    grid[cell] = "0"
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_every_solution_once(seed):
    randomly = random.Random(seed)
    grid = random_grid(randomly)
    pair, emptied = set(randomly.sample(DIGITS, 2)), set(randomly.sample(range(81), 24))
    puzzle = ["0" if digit in pair or cell in emptied else digit for cell, digit in enumerate(grid)]
    found = solutions("".join(puzzle), limit=1000)
    assert set(found) == every_solution(puzzle)
    assert len(found) == len(set(found)) > 1, "the two digits can change places"
    assert solutions("".join(puzzle)) == found[:2]


def test_the_search_finds_no_solution_where_there_is_none():
    assert solutions("12345678" + "0" * 9 + "9" + "0" * 63) == []


@pytest.mark.parametrize(("width", "height"), [(1, 9), (9, 1), (3, 3)])
def test_a_grid_with_two_cells_exchanged_is_not_valid(width, height):
    assert is_valid(GRID)
    assert not is_valid(GRID[:80])
    other = (height - 1) * 9 + width - 1  # of the same column, row or box
    swapped = list(GRID)
    swapped[0], swapped[other] = swapped[other], swapped[0]
    assert not is_valid("".join(swapped))


# ---------------------------------------------------------------------------------------------------------
# Grids and puzzles
# ---------------------------------------------------------------------------------------------------------


def test_random_grids_and_their_symmetries_are_valid_and_different():
    randomly = random.Random(0)
    grids = [random_grid(randomly) for _ in range(20)]
    symmetries = [random_symmetry(grid, randomly) for grid in grids for _ in range(5)]
    assert all(map(is_valid, grids + symmetries))
    assert len({*grids, *symmetries}) == 120


def test_symmetries_of_a_grid_share_its_invariant_and_other_grids_have_others():
    randomly = random.Random(0)
    grids = [random_grid(randomly) for _ in range(20)]
    assert len({invariant(grid) for grid in grids}) == 20
    for grid in grids:
        assert {invariant(random_symmetry(grid, randomly)) for _ in range(5)} == {invariant(grid)}


@pytest.mark.parametrize("clues", [28, 40])
def test_puzzles_have_one_solution_and_as_many_clues_as_asked_for(clues):
    randomly = random.Random(clues)
    made = [(grid, random_puzzle(grid, clues, randomly)) for grid in (random_grid(randomly) for _ in range(6))]
    puzzles = [(grid, puzzle) for grid, puzzle in made if puzzle is not None]
    assert len(puzzles) >= 4, "a grid from which so few clues are not reached is rare"
    for grid, puzzle in puzzles:
        assert 81 - puzzle.count("0") == clues
        assert solutions(puzzle) == [grid]


def test_validation_grids_and_puzzles_are_no_symmetries_of_training_grids(data):
    train_grids, others = grids_of(data / "train.jsonl"), grids_of(data / "validation.jsonl")
    assert (len(train_grids), len(others)) == (40, 6)
    assert all(map(is_valid, train_grids + others))
    puzzles = list(csv.DictReader((data / "puzzles.csv").read_text().splitlines()))
    assert [int(row["clues"]) for row in puzzles] == [28, 28, 34, 34, 40, 40]
    assert all(solutions(row["puzzle"]) == [row["solution"]] for row in puzzles)
    known = {invariant(grid) for grid in train_grids}
    assert known.isdisjoint(map(invariant, others))
    assert known.isdisjoint(invariant(row["solution"]) for row in puzzles)


def test_the_same_seed_makes_the_same_data_and_another_other_data(data, tmp_path):
    make_data(tmp_path / "same")
    make_data(tmp_path / "other", seed=1)
    for name in ("train.jsonl", "validation.jsonl", "puzzles.csv"):
        assert (tmp_path / "same" / name).read_bytes() == (data / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (data / name).read_bytes()


def test_data_are_not_written_over_and_impossible_ones_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"folder='.*sudoku' already has train\.jsonl; pass another folder"):
        make_data(data)
    for flag, message in (
        ("--clues=12", r"clues='12' must be numbers from 24 to 81"),
        ("--clues=28;34", r"clues='28;34' must be numbers"),
        ("--bases=0", r"bases=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sudoku_data.main([str(tmp_path / "new"), flag])
    assert not (tmp_path / "new").exists()


def test_a_row_of_the_training_data_is_a_grid_and_the_end_of_the_text(data, solver):
    tokenizer = AutoTokenizer.from_pretrained(SUDOKU, trust_remote_code=True)
    blocks = Blocks(tokenize(load_documents(str(data), "train"), tokenizer), 82)
    grids = grids_of(data / "train.jsonl")
    assert len(blocks) == len(grids)
    assert torch.equal(torch.stack(list(blocks)), solver.canvas(grids))


def test_the_recipe_trains_on_the_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    small = {"dataset": data, "output_dir": tmp_path / "run", "mixed_precision": "no", "hidden_size": 32}
    small |= {"num_hidden_layers": 1, "max_steps": 2, "batch_size": 4, "log_steps": 1, "eval_sequences": 2}
    small |= {"eval_passes": 2, "n_samples": 1, "sampling_steps": 2}
    train.main(["--config", "sudoku", *(f"--{name}={value}" for name, value in small.items())])
    model = AutoModel.from_pretrained(tmp_path / "run" / "checkpoints" / "step_2", trust_remote_code=True)
    assert (model.config.max_position_embeddings, model.config.vocab_size, model.config.mask_token_id) == (82, 11, 10)


# ---------------------------------------------------------------------------------------------------------
# The checkpoint
# ---------------------------------------------------------------------------------------------------------


def test_the_shipped_puzzles_are_a_hundred_of_each_number_of_clues_with_one_solution():
    assert [sum(row["clues"] == clues for row in ROWS) for clues in ("28", "34", "40")] == [100, 100, 100]
    for row in ROWS:
        assert 81 - row["puzzle"].count("0") == int(row["clues"])
        assert solutions(row["puzzle"]) == [row["solution"]]


def test_most_puzzles_are_solved_by_confidence_and_few_in_random_order():
    assert RECORD["confidence"]["solved"].count("1") >= 0.80 * 300
    assert RECORD["random"]["solved"].count("1") <= 0.15 * 300
    assert all(len(row["solved"]) == 300 for row in RECORD.values())


def test_an_entropy_bound_loses_little_and_takes_less_than_half_the_evaluations():
    assert RECORD[BOUND]["solved"].count("1") >= RECORD["confidence"]["solved"].count("1") - 0.03 * 300
    assert RECORD[BOUND]["evaluations"] < 0.5 * RECORD["confidence"]["evaluations"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("confidence", {"order": "confidence"}),
        ("random", {"order": "random", "seed": 0}),
        (BOUND, {"order": "entropy", "entropy_bound": 0.01}),
    ],
)
def test_the_first_puzzles_are_solved_as_recorded(solver, name, settings):
    puzzles = [row["puzzle"] for row in ROWS[:PUZZLES]]
    found = sudoku.measure(solver, puzzles, min(PUZZLES, 50), {"temperature": 0.0} | settings)
    differences = sum(one != other for one, other in zip(found["solved"], RECORD[name]["solved"], strict=False))
    assert differences <= PUZZLES / 12, "rounding may decide between two cells that are as certain"
    assert len(found["solved"]) == PUZZLES
    masks = sum(puzzle.count("0") for puzzle in puzzles) / PUZZLES
    assert found["evaluations"] == masks if name != BOUND else found["evaluations"] < masks / 2


def test_the_checkpoint_solves_by_its_own_settings(solver):
    own = solver.model.generation_config
    assert (own.method, own.order, own.temperature) == ("ordered", "confidence", 0)
    canvas = solver.canvas([NEARLY, ROWS[2]["puzzle"]])
    sequences = solver.model.generate(canvas, seed=0)
    assert [solver.grid(ids) for ids in sequences.tolist()] == [GRID, ROWS[2]["solution"]]


def test_without_the_end_of_the_text_nothing_is_solved(solver):
    canvas = solver.canvas([row["puzzle"] for row in ROWS[:6]])
    settings = {"order": "entropy", "entropy_bound": 0.1}
    whole, cells = solver.model.generate(canvas, **settings), solver.model.generate(canvas[:, :81], **settings)
    assert sum(is_valid(solver.grid(ids)) for ids in whole.tolist()) >= 4
    assert not any(is_valid(solver.grid(ids)) for ids in cells.tolist())


def test_the_card_solves_a_puzzle_by_the_pipeline_and_by_ids(capsys):
    card = (SUDOKU / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    exec("".join(blocks).replace('"..."', repr(str(SUDOKU))), {})
    first, second = capsys.readouterr().out.splitlines()[-2:]
    answer = solutions("000003400700100280492700010000008000950400006041000320000040001083020060000301000")
    assert [first] == [second.split()[0]] == answer
    assert 5 < int(second.split()[1]) < 30


def test_the_pipeline_fills_puzzles_of_a_batch_and_ends_the_text():
    solve = pipeline("radd-infilling", model=str(SUDOKU), trust_remote_code=True, device="cpu")
    texts = [f"[MASK:5]{GRID[5:]}[MASK]", GRID[:79].replace(GRID[3], "[MASK]") + "[MASK:3]"]
    for (sample,) in solve(texts, batch_size=2):
        assert sample["text"] == f"{GRID}<|endoftext|>"


def test_what_is_no_digit_is_refused_by_the_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(SUDOKU, trust_remote_code=True)
    solve = pipeline("radd-infilling", model=str(SUDOKU), trust_remote_code=True, device="cpu")
    assert tokenizer(GRID)["input_ids"] == [int(digit) - 1 for digit in GRID]
    for text in ("53..7[MASK]", "53<|endoftext|>[MASK]"):
        with pytest.raises(ValueError, match="has text that the tokenizer cannot encode"):
            solve(text)


def test_the_likelihood_is_not_moved_by_the_settings_for_solving(data, tmp_path):
    flags = ["--model", str(SUDOKU), "--dataset", str(data / "validation.jsonl"), "--passes", "4"]
    evaluate([*flags, "--output", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["n_tokens"] == 6 * 82
    assert 0.55 < result["nats_per_token"] < 0.85, "log(6.67e21 grids) / 82 = 0.613"


# ---------------------------------------------------------------------------------------------------------
# The script
# ---------------------------------------------------------------------------------------------------------


def test_a_puzzle_is_solved_and_shown_with_the_event_of_each_cell(capsys):
    assert sudoku.main([NEARLY.replace("0", ".")])
    shown = capsys.readouterr().out
    left, right = zip(*(re.split(r" {6,}", line) for line in shown.splitlines() if line.count("|") == 4), strict=True)
    assert "".join(re.findall(r"\d", "".join(left))) == GRID
    assert sorted(map(int, re.findall(r"\d+", "".join(right)))) == [1, 2, 3, 4, 5]
    assert "Solved. 5 cells, 5 evaluations" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([NEARLY, "--orders", "random"], "orders='random' is for --file: pass order here"),
        ([NEARLY, "--output", "o.json"], "output='o.json' is for --file"),
        (["--file", str(FILE), "--order", "margin"], "order='margin' is for one puzzle: pass orders here"),
        (["--file", str(FILE), "--entropy_bound", "0.1"], "entropy_bound='0.1' is for one puzzle: pass entropy_bounds"),
        (["--file", str(FILE), "--output", "/nowhere/o.json"], "output='/nowhere/o.json': there is no folder"),
        ([NEARLY, "--model", str(CHECKPOINT)], "must be a model of grids"),
    ],
)
def test_what_would_do_nothing_or_fail_later_is_refused(flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sudoku.main(flags)


def test_a_puzzle_may_stand_on_nine_lines(capsys):
    lines = "\n".join(NEARLY[first : first + 9] for first in range(0, 81, 9))
    assert sudoku.main([lines])
    assert "Solved." in capsys.readouterr().out


def test_a_terminal_shows_the_grid_while_it_fills(capsys, monkeypatch):
    terminal = functools.partial(Console, force_terminal=True, width=80, color_system="standard")
    monkeypatch.setattr(sudoku, "Console", terminal)
    assert sudoku.main([NEARLY, "--order", "random", "--pause", "0"])
    shown = capsys.readouterr().out
    frames = shown.split("\x1b[?25h")[0].count("---+---")
    assert frames >= 5, "two lines of each frame"
    assert "Solved." in shown


def test_wrong_cells_are_those_that_differ_or_where_several_solutions_are_those_that_break_a_rule():
    changed = GRID[1] + GRID[1:]
    assert wrong_cells(changed, [GRID]) == {0}
    assert wrong_cells(GRID, [GRID, GRID]) == set()
    assert wrong_cells(changed, [GRID, GRID]) >= {0, 1}


@pytest.mark.parametrize(
    ("puzzle", "message"),
    [
        ("53..7", r"puzzle='53\.\.7' has 5 characters; it must have 81"),
        ("a" + GRID[1:], r"has 'a' in row 1, column 1; a cell must be 1-9, and an empty cell 0 or a dot\."),
        (f"5{'.' * 9}5{'.' * 70}", r"has 5 twice in box 1: in row 1, column 1 and in row 2, column 2"),
        (f"12345678{'.' * 9}9{'.' * 63}", "has no solution"),
        (GRID, "has no empty cell"),
    ],
)
def test_what_is_no_puzzle_is_refused_before_the_model_is_loaded(puzzle, message, monkeypatch, tmp_path):
    monkeypatch.setattr(sudoku, "load_model", None)
    with pytest.raises(ValueError, match=message):
        sudoku.main([puzzle])
    (tmp_path / "puzzles.csv").write_text(f"puzzle\n{NEARLY}\n{puzzle}\n")
    with pytest.raises(ValueError, match=f"puzzles.csv', line 3: .*{message}"):
        sudoku.main(["--file", str(tmp_path / "puzzles.csv")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "pass either a puzzle"),
        ([NEARLY, "--file", str(FILE)], "pass either a puzzle"),
        (["--file", str(FILE), "--orders", "random,fast"], "has 'fast'; each must be one of"),
        (["--file", str(FILE), "--entropy_bounds", "0.1,x"], "must be numbers, separated by commas"),
        (["--file", str(FILE), "--entropy_bounds", "-1"], "entropy_bounds=-1.0 must be a number of nats, at least 0"),
        (["--file", str(FILE), "--orders", "", "--entropy_bounds", ""], "leave nothing to compare"),
        ([NEARLY, "--temperature", "-1"], "temperature=-1.0 must be"),
        ([NEARLY, "--pause", "-1"], "pause=-1.0 must be at least 0"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_the_model_is_loaded(flags, message, monkeypatch):
    monkeypatch.setattr(sudoku, "load_model", None)
    with pytest.raises(ValueError, match=message):
        sudoku.main(flags)


def test_puzzles_with_several_solutions_are_said_to_be_and_any_counts(tmp_path, capsys):
    pair = {"1", "2"}
    several = "".join("0" if digit in pair else digit for digit in GRID)
    assert len(solutions(several)) > 1
    (tmp_path / "puzzles.txt").write_text(f"{several}\n\n{NEARLY}\n")
    sudoku.main(["--file", str(tmp_path / "puzzles.txt"), "--orders", "confidence", "--entropy_bounds", ""])
    printed = capsys.readouterr()
    assert "1 of the 2 puzzles have more than one solution" in printed.err
    assert re.search(r"^confidence +100\.0% +100\.0% +100\.0% +11\.5 ", printed.out, flags=re.MULTILINE)


def test_a_file_gives_a_table_and_the_same_results_in_json(tmp_path, capsys):
    output = tmp_path / "result.json"
    flags = ["--first", "2", "--orders", "forward", "--entropy_bounds", "0.1", "--output", str(output)]
    sudoku.main(["--file", str(FILE), *flags])
    result, clues = json.loads(output.read_text()), [28, 34]
    assert list(result["rows"]) == ["forward", "entropy, entropy_bound 0.1"]
    lines = [sudoku.line(name, row, clues) for name, row in result["rows"].items()]
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert [line[:-9] for line in printed] == [sudoku.header(clues), *lines], "and the seconds"
    assert result["rows"]["forward"]["evaluations"] == 50


def test_a_model_without_digits_is_refused():
    with pytest.raises(ValueError, match=r"model has no token for \['1', '2', .*; it must be a model of grids"):
        sudoku.Solver(random_model(vocab_size=5), letters(range(4), eos_token="<eos>"))


def test_the_figure_is_drawn(tmp_path, capsys):
    import sudoku_figure

    sudoku_figure.main(["--puzzle", NEARLY, "--output", str(tmp_path / "sudoku.png")])  # "sudoku_figure.py"
    assert "most confident first: solved" in capsys.readouterr().out
    assert (tmp_path / "sudoku.png").stat().st_size > 10_000
    assert (ROOT / "docs" / "figures" / "sudoku.png").stat().st_size < 150_000


# ---------------------------------------------------------------------------------------------------------
# What is written about it
# ---------------------------------------------------------------------------------------------------------


def test_the_pages_have_the_table_of_the_recorded_results():
    """`make sudoku` runs "sudoku.py" on the puzzles of "sudoku_data.py"'s kind."""
    clues = [int(row["clues"]) for row in ROWS]
    page, card = (ROOT / "docs" / "sudoku.md").read_text(), (SUDOKU / "README.md").read_text()
    for line in (sudoku.header(clues), *(sudoku.line(name, row, clues) for name, row in RECORD.items())):
        assert f"\n    {line}\n" in page
        assert f"\n    {line}\n" in card
