"""The command `radd score`: a text, a pair, a pipe, a file; what it prints and refuses, and that `radd eval` agrees."""

import json
import math
import re
import shlex
import subprocess

import pyarrow.parquet as pq
import pytest
import torch

from radd_hf.app import score
from radd_hf.evaluation import perplexity
from radd_hf.jobs.scoring import RowScorer, row_seed
from radd_hf.likelihood import estimate_likelihood
from radd_hf.text_radd import encode_text
from support.commands import run_radd, save_model
from support.launches import QUIET, command
from support.paths import CHECKPOINT, ROOT
from support.toys import random_model

LENGTH = 16
TEXT = "It is a truth universally"


@pytest.fixture(scope="module")
def network():
    return random_model(vocab_size=300, max_position_embeddings=LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network, tiny_tokenizer) -> str:
    return save_model(tmp_path_factory.mktemp("model"), network, tiny_tokenizer)


@pytest.fixture
def radd_score(folder, capsys, monkeypatch):
    """Runs `radd score MODEL ...` with the given standard input, by default a terminal's."""

    def run(*arguments: str, stdin: str | None = None):
        return run_radd(["score", folder, *arguments], capsys, monkeypatch, stdin)

    return run


@pytest.fixture
def figures(radd_score):
    """The object that `radd score --json` writes."""

    def run(*arguments: str, **keywords) -> dict:
        result = radd_score(*arguments, "--json", **keywords)
        assert result.code == 0, result.err
        (line,) = result.out.splitlines()
        return json.loads(line)

    return run


def test_the_table_has_the_figures_of_the_object(radd_score, figures):
    printed, found = radd_score(TEXT), figures(TEXT)
    assert printed.code == 0
    assert printed.err == ""
    for title, name, digits in (
        ("nats", "nats", 3),
        ("nats per token", "nats_per_token", 4),
        ("bits per byte", "bits_per_byte", 4),
        ("perplexity", "perplexity", 2),
    ):
        pattern = rf"^{title} +{re.escape(f'{found[name]:.{digits}f}')} "
        assert re.search(pattern, printed.out, flags=re.MULTILINE), title
    assert f"{found['tokens']} tokens, {len(TEXT)} bytes" in printed.out


def test_a_text_is_scored_as_row_0_of_a_file(figures, network, tiny_tokenizer):
    found = figures(TEXT, "--seed", "3", "--passes", "8")
    (row,) = RowScorer(network, tiny_tokenizer, seed=3, passes=8)([{"text": TEXT}], [0])
    ids = torch.tensor(encode_text([TEXT], tiny_tokenizer)[0])
    alone = estimate_likelihood(network, [ids], passes=8, seed=row_seed(3, 0))
    assert (row.pop("row"), row.pop("error")) == (0, None)
    assert {name: found[name] for name in row} == pytest.approx(row, rel=1e-5)
    assert found["perplexity"] == pytest.approx(alone.perplexity, rel=1e-5)
    assert found["interval"] == pytest.approx(alone.interval, rel=1e-4)


def test_a_continuation_is_scored_given_its_prefix(figures):
    pair = figures("--prefix", "It is", "--continuation", " a truth", "--estimator", "ar_forward")
    assert (pair["bytes"], pair["standard_error"]) == (len(" a truth"), 0.0)
    assert pair["nats"] != figures(" a truth", "--estimator", "ar_forward")["nats"]
    alone = figures("--continuation", " a truth", "--estimator", "ar_forward")
    assert alone["nats"] == pytest.approx(figures(" a truth", "--estimator", "ar_forward")["nats"], rel=1e-6)


def test_standard_input_may_have_the_text_or_a_part_of_it(figures):
    assert figures(stdin=f"{TEXT}\n") == figures(TEXT) == figures("-", stdin=TEXT)
    pair = figures("--prefix", "It is", "--continuation", " a truth")
    assert figures("--prefix", "-", "--continuation", " a truth", stdin="It is\n") == pair
    assert figures("--prefix", "It is", "--continuation", "-", stdin=" a truth") == pair


def test_a_text_and_what_radd_eval_says_of_its_file_agree(figures, network, tiny_tokenizer, folder, tmp_path):
    """`radd eval` adds EOS to a document. So the text here fills whole blocks, and EOS is a block of its own."""
    words = encode_text(["It is a truth universally acknowledged, " * 20], tiny_tokenizer)[0]
    text = tiny_tokenizer.decode(words[: 3 * LENGTH])
    assert len(encode_text([text], tiny_tokenizer)[0]) == 3 * LENGTH
    file, result = tmp_path / "text.txt", tmp_path / "result.json"
    file.write_text(text)
    flags = ["--estimator", "ar_forward"]
    found = figures(text, *flags)
    perplexity.main(["--model", folder, "--dataset", str(file), "--output", str(result), *flags])
    evaluated = json.loads(result.read_text())
    end = estimate_likelihood(network, [torch.tensor([tiny_tokenizer.eos_token_id])], estimator="ar_forward")
    assert (found["tokens"], found["blocks"]) == (3 * LENGTH, 3)
    assert evaluated["n_tokens"] == 3 * LENGTH + 1
    total = evaluated["nats_per_token"] * evaluated["n_tokens"]
    assert found["nats"] + end.nats_per_token == pytest.approx(total, rel=1e-6)


def test_a_text_longer_than_the_model_is_cut_with_a_remark(radd_score):
    long = f"{TEXT} " * 5
    result = radd_score(long)
    assert result.code == 0
    assert re.search(r"^\d+ tokens are more than the 16 that .* cut into \d+ blocks", result.err)
    assert radd_score(long, "--quiet").err == ""


def test_an_error_is_reached_that_was_asked_for(figures):
    assert figures(TEXT, "--target-se", "0.1")["standard_error"] <= 0.1 * figures(TEXT)["tokens"]


def test_one_pass_is_called_a_pass_and_several_are_passes(radd_score):
    assert radd_score("It is", "--estimator", "ar_forward").out.splitlines()[0].endswith("ar_forward, 1 pass")
    assert radd_score("It is", "--passes", "2").out.splitlines()[0].endswith("k_stratified, 2 passes")


def test_text_that_would_command_the_terminal_is_shown_as_characters(radd_score, monkeypatch, folder):
    result = radd_score("\x1b[2J", "--estimator", "ar_forward")
    assert result.code == 0
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["A", "--prefix", "B"], "TEXT 'A' is the whole text"),
        (["A", "--continuation", "B"], "TEXT 'A' is the whole text"),
        (["--prefix", "B"], "pass a text to score, or a --continuation"),
        ([], "pass a text to score"),
        (["--prefix", "-", "--continuation", "-"], "cannot both be read from standard input"),
        ([""], "text='' has no token"),
        (["A", "--passes", "3"], "passes=3 must be a positive multiple of 2"),
        (["A", "--target-se", "-1"], "target_se=-1.0 must be a positive number"),
        (["A", "--batch-tokens", "0"], "batch_tokens=0 must be an integer of at least 1"),
        (["A", "--device", "abacus"], "device='abacus' cannot be used"),
        (["A", "--estimator", "guess"], "invalid choice: 'guess'"),
        (["--prefix", "A " * 40, "--continuation", "B"], "shorten the prefix"),
    ],
)
def test_a_command_line_at_fault_ends_with_status_2_and_says_why(radd_score, arguments, reason):
    result = radd_score(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert reason in result.err


def test_an_empty_pipe_and_an_error_out_of_reach_say_so(radd_score):
    assert radd_score(stdin="").code == 2
    result = radd_score(TEXT, "--target-se", "1e-9")
    assert result.code == 1
    assert re.fullmatch(r"radd score: error: target_se=1e-09 would take about .*\n", result.err)


def test_the_examples_of_the_help_are_command_lines_that_are_understood():
    lines = re.findall(r"radd score \S+ ?(.*)", score.EXAMPLES)
    assert len(lines) >= 3
    for line in lines:
        score.make_parser().parse_intermixed_args([str(CHECKPOINT), *shlex.split(line)])


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------

TEXTS = [f"It is {'a ' * (number % 5)}truth" for number in range(40)]


@pytest.fixture
def source(tmp_path) -> str:
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)))
    return str(file)


def numbers(row: dict) -> dict:
    return {name: value for name, value in row.items() if isinstance(value, (int, float))}


def rows_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_file_has_a_result_for_each_row_and_the_bits_per_byte_of_all(
    radd_score, source, tmp_path, network, tiny_tokenizer
):
    output = tmp_path / "out.jsonl"
    result = radd_score("--input", source, "--output", str(output), "--seed", "3", "--passes", "4")
    assert (result.code, result.out) == (0, "")
    rows = rows_of(output)
    expected = RowScorer(network, tiny_tokenizer, seed=3, passes=4)([{"text": text} for text in TEXTS], range(40))
    for number, (row, other) in enumerate(zip(rows, expected, strict=True)):
        assert (row.pop("id"), row.pop("text")) == (number, TEXTS[number])
        assert row["error"] is None
        assert numbers(row) == pytest.approx(numbers(other), rel=1e-5)
    n_bytes = sum(row["bytes"] for row in rows)
    bits = sum(row["nats"] for row in rows) / math.log(2) / n_bytes
    error = math.sqrt(sum(row["standard_error"] ** 2 for row in rows)) / math.log(2) / n_bytes
    tokens = sum(row["tokens"] for row in rows)
    assert f"40 texts, {tokens} tokens, {bits:.4f} +- {error:.4f} bits per byte, seed 3" in result.err


def test_an_interrupted_file_goes_on_and_ends_as_one_that_was_not(radd_score, source, tmp_path, monkeypatch):
    monkeypatch.setattr("radd_hf.jobs.job.SHARD", 1)
    flags = ["--input", source, "--passes", "4", "--batch-tokens", "24", "--quiet"]
    assert radd_score(*flags, "--output", str(tmp_path / "whole.jsonl")).code == 0
    compute, computed = RowScorer.compute, []

    def interrupted(self, batch):
        computed.append(len(batch))
        if len(computed) == 5:
            raise KeyboardInterrupt
        return compute(self, batch)

    monkeypatch.setattr(RowScorer, "compute", interrupted)
    assert radd_score(*flags, "--output", str(tmp_path / "out.jsonl")).code == 130
    assert not (tmp_path / "out.jsonl").exists()
    before, computed[:] = sum(computed[:4]), [0] * 5
    assert radd_score(*flags, "--output", str(tmp_path / "out.jsonl")).code == 0
    assert sum(computed) == len(TEXTS) - before
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_processes_write_the_file_of_one(radd_score, folder, source, tmp_path):
    flags = ["--input", source, "--passes", "4", "--batch-tokens", "24", "--quiet"]
    launch = command(2, "-m", "radd_hf", "score", folder, *flags, "--output", str(tmp_path / "two.jsonl"))
    done = subprocess.run(launch, cwd=ROOT, env=QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert radd_score(*flags, "--output", str(tmp_path / "one.jsonl")).code == 0
    one, two = rows_of(tmp_path / "one.jsonl"), rows_of(tmp_path / "two.jsonl")
    for row, other in zip(one, two, strict=True):
        assert row["text"] == other["text"]
        assert numbers(row) == pytest.approx(numbers(other), rel=1e-6)


def test_pairs_of_a_file_are_scored_given_their_prefixes_and_written_as_parquet(radd_score, figures, tmp_path):
    file, output = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    pairs = [{"prefix": "It is", "continuation": " a truth"}, {"prefix": None, "continuation": "It"}]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    exact = ["--estimator", "ar_forward"]
    assert radd_score("--input", str(file), "--output", str(output), *exact).code == 0
    first, second = pq.read_table(output).to_pylist()
    assert first["nats"] == pytest.approx(figures("--prefix", "It is", "--continuation", " a truth", *exact)["nats"])
    assert second["nats"] == pytest.approx(figures("It", *exact)["nats"])
    assert (first["prefix"], second["prefix"]) == ("It is", None)


def test_a_row_that_is_refused_stands_in_the_file_and_in_the_exit_status(radd_score, tmp_path):
    file, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    file.write_text("It is\n\na truth\n")
    result = radd_score("--input", str(file), "--output", str(output))
    assert result.code == 1
    assert "1 of 3 rows have an error in the output; the first is row 1: text=''" in result.err
    assert [row["error"] is None for row in rows_of(output)] == [True, False, True]
    assert "3 texts, " in result.err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--output", "o.jsonl"], "--output o.jsonl: also pass --input"),
        (["--input", "in.jsonl"], "--input in.jsonl: also pass --output"),
        (["--input", "in.jsonl", "--output", "o.jsonl", "A"], "TEXT is not for a file of texts"),
        (["--input", "in.jsonl", "--output", "o.jsonl", "--json"], "--json is not for a file of texts"),
        (["--input", "in.jsonl", "--output", "o.jsonl", "--text-column", "body"], "text_column='body' must be one of"),
        (["--input", "in.jsonl", "--output", "o.jsonl", "--passes", "1"], "passes=1 must be a positive multiple of 2"),
        (["--input", "in.jsonl", "--output", "o.txt"], "must end in .jsonl or .parquet"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_before_work(radd_score, source, tmp_path, monkeypatch, flags, reason):
    monkeypatch.chdir(tmp_path)
    result = radd_score(*flags)
    assert result.code == 2
    assert result.err.startswith("radd score: error: ")
    assert reason in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}
