# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The folder of a training run, where a model is named: its newest whole checkpoint is taken."""

from pathlib import Path

import pytest
import torch

from radd_hf.hub.convert import convert
from radd_hf.hub.facts import model_facts
from radd_hf.hub.loading import load, load_config, load_model, load_tokenizer
from radd_hf.hub.runs import is_run, newest_model
from support.paths import CHECKPOINT, ROOT
from support.runs import make_run
from support.toys import random_model


@pytest.fixture
def models() -> dict:
    return {step: random_model(seed=step, vocab_size=300, max_position_embeddings=16) for step in (9, 20, 100)}


@pytest.fixture
def run(tmp_path, models, tiny_tokenizer) -> str:
    return str(make_run(tmp_path / "run", models, tiny_tokenizer))


def same(model, other) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))


def test_a_run_stands_for_its_newest_checkpoint_and_one_line_says_so(run, models, caplog):
    model, tokenizer = load(run)
    assert same(model, models[100])
    assert tokenizer.name_or_path == f"{run}/checkpoints/step_100"
    (said,) = [record.getMessage() for record in caplog.records if record.name == "radd_hf.hub.runs"]
    assert said == f"model={run!r} is the folder of a training run: {run}/checkpoints/step_100 is its newest checkpoint"


def test_every_way_of_naming_a_model_takes_the_same_checkpoint(run, models, tmp_path):
    assert same(load_model(run), models[100])
    assert load_config(run).vocab_size == 300
    assert load_tokenizer(run).name_or_path.endswith("step_100")
    assert model_facts(run)["model"].endswith("step_100")
    assert same(load_model(str(convert(run, tmp_path / "copy", tokenizer=run))), models[100])


def test_a_damaged_checkpoint_is_passed_over_and_named(run, models, caplog):
    weights = Path(run) / "checkpoints" / "step_100" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert same(load_model(run), models[20])
    assert "step_20 is its newest whole checkpoint (step_100 is damaged: model.safetensors has another SHA-256" in (
        caplog.text
    )


def test_a_save_that_was_killed_is_not_a_checkpoint(run):
    newest = Path(run) / "checkpoints" / "step_100"
    newest.rename(newest.with_name("partial_100"))
    assert newest_model(run) == f"{run}/checkpoints/step_20"


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path, tiny_tokenizer, models):
    empty = make_run(tmp_path / "empty", {}, tiny_tokenizer)
    (empty / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"init_from='.*empty' is the folder of a training run without a whole .*yet"):
        newest_model(str(empty), "init_from")
    damaged = make_run(tmp_path / "damaged", {9: models[9]}, tiny_tokenizer)
    (damaged / "checkpoints" / "step_9" / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"without a whole checkpoint: step_9 is damaged: config\.json is missing\. To take one"
    ):
        load_model(str(damaged))


def test_a_model_a_repository_and_other_folders_are_no_runs(run, tmp_path):
    for name in (str(CHECKPOINT), f"{run}/checkpoints/step_9", "JingyangOu/radd-t-dce", "radd" * 9, str(tmp_path)):
        assert newest_model(name) == name
    assert not is_run(ROOT)  # which has a folder `checkpoints`
