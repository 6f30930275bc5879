# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `radd` on the folder of a training run, and the bar of `radd generate`."""

import shlex
import sys

import pytest

from radd_hf import RaddForMaskedLM
from radd_hf.app import cli
from radd_hf.hub.loading import load_config, load_tokenizer
from radd_hf.hub.runs import generate_command
from support.paths import ROOT
from support.runs import make_run
from support.toys import random_model


@pytest.fixture
def run(tmp_path, tiny_tokenizer) -> str:
    models = {step: random_model(seed=step, vocab_size=300, max_position_embeddings=64) for step in (9, 20)}
    return str(make_run(tmp_path / "my run", models, tiny_tokenizer))


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """The keywords of the calls of `generate`."""
    calls, generate = [], RaddForMaskedLM.generate

    def record(self, input_ids, **keywords):
        calls.append(keywords)
        return generate(self, input_ids, **keywords)

    monkeypatch.setattr(RaddForMaskedLM, "generate", record)
    return calls


def test_a_folder_in_place_of_a_command_prints_its_newest_checkpoint_and_a_line_that_writes(run, capsys):
    assert cli.main([run]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{run}/checkpoints/step_20\n"
    command = printed.err.splitlines()[-1].removeprefix("try: ")
    program, *words = shlex.split(command)
    assert (program, words[:2]) == ("radd", ["generate", f"{run}/checkpoints/step_20"])
    assert cli.main([*words, "--quiet"]) == 0
    written = capsys.readouterr()
    assert written.out.startswith("It was")
    assert written.out.endswith("of spring\n")


def test_a_folder_that_begins_with_a_hyphen_is_no_option(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-x").symlink_to(run)
    assert cli.main(["./-x"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "./-x/checkpoints/step_20\n"
    assert "try: radd generate ./-x/checkpoints/step_20 " in printed.err


def test_what_is_neither_a_command_nor_a_folder_is_told_so(capsys):
    for word, reason in (("./nosuch", "the commands are generate,"), ("scor", "did you mean score?")):
        with pytest.raises(SystemExit) as ended:
            cli.main([word])
        assert ended.value.code == 2
        assert f"{word!r} is neither a command nor a folder; {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "score"])
def test_a_text_in_the_place_of_the_model_is_told_so(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # is not read
    for model, reason in (("It was cold", "is no folder: name the model first"), ("", "is empty: name the folder")):
        assert cli.main([command, model]) == 2
        assert reason in capsys.readouterr().err


def test_a_table_names_the_checkpoint_that_was_scored(run, capsys):
    assert cli.main(["score", run, "It was a day", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(f"{run}/checkpoints/step_20: ")


def test_a_converted_run_takes_its_tokenizer_along(run, tmp_path):
    assert cli.main(["convert", run, str(tmp_path / "out")]) == 0
    assert cli.main(["generate", str(tmp_path / "out"), "It was [MASK:2]", "--quiet"]) == 0


def test_a_model_that_cannot_spell_the_example_is_asked_for_a_whole_text():
    folder = str(ROOT / "checkpoints" / "radd-sudoku")
    config = load_config(folder)
    command = generate_command(folder, load_tokenizer(folder), config)
    assert command == f"radd generate {folder} --length {min(config.max_position_embeddings, 128)}"


def test_a_folder_that_is_none_of_a_model_is_refused_in_one_line(tmp_path, run, capsys):
    assert cli.main([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"radd: error: folder='{tmp_path}' is a folder without a config.json")
    with pytest.raises(SystemExit) as ended:
        cli.main([run, "more"])
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["generate", "info"])
def test_a_command_takes_the_newest_checkpoint_and_says_so(run, caplog, command):
    assert cli.main([command, run, *(["[MASK]"] if command == "generate" else [])]) == 0
    assert f"is the folder of a training run: {run}/checkpoints/step_20 is its newest checkpoint" in caplog.text


def test_quiet_leaves_that_out(run, capsys, caplog):
    assert cli.main(["generate", run, "[MASK]", "--quiet"]) == 0
    assert capsys.readouterr().err == caplog.text == ""


@pytest.mark.parametrize(
    ("terminal", "flags", "shown"),
    [(True, [], True), (False, [], False), (True, ["--quiet"], False), (True, ["--live"], False)],
)
def test_a_bar_is_shown_on_a_terminal_that_shows_nothing_else(run, asked, monkeypatch, terminal, flags, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert cli.main(["generate", run, "[MASK]", *flags]) == 0
    assert [call["progress"] for call in asked] == [shown]
