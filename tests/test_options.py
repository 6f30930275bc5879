# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Command lines: misspelled commands, options and choices are one line that says which was meant."""

import pytest

from radd_hf.app import cli
from radd_hf.evaluation import perplexity
from radd_hf.options import OneLineParser, did_you_mean
from radd_hf.training import arguments


@pytest.fixture
def parser() -> OneLineParser:
    parser = OneLineParser(prog="cook")
    parser.add_argument("dish")
    parser.add_argument("more", nargs="?")
    parser.add_argument("--batch-size", "-b", type=int)
    parser.add_argument("--oven_heat", type=int)
    parser.add_argument_group("taste").add_argument("--method", choices=("boil", "roast"))
    return parser


def test_hyphens_and_underscores_in_an_option_mean_the_same(parser):
    for words in (["--batch_size", "3", "--oven-heat=9"], ["--batch-size=3", "--oven_heat", "9"]):
        args = parser.parse_args(["soup", *words])
        assert (args.batch_size, args.oven_heat) == (3, 9)


def test_every_other_word_reaches_the_command_as_it_is(parser):
    assert parser.parse_args(["soup", "--a_b said he"]).more == "--a_b said he"
    assert parser.parse_args(["soup", "--", "--batch_size"]).more == "--batch_size"
    assert parser.parse_args(["-b", "2", "a_b-c"]).dish == "a_b-c"
    assert parser.parse_args(["--batch_size=-1", "soup"]).batch_size == -1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["soup", "--batch_sise", "3"], "there is no option --batch_sise; did you mean --batch-size?"),
        (["--oven-heet=9"], "there is no option --oven-heet; did you mean --oven_heat?"),
        (["soup", "--xyzzy"], "there is no option --xyzzy (see --help)"),
        (["soup", "--method", "bol"], "argument --method: invalid choice: 'bol'; did you mean boil?"),
        (["soup", "--method", "x"], "invalid choice: 'x'; it must be one of boil, roast. (see --help)"),
        (["soup", "a", "b"], "unrecognized arguments: b (see --help)"),
        (["soup", "--batch", "3"], "there is no option --batch; did you mean --batch-size?"),
        ([], "the following arguments are required: dish"),
    ],
)
def test_a_command_line_at_fault_is_one_line_and_status_2(parser, capsys, words, reason):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cook: error: ")
    assert reason in line


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["generatee", "m"], "generate"),
        (["generate", "m", "--tempreature", "1"], "--temperature"),
        (["generate", "m", "--method", "twedie"], "tweedie"),
        (["generate", "m", "--order", "randon"], "random"),
        (["generate", "m", "--dtype", "bfloat"], "bfloat16"),
        (["info", "m", "--jsn"], "--json"),
        (["convert", "a", "b", "--tokeniser", "gpt2"], "--tokenizer"),
        (["train", "--learning-rat", "1"], "--learning-rate"),
        (["train", "--confg", "tiny"], "--config"),
        (["eval", "--modell", "m"], "--model"),
        (["quality", "--n_sample", "3"], "--n_samples"),
        (["profile", "m", "--pases", "3"], "--passes"),
    ],
)
def test_every_command_says_what_was_meant(capsys, words, meant):
    try:
        status = cli.main(words)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"did you mean {meant}?")


def test_the_scripts_take_both_spellings_too():
    for option in ("--batch_size", "--batch-size"):
        assert perplexity.parse_arguments(["--model", "m", option, "7"]).batch_size == 7
        assert arguments.parse_arguments([option, "8"])[2].batch_size == 8


def test_the_help_of_a_script_names_each_option_once_and_no_default_twice():
    lines = " ".join(perplexity.make_parser().format_help().split())
    assert "--model MODEL [options]" in lines
    assert "--target_se X standard error" in lines
    assert "--target-se" not in lines
    assert "(default: austen)" in lines
    assert "None" not in lines


def test_nothing_is_suggested_for_a_name_that_is_like_none():
    assert did_you_mean("xyzzy", ["batch", "length"]) == ""
    assert did_you_mean("--temp", ["--temperature", "--steps", "--help"]) == "did you mean --temperature?"
    assert did_you_mean("--lr", ["--learning_rate", "--help"]) == ""
    assert did_you_mean("GENERATE", ["generate"]) == "did you mean generate?"
