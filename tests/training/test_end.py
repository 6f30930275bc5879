# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What a training prints when it is done: the table of its held-out text, the checkpoint, and a line that writes."""

import shlex
import sys

import pytest

from radd_hf.app import cli
from radd_hf.evaluation import perplexity, rounds
from radd_hf.hub.loading import load_model
from radd_hf.training import train
from support.launches import TINY, metrics


@pytest.fixture
def trained(tmp_path, tiny_config, capsys, monkeypatch):
    """Trains, and returns what it wrote to standard output and error. The run is `my run` here."""
    monkeypatch.chdir(tmp_path)

    def run(**settings):
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        train.main(["--config", tiny_config(), "--output_dir", "my run", "--n_samples", "0", *flags])
        return capsys.readouterr()

    return run


def test_the_table_is_that_of_an_evaluation_with_the_figures_of_the_log(trained, tmp_path):
    printed = trained().out
    logged = metrics(tmp_path / "my run")[-1]
    figures = {name.removeprefix("final_"): value for name, value in logged.items()} | {"seconds": 0.0}
    identity = {"model": "my run/checkpoints/step_8", "split": "the held-out part", "protocol": "clean"}
    identity |= {"dataset": TINY.get("dataset", ""), "end_of_text": "after each document"}
    identity |= {"length": TINY["length"], "estimator": "k_stratified"}
    expected = perplexity.table(identity, figures).splitlines()
    assert printed.splitlines()[2 : len(expected)] == expected[2:]
    assert printed.startswith("my run/checkpoints/step_8 on ")
    assert f"perplexity{logged['final_perplexity']:>15.2f}" in printed
    assert "final_seconds" not in logged


def test_the_last_line_can_be_pasted(trained, capsys):
    *_, says, _, line = trained().out.splitlines()
    assert says == "The model is in my run/checkpoints/step_8. Generate text with it:"
    program, *words = shlex.split(line)
    assert (program, words[1]) == ("radd", "my run/checkpoints/step_8")
    assert cli.main([*words, "--quiet"]) == 0
    assert len(capsys.readouterr().out) > 10


def test_a_run_that_is_done_says_so_again_when_it_is_started_again(trained):
    first = trained().out.splitlines()
    again = trained().out.splitlines()
    assert again[2:] == first[2:]  # the second line has the seconds


def test_the_last_evaluation_alone_has_a_bar(trained, monkeypatch):
    shown, tqdm = [], rounds.tqdm
    monkeypatch.setattr(rounds, "tqdm", lambda **settings: shown.append(settings) or tqdm(**settings))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    printed = trained(eval_steps=2)
    assert [bar["unit"] for bar in shown] == ["round"]
    assert f"{shown[0]['total']}/{shown[0]['total']}" in printed.err
    assert "nats per token" in printed.err


def test_a_training_begins_with_the_newest_checkpoint_of_another_run(trained, tmp_path):
    trained(max_steps=2)
    vocabulary = load_model("my run").config.vocab_size
    train_again = {"init_from": "my run", "output_dir": "next", "max_steps": 1, "vocab_size": vocabulary}
    trained(**train_again)
    assert "init_from: my run/checkpoints/step_2\n" in (tmp_path / "next" / "config.yaml").read_text(encoding="utf-8")
