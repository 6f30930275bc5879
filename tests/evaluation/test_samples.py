# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The script for generative quality, end to end on a tiny model and a tiny judge; its samples, whoever writes them."""

import importlib.util
import json
import shutil
import subprocess
import textwrap
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from radd_hf import RaddForMaskedLM, RaddGenerationConfig
from radd_hf.evaluation import perplexity, samples
from radd_hf.evaluation.quality import distinct_n, judge, load_judge, token_entropy, write_samples
from radd_hf.noise_radd import expected_evaluations, get_noise
from support.hostile import FOR_TERMINALS
from support.judges import LIMIT, random_judge
from support.launches import QUIET, command
from support.paths import CHECKPOINT, ROOT
from support.texts import SENTENCES
from support.toys import random_model

LENGTH = 12
STEPS = [4, 16]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """A checkpoint of a tiny model, whose own generation config must not matter, and a tiny judge."""
    model, writer = random_model(vocab_size=300, max_position_embeddings=LENGTH), tmp_path_factory.mktemp("model")
    model.generation_config = RaddGenerationConfig(temperature=0.1, method="ordered", steps=2, use_cache=False)
    model.save_pretrained(writer)
    tiny_tokenizer.save_pretrained(writer)
    judge_folder = tmp_path_factory.mktemp("judge")
    random_judge("gpt2").save_pretrained(judge_folder)
    tiny_tokenizer.save_pretrained(judge_folder)
    return SimpleNamespace(model=str(writer), judge=str(judge_folder))


@pytest.fixture
def evaluate(folders, tmp_path):
    """Runs the script with the given flags; returns the JSON."""

    def run(**flags) -> dict:
        output = tmp_path / "result.json"
        defaults = {"model": folders.model, "n_samples": 6, "steps": ",".join(map(str, STEPS)), "output": output}
        arguments = [part for name, value in (defaults | flags).items() for part in (f"--{name}", str(value))]
        samples.main(arguments)
        return json.loads(output.read_text())

    return run


def without_times(result: dict) -> dict:
    """Nor the batch size, to which they belong."""
    rows = [{name: value for name, value in row.items() if name != "seconds_per_sample"} for row in result["rows"]]
    return {name: value for name, value in result.items() if name != "batch_size"} | {"rows": rows}


def test_every_method_has_its_rows_in_the_json_and_in_the_table(evaluate, folders, tiny_text, capsys):
    result = evaluate(judge=folders.judge, reference=tiny_text, orders="forward,random")
    rows = [(row["method"], row["order"], row["steps"]) for row in result["rows"]]
    assert rows == [
        *(("tweedie", None, steps) for steps in STEPS),
        *(("euler", None, steps) for steps in STEPS),
        ("first_hitting", None, None),
        *(("ordered", order, steps) for order in ("forward", "random") for steps in (4, LENGTH)),
    ]
    assert (result["length"], result["n_samples"], result["temperature"]) == (LENGTH, 6, 1.0)
    out, err = capsys.readouterr()
    assert "generated ordered random, 12 steps in" in err
    assert "scored first_hitting" in err
    lines = {tuple(line.split()[:3]): line for line in out.splitlines()}
    row = result["rows"][1]
    line = lines["tweedie", "16", f"{row['nfe']:.2f}"]
    for figure in (row["nfe_error"], row["nfe_formula"]):
        assert f"{figure:.2f}" in line
    for figure in (row["seconds_per_sample"], row["token_entropy"], *(row[f"distinct_{n}"] for n in (1, 2, 3))):
        assert f"{figure:.3f}" in line
    assert f"{row['judgement']['perplexity']:.1f} +- {row['judgement']['perplexity_error']:.1f}" in line
    assert f"text of {tiny_text}" in out
    assert all(row["seconds_per_sample"] > 0 for row in result["rows"])


def test_adaptive_orders_have_rows_for_steps_and_for_bounds(evaluate, capsys):
    flags = {"methods": "ordered", "orders": "random,margin", "steps": 4}
    result = evaluate(**flags, entropy_bounds="0, 1e6", confidence_thresholds=1e-9)
    rows = [
        (row["order"], row["steps"], row["entropy_bound"], row["confidence_threshold"], row["nfe"], row["nfe_formula"])
        for row in result["rows"]
    ]
    assert rows == [
        ("random", 4, None, None, 4, 4),
        ("margin", 4, None, None, 4, 4),
        ("margin", None, 0, None, LENGTH, None),
        ("margin", None, 1e6, None, 1, None),
        ("margin", None, None, 1e-9, 1, None),
    ]
    out = capsys.readouterr().out
    assert "ordered margin, bound 1e+06" in out
    assert "ordered margin, threshold 1e-09" in out


def test_a_bound_without_an_adaptive_order_means_its_own(evaluate):
    result = evaluate(methods="ordered", steps=4, entropy_bounds=0.5, confidence_thresholds=0.5)
    assert [row["order"] for row in result["rows"]] == ["forward", "entropy", "confidence"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"entropy_bounds": "0.1,high"}, "entropy_bounds='0.1,high' must be numbers"),
        ({"entropy_bounds": "-1"}, "entropy_bounds='-1': -1 must be a number of nats"),
        ({"confidence_thresholds": "0.5,2"}, "confidence_thresholds='0.5,2': 2 must be a probability"),
        ({"methods": "tweedie", "entropy_bounds": "0.1"}, "methods='tweedie' must include 'ordered'"),
        ({"orders": "entropy", "refresh_interval": 4}, "refresh_interval=4"),
    ],
)
def test_bounds_that_cannot_be_are_refused_before_loading(evaluate, flags, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model="nowhere", **flags)


def test_a_schedule_has_rows_of_its_own(evaluate, folders, tmp_path, capsys):
    folder = tmp_path / "profiled"
    shutil.copytree(folders.model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"information_profile": [3.0, 1.0], "steps": 2}))
    result = evaluate(model=folder, methods="ordered", orders="random", schedule="profile")
    rows = [(row["order"], row["schedule"], row["steps"], row["nfe"]) for row in result["rows"]]
    assert rows == [("random", schedule, steps, steps) for schedule in (None, "profile") for steps in (4, LENGTH)]
    assert "ordered random, profile  " in capsys.readouterr().out


def test_a_schedule_of_a_model_without_a_profile_is_refused_before_anything_is_written(evaluate, monkeypatch):
    monkeypatch.setattr(samples, "write_samples", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(ValueError, match=r"schedule='profile' needs a profile, but .* has none: run radd profile"):
        evaluate(schedule="profile")


def test_a_row_holds_the_figures_of_the_samples_that_its_seed_gives(evaluate, folders):
    result = evaluate(judge=folders.judge, methods="euler", steps="8", seed=5, temperature=0.5, top_k=40, length=10)
    model = RaddForMaskedLM.from_pretrained(folders.model, generation_config=RaddGenerationConfig())
    settings = {"method": "euler", "steps": 8, "temperature": 0.5, "top_k": 40, "length": 10}
    written = write_samples(model, 6, seed=5, **settings)
    (row,) = result["rows"]
    assert written.ids.shape == (6, 10)
    assert row["nfe"] == written.evaluations.double().mean().item()
    assert row["nfe_error"] == pytest.approx(written.evaluations.double().std().item() / 6**0.5)
    assert row["nfe_formula"] == expected_evaluations(get_noise(model.config), "euler", 8, 10)
    assert row["token_entropy"] == token_entropy(written.ids)
    assert [row[f"distinct_{n}"] for n in (1, 2, 3)] == [distinct_n(written.ids, n) for n in (1, 2, 3)]
    tokenizer = AutoTokenizer.from_pretrained(folders.model)
    texts = [tokenizer.decode(row) for row in written.ids]
    judgement = judge(texts, *load_judge(folders.judge), eos_token=tokenizer.eos_token)
    assert row["judgement"] == pytest.approx(judgement.to_dict())


def test_neither_batch_size_changes_a_figure(evaluate, folders):
    expected = without_times(evaluate(judge=folders.judge))
    result = without_times(evaluate(judge=folders.judge, batch_size=4, judge_batch_size=3))
    for row, other in zip(result["rows"], expected["rows"], strict=True):
        assert row.pop("judgement") == pytest.approx(other.pop("judgement"), rel=1e-5)
    assert result == expected


def test_another_seed_gives_other_samples(evaluate):
    first, second = (without_times(evaluate(methods="tweedie", steps="8", seed=seed))["rows"] for seed in (0, 1))
    assert first != second


def test_under_log_linear_noise_euler_and_tweedie_write_the_same(evaluate):
    rows = without_times(evaluate(methods="tweedie,euler"))["rows"]
    tweedie, euler = rows[:2], rows[2:]
    for row, other in zip(tweedie, euler, strict=True):
        assert row.pop("nfe_formula") == pytest.approx(other.pop("nfe_formula"))
        assert row | {"method": "euler"} == other


def test_the_reference_is_the_text_cut_to_the_length_of_the_samples(evaluate, folders, tiny_text):
    result = evaluate(methods="first_hitting", reference=tiny_text, judge=folders.judge)
    tokenizer = AutoTokenizer.from_pretrained(folders.model)
    ids = tokenizer.encode(tiny_text.read_text(), add_special_tokens=False)
    n_blocks = (len(ids) + 1) // LENGTH  # EOS at the end
    rows = torch.tensor([ids[block * LENGTH :][:LENGTH] for block in (index * n_blocks // 6 for index in range(6))])
    assert result["reference"]["token_entropy"] == token_entropy(rows)
    expected = judge(tokenizer.batch_decode(rows), *load_judge(folders.judge))
    assert result["reference"]["judgement"]["perplexity"] == pytest.approx(expected.perplexity)
    assert (result["reference"]["text"], result["reference"]["split"]) == (str(tiny_text), "all")


def test_a_special_token_that_the_reference_spells_is_its_characters(evaluate, tmp_path):
    (tmp_path / "text.txt").write_text("<|mask|><|endoftext|>" * 400)
    settings = {"methods": "first_hitting", "reference": tmp_path / "text.txt"}
    assert evaluate(**settings)["reference"]["token_entropy"] > 1
    with pytest.raises(ValueError, match="spells the mask"):
        evaluate(**settings, special_tokens_in_text=True)


def test_the_reference_can_be_what_is_held_out_of_a_text(evaluate, tmp_path):
    (tmp_path / "text.txt").write_text("no " * 6000 + SENTENCES * 12)
    whole = evaluate(methods="first_hitting", reference=tmp_path / "text.txt")["reference"]
    last = evaluate(methods="first_hitting", reference=tmp_path / "text.txt", reference_split="validation")["reference"]
    assert (whole["split"], last["split"]) == ("all", "validation")
    assert whole["token_entropy"] < 1 < last["token_entropy"]


def test_without_a_judge_and_a_text_the_rest_is_there(evaluate, capsys):
    result = evaluate(methods="first_hitting")
    assert result["judge"] is result["reference"] is result["rows"][0]["judgement"] is None
    assert result["rows"][0]["nfe"] == result["rows"][0]["nfe_formula"] == LENGTH
    assert "perplexity: no judge" in capsys.readouterr().out


def test_samples_of_two_tokens_have_no_distinct_3(evaluate):
    (row,) = evaluate(methods="first_hitting", length=2)["rows"]
    assert "distinct_2" in row
    assert "distinct_3" not in row


def test_texts_that_the_judge_read_in_part_are_mentioned(evaluate, folders, capsys):
    result = evaluate(methods="first_hitting", judge=folders.judge, length=LIMIT + 4)
    assert result["rows"][0]["judgement"]["n_truncated"] == 6
    assert "longer than the judge model's context" in capsys.readouterr().out


@pytest.mark.parametrize("n_empty", [2, 6])
def test_empty_texts_do_not_end_the_evaluation_but_are_counted(
    evaluate, folders, monkeypatch, tmp_path, capsys, n_empty
):
    pytest.importorskip("matplotlib")
    decode = PreTrainedTokenizerBase.batch_decode
    monkeypatch.setattr(
        PreTrainedTokenizerBase, "batch_decode", lambda *a, **k: [""] * n_empty + decode(*a, **k)[n_empty:]
    )
    result = evaluate(methods="first_hitting", judge=folders.judge, plot=tmp_path / "picture.png")
    judgement, out = result["rows"][0]["judgement"], capsys.readouterr().out
    if n_empty == 6:
        assert judgement is None, "there is nothing to judge"
    else:
        assert (judgement["n_empty"], judgement["n_texts"]) == (2, 4)
        assert "2 texts were empty and are left out of the perplexity" in out


def test_two_processes_write_and_measure_what_one_does(evaluate, folders, tmp_path):
    expected = without_times(evaluate(judge=folders.judge, n_samples=5))
    output = tmp_path / "two.json"
    arguments = ["--model", folders.model, "--judge", folders.judge, "--n_samples", "5", "--steps", "4,16"]
    script = command(2, str(ROOT / "eval_generation.py"), *arguments, "--output", str(output))
    done = subprocess.run(script, cwd=ROOT, env=QUIET, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = without_times(json.loads(output.read_text()))
    assert result.pop("device").startswith("2 x ")
    del expected["device"]
    for row, other in zip(result["rows"], expected["rows"], strict=True):
        assert row.pop("judgement") == pytest.approx(other.pop("judgement"), rel=1e-5)
    assert result == expected
    assert done.stdout.count("NFE measured") == 1, "one table"


def test_every_process_is_asked_for_its_share(evaluate, monkeypatch):
    asked = []

    def recorded(*args, **settings):
        asked.append(settings["accelerator"])
        return write_samples(*args, **settings)

    monkeypatch.setattr(samples, "write_samples", recorded)
    evaluate(methods="first_hitting")
    assert [accelerator.num_processes for accelerator in asked] == [1, 1], "to begin with, and of the one row"


def test_a_picture_is_drawn_with_and_without_a_judge(evaluate, folders, tiny_text, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    evaluate(plot=picture)
    alone = picture.read_bytes()
    evaluate(plot=picture, judge=folders.judge, reference=tiny_text)
    assert alone.startswith(b"\x89PNG")
    assert len(picture.read_bytes()) > len(alone), "one panel more"


@pytest.mark.parametrize("name", ["generative_quality", "orders_quality"])
def test_the_page_shows_the_table_of_the_recorded_result(name):
    result = json.loads((ROOT / f"docs/figures/{name}.json").read_text())
    page = (ROOT / "docs/generative_quality.md").read_text()
    assert textwrap.indent(samples.table(result), " " * 4) in page


@pytest.mark.parametrize("text", FOR_TERMINALS.values(), ids=FOR_TERMINALS)
def test_the_tables_show_names_from_outside_and_obey_none(text):
    result = json.loads((ROOT / "docs/figures/generative_quality.json").read_text())
    hostile = result | dict.fromkeys(("model", "judge", "device"), text)
    hostile["reference"] = result["reference"] | {"text": text}
    figures = json.loads((CHECKPOINT / "evaluation.json").read_text())
    identity = figures | dict.fromkeys(("model", "dataset", "split", "end_of_text", "protocol"), text)
    for shown, plain in (
        (samples.table(hostile), samples.table(result)),
        (perplexity.table(identity, figures), perplexity.table(figures, figures)),
    ):
        assert all(line.isprintable() for line in shown.split("\n"))
        assert shown.count("\n") == plain.count("\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"methods": "tweedie,gibbs"}, r"methods='tweedie,gibbs' must name .*unknown: \['gibbs'\]"),
        ({"methods": ","}, "methods=',' must name at least one"),
        ({"orders": "sideways"}, "orders='sideways' must name"),
        ({"steps": "8,0"}, "steps='8,0' must be whole numbers of at least 1"),
        ({"steps": "8,x"}, "steps='8,x' must be whole numbers"),
        ({"steps": ""}, "steps='' must not be empty"),
        ({"n_samples": 1}, "n_samples=1 must be at least 2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"judge_batch_size": 0}, "judge_batch_size=0"),
        ({"length": 0}, "length=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 2}, "top_p=2"),
        ({"schedule": "cosine"}, "schedule='cosine' must be one of"),
        ({"output": "no/such/folder/result.json"}, "output='no/such/folder/result.json': there is no folder"),
        ({"output": "/"}, "output='/' is a folder; it must be a file"),
        ({"plot": "picture.nope"}, r"plot='picture\.nope' must end in one of \["),
        ({"judge": "no/such/judge"}, "judge='no/such/judge' cannot be loaded"),
        ({"reference": "no/such/text"}, "reference='no/such/text' could not be read"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name_before_anything_is_written(evaluate, monkeypatch, flags, message):
    monkeypatch.setattr(samples, "write_samples", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(ValueError, match=message):
        evaluate(**flags)


def test_a_text_too_short_for_a_reference_is_refused(evaluate, tmp_path):
    (tmp_path / "short.txt").write_text("It is a truth universally acknowledged, that a single man must be.")
    with pytest.raises(ValueError, match=r"count=6 must be at least 1 and at most \d+, the rows of the text"):
        evaluate(reference=tmp_path / "short.txt")


def test_a_plot_without_matplotlib_is_refused_at_once(evaluate, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs matplotlib, which is not installed"):
        evaluate(plot=tmp_path / "picture.png")


def test_a_launchers_world_that_accelerate_does_not_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # without the rest of what a launcher sets
    monkeypatch.setattr("radd_hf.processes.Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but Accelerate runs 1 processes"):
        samples.main(["--model", "none"])
