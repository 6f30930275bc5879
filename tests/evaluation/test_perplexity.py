"""The evaluation script: a figure with its error and protocol, and what was computed is not lost."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from radd_hf.evaluation import perplexity
from radd_hf.evaluation.metric import DiffusionPerplexity
from radd_hf.evaluation.rounds import RoundsFile, checksum_of
from support.launches import QUIET, command
from support.paths import GOLDEN, ROOT
from support.texts import SENTENCES
from support.toys import random_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_tokenizer) -> str:
    folder = tmp_path_factory.mktemp("model")
    random_model(vocab_size=300, max_position_embeddings=16).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number}. {SENTENCES}" for number in range(3)))
    return path


@pytest.fixture
def evaluate(checkpoint, text, tmp_path):
    def run(**settings) -> dict:
        settings = {"model": checkpoint, "dataset": text, "output": tmp_path / "result.json", "passes": 4} | settings
        flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        perplexity.main(flags)
        return json.loads((tmp_path / "result.json").read_text())

    return run


def figures(result: dict) -> dict:
    """What does not depend on when and how it was computed."""
    return {name: value for name, value in result.items() if name not in ("seconds", "processes", "versions")}


def test_the_result_says_value_error_interval_and_protocol(evaluate, text, capsys):
    result = evaluate()
    assert result["n_bytes"] == len(text.read_bytes())
    assert (result["protocol"], result["split"], result["end_of_text"]) == ("clean", "all", "after each document")
    assert (result["estimator"], result["passes"], result["seed"], result["length"]) == ("k_stratified", 4, 0, 16)
    assert set(result["versions"]) == {"radd_hf", "torch", "transformers", "datasets"}
    assert re.fullmatch(r"\w{12}", result["ids"])
    low, high = result["perplexity_interval"]
    assert low < result["perplexity"] < high
    printed = capsys.readouterr().out
    for title, name, digits in (
        ("nats per token", "nats_per_token", 4),
        ("bits per byte", "bits_per_byte", 4),
        ("perplexity", "perplexity", 2),
    ):
        assert re.search(rf"^{title} +{re.escape(f'{result[name]:.{digits}f}')} ", printed, flags=re.MULTILINE)


def test_the_protocol_of_the_authors_averages_as_they_do(evaluate, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"line": f"{number}. {SENTENCES}"}) + "\n" for number in range(40)))
    result = evaluate(dataset=rows, text_column="line", protocol="radd", split="train")
    assert (result["protocol"], result["end_of_text"]) == ("radd", "after each row")
    assert "bits_per_byte" not in result
    assert "no figure per byte" in capsys.readouterr().out


def test_an_error_that_was_asked_for_is_reached(evaluate):
    first = evaluate(passes=16)
    result = evaluate(passes=1000, target_se=first["standard_error"] / 2)
    assert result["standard_error"] <= first["standard_error"] / 2
    assert result["passes"] > 16


def test_an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not(evaluate, tmp_path, monkeypatch):
    whole = evaluate()
    forward, calls = perplexity.RaddForMaskedLM.forward, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(perplexity.RaddForMaskedLM, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(batch_size=4)
    (left,) = tmp_path.glob("result.json.rounds.*.jsonl")
    left.write_text(left.read_text()[:-5])  # the last line was half-written
    with pytest.raises(ValueError, match="has the rounds of an interrupted evaluation: pass --resume"):
        evaluate()
    with pytest.raises(ValueError, match=r"belongs to another evaluation; .*'seed': \(0, 1\)"):
        evaluate(seed=1, resume=True)
    resumed = evaluate(resume=True)
    assert resumed["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=1e-6)
    assert figures(resumed).keys() == figures(whole).keys()
    assert not list(tmp_path.glob("result.json.rounds.*"))


@pytest.mark.parametrize("estimator", ["ar_confidence", "ar_margin", "ar_entropy"])
def test_an_order_that_the_model_chooses_is_exact_and_goes_on_after_an_interrupt(
    evaluate, tmp_path, monkeypatch, estimator
):
    whole = evaluate(estimator=estimator)
    assert (whole["standard_error"], whole["passes"]) == (0, 1)
    forward, calls = perplexity.RaddForMaskedLM.compute_logits, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 20:  # in the second batch of blocks of 16 tokens
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(perplexity.RaddForMaskedLM, "compute_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(estimator=estimator, batch_size=2)
    (left,) = tmp_path.glob("result.json.rounds.*.jsonl")
    assert len(left.read_text().splitlines()) == 1 + 2, "the identity, and the first batch"
    with pytest.raises(ValueError, match=r"belongs to another evaluation; .*'estimator'"):
        evaluate(resume=True)
    resumed = evaluate(estimator=estimator, resume=True)
    assert resumed["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=1e-6)


IDENTITY, HASH = {"seed": 0}, "de7d7744ccd7"


def rounds_file(tmp_path, *lines: str, process: int = 0, end: str = "\n") -> Path:
    """Writes the file of an interrupted evaluation."""
    path = tmp_path / f"r.json.rounds.{process}.jsonl"
    path.write_bytes(("\n".join(lines) + end).encode("utf-8", "surrogateescape"))
    return tmp_path / "r.json"


def a_round(sequence=0, number=0, nats: object = 1.5, of: object = HASH) -> str:
    record = {"of": of, "sequence": sequence, "round": number, "nats": nats}
    return json.dumps(record | {"sum": checksum_of(record)})


def known(result: Path) -> dict:
    return RoundsFile(result, IDENTITY, 0, True, sequences=3, rounds=2).known


@pytest.mark.parametrize(
    "line",
    [
        a_round(nats=float("nan")),
        a_round(nats=float("inf")),
        a_round(nats=float("-inf")),
        a_round(nats="1.5"),
        a_round(nats=None),
        a_round(nats=True),
        a_round(nats=2),
        a_round(nats=[1.5]),
        a_round().replace("1.5", "1.25"),
        a_round().replace("1.5", "1e400"),
        a_round().replace("1.5", "1" + "0" * 400),
        a_round(sequence=3),
        a_round(sequence=-1),
        a_round(sequence=2**64),
        a_round(sequence=True),
        a_round(sequence=0.0),
        a_round(sequence="0"),
        a_round(number=2),
        a_round(number=-1),
        a_round().replace(f'"of": "{HASH}", ', ""),
        a_round()[:-9],
        "[1]",
        "3",
        "null",
        "",
        "[" * 100_000,
        "\udcff\udcfe",
        "\x00" * 50,
    ],
)
@pytest.mark.parametrize("first", [json.dumps(IDENTITY), None, "{", '{"seed'])
def test_a_damaged_round_is_left_out_with_a_line_and_the_others_stay(tmp_path, caplog, line, first):
    head = [] if first is None else [first]
    result = rounds_file(tmp_path, *head, a_round(2, 1, 2.5), line, a_round(1, 0, 3.5))
    assert known(result) == {(2, 1): 2.5, (1, 0): 3.5}
    assert "r.json.rounds.0.jsonl has damaged lines; their rounds are computed again" in caplog.text


def test_a_pipe_in_the_place_of_a_file_of_rounds_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "r.json.rounds.0.jsonl")
    with pytest.raises(ValueError, match=r"rounds\.0\.jsonl must be a file of rounds"):
        known(tmp_path / "r.json")


@pytest.mark.parametrize("first", [json.dumps(IDENTITY), None, "{"])
def test_a_round_of_another_evaluation_is_refused_whatever_the_first_line(tmp_path, first):
    head = [] if first is None else [first]
    for other in ("000000000000", None, 3, ["x" * 500]):
        result = rounds_file(tmp_path, *head, a_round(), a_round(1, 0, of=other))
        with pytest.raises(ValueError, match=r"rounds\.0\.jsonl belongs to another evaluation: line \d has the hash"):
            known(result)


def test_files_of_two_evaluations_are_refused(tmp_path):
    rounds_file(tmp_path, json.dumps(IDENTITY), a_round())
    result = rounds_file(tmp_path, json.dumps({"seed": 1}), process=1)
    with pytest.raises(ValueError, match=r"rounds\.1\.jsonl belongs to another evaluation; .*'seed': \(1, 0\)"):
        known(result)


def test_a_round_with_two_values_is_computed_again_and_one_that_is_repeated_is_not(tmp_path, caplog):
    rounds_file(tmp_path, json.dumps(IDENTITY), a_round(0, 0, 1.5), a_round(1, 1, 2.0), a_round(1, 1, 2.0))
    result = rounds_file(tmp_path, json.dumps(IDENTITY), a_round(0, 0, 1.25), process=1)
    assert known(result) == {(1, 1): 2.0}
    assert "round 0 of sequence 0 has two values" in caplog.text


def test_a_half_written_end_and_an_empty_file_are_what_an_interrupt_leaves(tmp_path, caplog):
    assert known(rounds_file(tmp_path, end="")) == {}
    assert known(rounds_file(tmp_path, '{"se', end="")) == {}
    assert known(rounds_file(tmp_path, json.dumps(IDENTITY), a_round(), '{"of": "12', end="")) == {(0, 0): 1.5}
    assert caplog.text == ""


def test_a_file_is_whole_again_once_an_evaluation_goes_on(tmp_path, caplog):
    result = rounds_file(tmp_path, "damage", a_round(2, 1, 2.5), "damage", "half", end="")
    kept = RoundsFile(result, IDENTITY, 0, True, sequences=3, rounds=2)
    kept.open()
    kept.add(0, 1, 4.5)
    caplog.clear()
    assert known(result) == {(2, 1): 2.5, (0, 1): 4.5}
    assert caplog.text == ""
    assert json.loads((tmp_path / "r.json.rounds.0.jsonl").read_text().split("\n")[0]) == IDENTITY


@pytest.mark.parametrize("estimator", ["k_stratified", "ar_entropy"])
def test_two_processes_share_what_does_not_divide_and_get_the_figure_of_one(
    evaluate, checkpoint, text, tmp_path, estimator
):
    one = evaluate(estimator=estimator)
    assert one["n_sequences"] % 2 == 1
    arguments = ["--model", checkpoint, "--dataset", str(text), "--passes", "4", "--batch_size", "3"]
    arguments += ["--estimator", estimator]
    arguments += ["--output", str(tmp_path / "two.json")]
    subprocess.run(command(2, str(ROOT / "eval_ppl.py"), *arguments), env=QUIET, check=True, capture_output=True)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["processes"] == 2
    for name, value in figures(one).items():
        expected = pytest.approx(value, rel=1e-5) if isinstance(value, (float, list)) else value
        assert two[name] == expected


def test_the_authors_checkpoints_are_evaluated_as_they_are(evaluate, golden, checkpoint):
    with pytest.raises(ValueError, match=r"(?s)tokenizer='.*hub' cannot be loaded: .* Pass --tokenizer"):
        evaluate(model=golden / "hub")
    with pytest.raises(ValueError, match=r"has ids up to 299, and the model has 97 tokens"):
        evaluate(model=golden / "hub", tokenizer=checkpoint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "elbo"}, "estimator='elbo' must be one of"),
        ({"protocol": "paper"}, "protocol='paper' must be one of"),
        ({"passes": 3}, "passes=3 must be a positive multiple of 2"),
        ({"dataset": "/no/such/text"}, "dataset='/no/such/text' could not be read"),
        ({"dataset": "austen", "split": "dev"}, "dataset='austen' has no split 'dev'; it has"),
        ({"output": "/no/such/folder/result.json"}, "output='/no/such/folder/result.json': there is no folder"),
        ({"output": "/"}, "output='/' is a folder; it must be a file"),
        (
            {"model": GOLDEN / "run"},
            r"model='.*golden/run' is a training run of the authors' code. Convert it first: radd convert",
        ),
        ({"target_se": 1e-9, "passes": 16}, "target_se=1e-09 would take about"),
        ({"length": 0}, "length=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(evaluate, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**settings)


def test_a_likelihood_that_is_not_finite_ends_the_evaluation_and_nothing_is_written(
    evaluate, checkpoint, tmp_path, monkeypatch
):
    model, tokenizer = perplexity.load(checkpoint)
    monkeypatch.setattr(
        model, "compute_logits", lambda hidden, *_: hidden.new_full((*hidden.shape[:-1], 300), torch.nan)
    )
    monkeypatch.setattr(perplexity, "load", lambda *_, **__: (model, tokenizer))
    with pytest.raises(FloatingPointError, match="block 0 of the text has nan nats: the network overflows"):
        evaluate()
    assert not (tmp_path / "result.json").exists()


def test_to_resume_needs_a_place_where_it_was_left(checkpoint):
    with pytest.raises(ValueError, match="resume=True needs output="):
        perplexity.main(["--model", checkpoint, "--resume", "true"])


def test_the_metric_is_one_of_the_evaluate_library():
    model = random_model(vocab_size=12, max_position_embeddings=8)
    sequences = [[1, 2, 3], [4, 5, 6, 7]]
    metric = DiffusionPerplexity()
    direct = metric.compute(predictions=sequences, model=model, passes=8)
    metric.add_batch(predictions=sequences)
    assert metric.compute(model=model, passes=8) == direct
    assert metric.compute(predictions=[torch.tensor(ids) for ids in sequences], model=model, passes=8) == direct
    assert direct["perplexity"] == pytest.approx(torch.tensor(direct["nats_per_token"]).exp().item())
