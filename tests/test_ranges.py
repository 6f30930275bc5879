# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Every number of every script and of the public functions is refused by name, or has a meaning that is listed here."""

import math
import re
from dataclasses import fields
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from radd_hf.evaluation import perplexity, quality, samples
from radd_hf.evaluation.metric import DiffusionPerplexity
from radd_hf.likelihood import LikelihoodRounds, estimate_likelihood, exact_likelihood, mixture_likelihood
from radd_hf.ranges import COUNT, Range, check_fields
from radd_hf.training import arguments, train
from support.judges import random_judge
from support.toys import random_model

ODD = ("-1", "0", "nan", "inf", "-inf", "1e400", str(2**31), str(2**63), str(2**64), "")
NONE, ZERO, BIG = frozenset[str](), frozenset({"0"}), frozenset({str(2**31), str(2**63), str(2**64)})

# Of each field that is a number, those of ODD that mean something; all others are refused. A new field needs an entry.
TRAINING: dict[str, frozenset[str]] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads"), NONE),
    **dict.fromkeys(("hidden_dropout", "lora_dropout", "adam_beta1", "adam_beta2", "ema_decay"), ZERO),
    **dict.fromkeys(("embedding_std", "max_grad_norm"), BIG),
    **dict.fromkeys(("learning_rate", "weight_decay"), ZERO | BIG),
    **dict.fromkeys(("lora_rank", "warmup_steps", "n_samples", "held_out", "random_length_fraction"), ZERO),
    **dict.fromkeys(("lora_alpha", "vocab_size", "length", "tokenizing_workers"), NONE),
    **dict.fromkeys(("max_steps", "batch_size", "accumulation", "eval_sequences", "eval_passes"), NONE),
    **dict.fromkeys(("log_steps", "save_steps", "eval_steps", "sample_steps", "sampling_steps", "keep_last"), NONE),
    **dict.fromkeys(("timeout", "adam_epsilon"), NONE),
    "seed": ZERO | {str(2**31)},
}
PERPLEXITY: dict[str, frozenset[str]] = {
    **dict.fromkeys(("length", "passes", "batch_size"), NONE),
    "target_se": BIG,
    "seed": ZERO | BIG | {"-1"},  # hashed
}
QUALITY: dict[str, frozenset[str] | None] = {
    **dict.fromkeys(("n_samples", "batch_size", "judge_batch_size"), NONE),
    "seed": ZERO | BIG | {"-1"},
    **dict.fromkeys(samples.COMMON, None),  # settings of `generate`, whose own tests have them
}


def quality_arguments(argv: list[str]) -> list:
    args, drawing = samples.parse_arguments(argv)
    samples.check(args, drawing)
    return [args, SimpleNamespace(**drawing)]


SCRIPTS = {
    "train": (
        TRAINING,
        arguments.parse_arguments,
        [],
        train.ModelArguments,
        train.DataArguments,
        train.TrainingArguments,
    ),
    "eval": (PERPLEXITY, lambda argv: [perplexity.parse_arguments(argv)], ["--model", "m"], perplexity.Arguments),
    "quality": (QUALITY, quality_arguments, ["--model", "m"], samples.Arguments, samples.SamplingArguments),
}


def is_of(kind, entry) -> bool:
    return entry.type is kind or kind in get_args(entry.type)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_of_a_script_has_an_entry(script):
    table, _, _, *kinds = SCRIPTS[script]
    numbers = {entry.name for kind in kinds for entry in fields(kind) if is_of(int, entry) or is_of(float, entry)}
    assert numbers == table.keys() & numbers
    assert table.keys() - numbers <= set(samples.COMMON)


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    ("script", "name"),
    [(script, name) for script, (table, *_) in SCRIPTS.items() for name, meant in table.items() if meant is not None],
)
def test_an_odd_number_is_refused_by_name_before_anything_is_loaded_or_means_something(script, name, value, capsys):
    table, parse, required, *_ = SCRIPTS[script]
    if value in table[name]:
        values = [getattr(part, name) for part in parse([*required, f"--{name}={value}"]) if hasattr(part, name)]
        assert values == [float(value)]
        return
    with pytest.raises((ValueError, SystemExit)) as ended:
        parse([*required, f"--{name}={value}"])
    if isinstance(ended.value, SystemExit):  # no number of the field's kind
        assert (ended.value.code, name in capsys.readouterr().err) == (2, True)
    else:
        assert re.search(rf"^{name}='?[^ ]* must ", str(ended.value))


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_that_is_empty_is_refused_by_name(script):
    _, parse, required, *kinds = SCRIPTS[script]
    for entry in (entry for kind in kinds for entry in fields(kind) if is_of(str, entry)):
        with pytest.raises(ValueError, match=rf"{entry.name}=''"):
            parse([*required, f"--{entry.name}="])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--judge", "gpt2", "--n_samples", "0"], "judge='gpt2' has nothing to score with n_samples=0"),
        (["--lr_schedule", "reduce_lr_on_plateau"], "lr_schedule='reduce_lr_on_plateau' must be one of"),
        (["--held_out", "2.5"], r"held_out=2\.5 must be a fraction in \[0, 1\) or a whole number"),
        (["--log_with", "paper"], "log_with='paper' must be an installed tracker"),
        (["--mixed_precision", "fp8"], "mixed_precision='fp8' must be one of"),
    ],
)
def test_settings_of_training_that_make_no_sense_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        arguments.parse_arguments(argv)


@pytest.mark.parametrize("value", ["nan", "0", "-1", "inf"])
def test_a_norm_of_the_launcher_without_sense_is_refused(monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", value)
    with pytest.raises(ValueError, match=rf"max_grad_norm={value}.* must be (more than 0|a finite number)"):
        arguments.parse_arguments([])


def test_a_range_says_what_it_holds():
    assert 1 in COUNT
    assert 0 not in COUNT
    assert math.nan not in Range(0)
    assert str(Range(0, 1, open_high=True)) == "lie in [0, 1)"
    with pytest.raises(ValueError, match=r"^n=0 must be at least 1 and at most 2147483647\.$"):
        check_fields({"n": 0}, {"n": COUNT})


# Arguments of public functions, each with the odd values that mean something.
PYTHON = (-1, 0, math.nan, math.inf, -math.inf, 2**31, 2**63, 2**64, "", True, 1.5)
INTEGERS = {-1, 0, 2**31, 2**63, 2**64}
TEXTS = [[1, 2, 3], [3, 2]]


@pytest.fixture(scope="module")
def network():
    return random_model(vocab_size=6, max_position_embeddings=4)


def judged(model, **given):
    return quality.judge(["a"], random_judge("gpt2"), None, **given)


FUNCTIONS = {
    "estimate": lambda model, **given: estimate_likelihood(model, TEXTS, **{"passes": 2} | given),
    "rounds": lambda model, **given: LikelihoodRounds(model, TEXTS, **{"passes": 2} | given),
    "metric": lambda model, **given: DiffusionPerplexity().compute(
        predictions=TEXTS, model=model, **{"passes": 2} | given
    ),
    "exact": lambda model, **given: exact_likelihood(model, TEXTS, **given),
    "mixture": lambda model, **given: mixture_likelihood(model, TEXTS, **{"orders": 1} | given),
    "write": lambda model, **given: quality.write_samples(model, **{"n_samples": 1, "steps": 1, "length": 2} | given),
    "distinct": lambda model, **given: quality.distinct_n([torch.tensor([1, 2])], **given),
    "judge": judged,
    "spread": lambda model, **given: quality.spread_rows([torch.tensor([1])], **given),
}
LARGE = {1.5, 2**31, 2**63, 2**64}
ARGUMENTS = [
    *((name, "passes", set()) for name in ("estimate", "rounds", "metric")),
    *((name, "target_se", LARGE) for name in ("rounds",)),
    *((name, "batch_size", set()) for name in ("estimate", "rounds", "metric", "exact", "mixture", "write", "judge")),
    *((name, "seed", INTEGERS) for name in ("estimate", "rounds", "metric", "exact", "mixture", "write")),
    ("estimate", "n_bytes", {2**31}),
    ("mixture", "orders", set()),
    ("write", "n_samples", set()),
    ("distinct", "n", set()),
    ("judge", "max_length", set()),
    ("spread", "count", set()),
]


@pytest.mark.parametrize(("function", "argument", "meant"), ARGUMENTS)
def test_an_odd_number_of_a_function_is_refused_by_name_or_means_something(network, function, argument, meant):
    for value in PYTHON:
        accepted = not isinstance(value, bool) and value in meant
        if accepted:
            FUNCTIONS[function](network, **{argument: value})
            continue
        with pytest.raises(ValueError, match=f"{argument}={value!r}".replace("+", r"\+")):
            FUNCTIONS[function](network, **{argument: value})


def test_weights_of_sequences_are_no_odd_numbers(network):
    for weights in ([math.nan, 1.0], [-1.0, 2.0], [math.inf, 0.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match=r"weights of shape .* add up to"):
            LikelihoodRounds(network, TEXTS, weights=torch.tensor(weights))
