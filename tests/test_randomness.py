# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A seed means the same wherever text is written, and random numbers belong to what they are for."""

import json
import threading

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from radd_hf import RaddForMaskedLM, encode_blanks
from radd_hf.app import cli, live
from radd_hf.evaluation.quality import write_samples
from radd_hf.randomness_radd import Uniforms, check_seed, sample_generators, stream_seed, text_seed
from support.paths import ROOT
from support.toys import seeded

AUSTEN = str(ROOT / "checkpoints" / "radd-austen")
TEXT = "It was [MASK:6] of spring, and [MASK:4]."
SETTINGS = [
    {},
    {"method": "euler", "steps": 5, "temperature": 0.7},
    {"method": "first_hitting", "top_p": 0.9},
    {"method": "ordered", "order": "random", "top_k": 30},
    {"schedule": "profile", "steps": 5},
]


@pytest.fixture(scope="module")
def model() -> RaddForMaskedLM:
    return RaddForMaskedLM.from_pretrained(AUSTEN, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(AUSTEN)


def on_the_command_line(capsys, *flags: str) -> list[list[int]]:
    assert cli.main(["generate", AUSTEN, *flags, "--device", "cpu", "--json", "--quiet"]) == 0
    return [json.loads(line)["ids"] for line in capsys.readouterr().out.splitlines()]


def flags_of(settings: dict) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_all_who_fill_a_text_write_the_same_for_one_seed(model, tokenizer, capsys, settings):
    canvas = torch.tensor([encode_blanks(TEXT, tokenizer, model.config.mask_token_id)])
    expected = model.generate(canvas, seed=1, num_return_sequences=3, **settings).tolist()
    assert expected[0] != expected[1]

    command = ["--seed", "1", "--number", "3", "--batch-size", "2", *flags_of(settings)]
    assert on_the_command_line(capsys, TEXT, *command) == expected

    fill = pipeline("radd-infilling", model=model, tokenizer=tokenizer)
    texts = [sample["text"] for sample in fill(TEXT, seed=1, num_return_sequences=3, **settings)]
    assert texts == tokenizer.batch_decode(expected)

    page = {"method": "tweedie", "order": "forward", "steps": 0, "exact": False} | settings
    run = live.denoise(model, canvas[0], stop=threading.Event(), seed=1, **live.generation_settings(page))
    assert list(run)[-1][0].tolist() == expected[:1]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_all_who_write_from_nothing_write_the_same_for_one_seed(model, capsys, settings):
    expected = model.generate(length=12, seed=1, num_return_sequences=4, **settings).tolist()
    base = {"length": 12, "seed": 1, "num_return_sequences": 4, "generation_config": {"exact": True}}
    exact = model.generate(**base, **settings).tolist()
    assert write_samples(model, 4, seed=1, batch_size=3, length=12, **settings).ids.tolist() == exact
    command = ["--length", "12", "--seed", "1", "--number", "4", *flags_of(settings)]
    assert on_the_command_line(capsys, *command) == expected


def test_a_list_of_texts_gives_each_its_own_numbers_and_the_first_those_of_the_text_alone(model, tokenizer):
    fill = pipeline("radd-infilling", model=model, tokenizer=tokenizer)
    together = fill([TEXT, TEXT], seed=1, batch_size=2)
    assert together[0][0]["text"] == fill(TEXT, seed=1)[0]["text"]
    assert together[0][0]["text"] != together[1][0]["text"]
    canvas = torch.tensor([encode_blanks(TEXT, tokenizer, model.config.mask_token_id)] * 2)
    assert [each[0]["text"] for each in together] == tokenizer.batch_decode(model.generate(canvas, seed=1))


def test_the_first_samples_are_the_same_however_many_there_are():
    few, many = (sample_generators(text_seed(5), range(count)) for count in (2, 4))
    assert [each.initial_seed() for each in few] == [each.initial_seed() for each in many[:2]]
    seeds = [each.initial_seed() for text in range(3) for each in sample_generators(text_seed(5, text), range(3))]
    assert len(set(seeds)) == 9


def test_streams_of_shifted_names_or_seeds_have_nothing_in_common():
    seeds = {stream_seed(seed, name, step) for seed in range(4) for name in ("masks", "dropout") for step in range(4)}
    assert len(seeds) == 32
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1", None])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed=.* must be an integer in 0 \.\. 2\^63 - 1"):
        check_seed(seed)


def test_a_seed_and_a_generator_are_not_taken_together(model):
    with pytest.raises(ValueError, match="seed=3 and generator both"):
        model.generate(length=4, seed=3, generator=seeded(0))


def test_padding_takes_no_random_number():
    text = torch.tensor([[True, True, False, False], [False, True, True, True]])
    drawn = Uniforms([seeded(0), seeded(1)], text)()
    assert torch.equal(drawn[0, :2], torch.rand(2, generator=seeded(0), dtype=torch.float64))
    assert torch.equal(drawn[1, 1:], torch.rand(3, generator=seeded(1), dtype=torch.float64))
    assert not drawn[~text].any()


def test_a_padded_row_has_by_default_as_many_steps_as_the_row_alone(model):
    mask = model.config.mask_token_id
    alone = torch.full((1, 8), mask)
    padded = torch.cat((torch.full((1, 20), 5), alone), dim=1)
    visible = (torch.arange(28) >= 20).long()[None]
    for method in ("tweedie", "euler"):
        expected = model.generate(alone, method=method, seed=2, return_dict_in_generate=True)
        found = model.generate(
            padded, attention_mask=visible, method=method, seed=2, return_dict_in_generate=True, use_cache=False
        )
        assert torch.equal(found.sequences[:, 20:], expected.sequences)
        assert torch.equal(found.reveal_step[:, 20:], expected.reveal_step)
        assert found.num_function_evaluations.tolist() == [8]
