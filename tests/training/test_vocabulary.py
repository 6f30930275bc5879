# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A run's vocabulary is the tokenizer's, whatever its ids; that of a model to start from must be its own."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from radd_hf import RaddForMaskedLM
from radd_hf.hub.loading import load
from radd_hf.training import train
from support.launches import TINY
from support.paths import GOLDEN
from support.tokenizers import letters
from support.toys import random_model


@pytest.fixture
def run(tmp_path, tiny_config):
    """Trains one step without a vocabulary's size; returns the folder of the checkpoint."""

    def run_folder(**settings) -> Path:
        settings = {"vocab_size": None, "max_steps": 1, "n_samples": 1} | settings
        output = tmp_path / "run"
        train.main(["--config", tiny_config(**settings), "--output_dir", str(output)])
        return output / "checkpoints" / "step_1"

    return run_folder


@pytest.fixture
def start(tmp_path, tiny_tokenizer):
    """Writes a model to start from, padded to a multiple of 64, with its tokenizer; returns the folder's name."""

    def write(pad: bool = True, **settings) -> str:
        sizes = {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        model = random_model(
            **sizes,
            embedding_std=0.5,
            zero_init_residual=True,
            **{"vocab_size": 300, "max_position_embeddings": 16} | settings,
        )
        if pad:
            model.resize_token_embeddings(pad_to_multiple_of=64)
        model.save_pretrained(tmp_path / "start")
        tiny_tokenizer.save_pretrained(tmp_path / "start")
        return str(tmp_path / "start")

    return write


@pytest.mark.parametrize("ids", [range(1, 27), range(0, 78, 3)])
def test_a_tokenizer_whose_ids_have_holes_gets_a_model_with_room_for_all_and_a_mask_of_its_own(run, tmp_path, ids):
    letters(ids).save_pretrained(tmp_path / "letters")
    checkpoint = run(tokenizer=str(tmp_path / "letters"))
    model, tokenizer = load(str(checkpoint))
    assert model.config.vocab_size == max(ids) + 2
    assert model.config.mask_token_id == max(ids) + 1
    assert tokenizer.get_vocab() == letters(ids).get_vocab()
    run(tokenizer=str(tmp_path / "letters"))  # goes on, with the tokenizer of the checkpoint


def test_a_model_whose_vocabulary_is_padded_is_trained_on(run, start):
    checkpoint = run(init_from=start())
    config = json.loads((checkpoint / "config.json").read_text())
    assert (config["vocab_size"], config["num_tokens"], config["mask_token_id"]) == (320, 300, 299)
    assert AutoTokenizer.from_pretrained(checkpoint).mask_token_id == 299


def test_a_model_that_was_padded_by_hand_is_trained_on(run, start):
    checkpoint = run(init_from=start(pad=False, vocab_size=320, mask_token_id=299))
    assert RaddForMaskedLM.from_pretrained(checkpoint).config.vocab_size == 320


def test_a_tokenizer_with_tokens_where_the_model_has_padding_is_refused(run, start, tmp_path, tiny_tokenizer):
    folder = start()
    more = AutoTokenizer.from_pretrained(folder)
    more.add_tokens(["<|new|>"])
    more.save_pretrained(tmp_path / "more")
    with pytest.raises(
        ValueError, match="has ids up to 300, and the model has 300 tokens: it belongs to another model"
    ):
        run(init_from=folder, tokenizer=str(tmp_path / "more"))


def test_the_size_of_a_vocabulary_is_refused_beside_a_tokenizer_of_another_size(run, start):
    folder = start(pad=False)
    message = f"vocab_size=512 must be left out, or be 300, the size of the vocabulary of '{folder}'"
    for name in ("tokenizer", "init_from"):
        with pytest.raises(ValueError, match=message):
            run(**{name: folder}, vocab_size=512, dataset="/no/such/text")


def test_a_model_without_a_tokenizer_beside_it_needs_one(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)tokenizer='.*hub' cannot be loaded: .* Pass --tokenizer"):
        train.main(["--init_from", str(GOLDEN / "hub"), "--output_dir", str(tmp_path), "--dataset", "/no/such/text"])


def test_a_vocabulary_that_is_too_small_is_refused_before_text_is_read(run):
    with pytest.raises(ValueError, match="vocab_size=257 must be at least 258"):
        run(vocab_size=257, dataset="/no/such/text")


def test_a_padded_model_is_trained_on_alike_with_and_without_a_compiler(run, start):
    folder, losses = start(), []
    for settings in ({}, {"compile": True, "compile_backend": "aot_eager"}):
        checkpoint = run(init_from=folder, hidden_dropout=0.0, **settings)
        losses.append(json.loads((checkpoint.parents[1] / "metrics.jsonl").read_text().splitlines()[-1]))
        shutil.rmtree(checkpoint.parents[1])
    plain, compiled = (entry["final_nats_per_token"] for entry in losses)
    assert compiled == pytest.approx(plain, rel=1e-4)
