# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What generate() refuses: by the name of the argument, before the network is evaluated."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, TextDiffusionStreamer, TextStreamer

from radd_hf import RaddConfig, RaddForMaskedLM, RaddGenerationConfig
from support.toys import random_model, seeded

V, M, L = 300, 299, 12


@pytest.fixture
def model():
    return random_model(vocab_size=V, max_position_embeddings=L)


# ---------------------------------------------------------------------------------------------------------
# Bad input: refused by name, before any evaluation
# ---------------------------------------------------------------------------------------------------------

CANVAS = torch.tensor([[1, M, M, 2]])
BAD = {
    # canvas
    "prefix and suffix fill the length": (
        {"prefix": [1] * 7, "suffix": [2] * 5},
        r"prefix \(7 tokens\) \+ suffix \(5 tokens\) leave nothing",
    ),
    "prefix fills the length": ({"prefix": [1] * L}, r"prefix \(12 tokens\) .* length=12; pass length > 12"),
    "one row of a batch is too long": ({"prefix": [[1], [1] * 20]}, r"prefix \(20 tokens\)"),
    "input_ids with prefix": ({"input_ids": CANVAS, "prefix": [1]}, "input_ids is the whole canvas"),
    "input_ids with suffix": ({"input_ids": CANVAS, "suffix": [1]}, "input_ids is the whole canvas"),
    "input_ids with another length": ({"input_ids": CANVAS, "length": 9}, "length=9, but input_ids"),
    "ragged input_ids": ({"input_ids": [[1, M], [M]]}, r"input_ids has rows of lengths \[1, 2\]"),
    "empty input_ids": ({"input_ids": []}, "input_ids has rows of lengths"),
    "input_ids without a mask": (
        {"input_ids": [[1, 2], [3, 4]]},
        r"input_ids has no mask \(id 299\), .* generate\(prefix=\.\.\., max_new_tokens=20\)",
    ),
    "rows of several lengths without padding": (
        {"prefix": [[1], [2, 3]], "max_new_tokens": 4},
        r"pad_token_id=None must be an id .* rows of lengths \[5, 6\]",
    ),
    "rows padded with the mask": (
        {"prefix": [[1], [2, 3]], "max_new_tokens": 4, "pad_token_id": M},
        "pad_token_id=299 must be an id other than the mask's",
    ),
    "rows padded with an id beyond the vocabulary": (
        {"prefix": [[1], [2, 3]], "max_new_tokens": 4, "pad_token_id": V},
        "pad_token_id holds the id 300",
    ),
    "two lengths": ({"length": 5, "max_new_tokens": 3}, "length=5 and max_new_tokens=3 both say"),
    "two names of a length": ({"length": 5, "max_length": 5}, "max_length=5 is another name of length=5"),
    "a bad value under another name": ({"max_length": 0}, "max_length=0 must be an integer of at least 1"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens=0 must be an integer of at least 1"),
    "an array of floats": ({"input_ids": np.ones((1, 4))}, r"input_ids has shape \(1, 4\) and dtype float64"),
    "an EOS without stop_on_eos": ({"eos_token_id": 1}, "eos_token_id=1 ends a text only with stop_on_eos=True"),
    "beams": ({"num_beams": 4}, "num_beams=4 is not an argument of RADD's generate: there is no beam search"),
    "no sampling": ({"do_sample": False}, "do_sample=False .* temperature=0 to take the likeliest token"),
    "a slip": ({"num_return_sequence": 2}, "num_return_sequence=2 is not .*; did you mean num_return_sequences?"),
    "an unknown name": ({"zzz": 1}, "zzz=1 is not an argument of RADD's generate; those are attention_mask, "),
    "another model's generation config": (
        {"generation_config": GenerationConfig(num_beams=3)},
        "num_beams=3 is not a setting of RADD's generate",
    ),
    "float input_ids": ({"input_ids": torch.rand(1, 4)}, r"input_ids has shape \(1, 4\) and dtype torch.float32"),
    "boolean input_ids": ({"input_ids": torch.ones(4, dtype=torch.bool)}, "input_ids has shape"),
    "three-dimensional input_ids": ({"input_ids": torch.zeros(1, 1, 4, dtype=torch.long)}, "input_ids has shape"),
    "scalar input_ids": ({"input_ids": torch.tensor(3)}, "input_ids has shape"),
    "an id beyond the vocabulary": (
        {"input_ids": [1, V]},
        r"input_ids holds the id 300; the vocabulary has ids 0 .. 299",
    ),
    "an id beyond the vocabulary in a tensor": (
        {"input_ids": torch.tensor([[1, M, 2], [M, V + 5, -1]], dtype=torch.int32)},
        "input_ids holds the id 305; the vocabulary has ids 0 .. 299",
    ),
    "a negative id in an array": ({"prefix": np.array([[3, 4], [-7, 900]])}, "prefix holds the id -7"),
    "a negative id": ({"prefix": [-1]}, "prefix holds the id -1"),
    "an id beyond the vocabulary in the suffix": ({"suffix": [5000]}, "suffix holds the id 5000"),
    "prefix and suffix of different batches": (
        {"prefix": [[1], [2]], "suffix": [[1], [2], [3]]},
        "prefix has 2 rows and suffix 3",
    ),
    "text without tokenizer": ({"prefix": "It was"}, "prefix='It was' is text: pass tokenizer="),
    "texts without tokenizer": ({"suffix": ["a", "b"]}, "suffix=.* is text"),
    "attention_mask without input_ids": (
        {"attention_mask": torch.ones(1, L)},
        "attention_mask describes padding of input_ids",
    ),
    "attention_mask of another shape": (
        {"input_ids": CANVAS, "attention_mask": torch.ones(1, 3)},
        r"attention_mask has shape \(1, 3\)",
    ),
    "attention_mask hides a mask": (
        {"input_ids": CANVAS, "attention_mask": torch.tensor([[1, 1, 0, 1]])},
        "attention_mask is 0 at a mask",
    ),
    # numbers
    "length zero": ({"length": 0}, "length=0 must be an integer of at least 1"),
    "length negative": ({"length": -3}, "length=-3"),
    "length fractional": ({"length": 7.5}, "length=7.5"),
    "length a string": ({"length": "7"}, "length='7'"),
    "length boolean": ({"length": True}, "length=True"),
    "steps zero": ({"steps": 0}, "steps=0 must be an integer of at least 1"),
    "steps negative": ({"steps": -1}, "steps=-1"),
    "steps fractional": ({"steps": 2.5}, "steps=2.5"),
    "steps of first_hitting": ({"steps": 4, "method": "first_hitting"}, "steps=4 does not fit method='first_hitting'"),
    "num_return_sequences zero": ({"num_return_sequences": 0}, "num_return_sequences=0"),
    "num_return_sequences fractional": ({"num_return_sequences": 1.5}, "num_return_sequences=1.5"),
    "temperature negative": ({"temperature": -0.1}, "temperature=-0.1 must be a number >= 1e-6 and <= 1e30, or 0"),
    "temperature not a number": ({"temperature": float("nan")}, "temperature=nan"),
    "temperature infinite": ({"temperature": float("inf")}, "temperature=inf"),
    "temperature a string": ({"temperature": "hot"}, "temperature='hot'"),
    "temperature boolean": ({"temperature": True}, "temperature=True"),
    "temperature that divides everything to zero": ({"temperature": 1e300}, r"temperature=1e\+300"),
    "temperature beyond all numbers": ({"temperature": 10**400}, "temperature=an integer of 1329 bits must be"),
    "top_k negative": ({"top_k": -1}, "top_k=-1 must be an integer of at least 0"),
    "top_k fractional": ({"top_k": 0.9}, "top_k=0.9"),
    "top_k a string": ({"top_k": "5"}, "top_k='5'"),
    "top_p zero": ({"top_p": 0}, r"top_p=0 must be in \(0, 1\]"),
    "top_p above one": ({"top_p": 1.5}, "top_p=1.5"),
    "top_p negative": ({"top_p": -0.5}, "top_p=-0.5"),
    "top_p not a number": ({"top_p": float("nan")}, "top_p=nan"),
    "top_p a string": ({"top_p": "0.9"}, "top_p='0.9'"),
    "max_time zero": ({"max_time": 0}, "max_time=0 must be a positive number of seconds"),
    "max_time negative": ({"max_time": -1.0}, "max_time=-1.0"),
    "max_time not a number": ({"max_time": float("nan")}, "max_time=nan"),
    "max_time infinite": ({"max_time": float("inf")}, "max_time=inf must be a positive number"),
    "max_time beyond all numbers": ({"max_time": 10**400}, "max_time=an integer of 1329 bits"),
    "steps beyond what memory holds": (
        {"steps": 10**9},
        "steps=1000000000 must be an integer of at least 1 and at most 1000000; the limit .* method='first_hitting'",
    ),
    "steps beyond 64 bits": ({"steps": 2**70}, "steps=1180591620717411303424"),
    "steps of ordered beyond what memory holds": ({"steps": 10**9, "method": "ordered"}, "steps=1000000000 must be"),
    "length beyond what memory holds": ({"length": 2**40}, "length=1099511627776 must be .* at most 16777216"),
    "new tokens beyond what memory holds": ({"max_new_tokens": 2**63}, "max_new_tokens=9223372036854775808 must be"),
    "more rows than memory holds": (
        {"num_return_sequences": 2**40},
        "num_return_sequences=1099511627776 must be an integer of at least 1 and at most 1048576",
    ),
    "rows beyond 64 bits": ({"num_return_sequences": 2**63}, "num_return_sequences=9223372036854775808 must be"),
    "top_k beyond 64 bits": ({"top_k": 2**63}, "top_k=9223372036854775808 must be"),
    "refresh_interval beyond 64 bits": ({"refresh_interval": 2**64}, "refresh_interval=18446744073709551616 must be"),
    "refresh_window beyond 64 bits": (
        {"refresh_interval": 2, "refresh_window": 2**63},
        "refresh_window=9223372036854775808 must be",
    ),
    "refresh_window boolean": ({"refresh_window": True}, "refresh_window=True must be an integer"),
    "seed beyond 64 bits": ({"seed": 2**63, "generator": None}, "seed=9223372036854775808 must be an integer in 0"),
    "seed boolean": ({"seed": True, "generator": None}, "seed=True must be an integer"),
    "seed negative": ({"seed": -1, "generator": None}, "seed=-1 must be an integer"),
    "max_time a string": ({"max_time": "1s"}, "max_time='1s'"),
    # names and switches
    "unknown method": ({"method": "ddim"}, "method='ddim' must be one of"),
    "method in capitals": ({"method": "Tweedie"}, "method='Tweedie' must be one of"),
    "method a number": ({"method": 3}, "method=3"),
    "use_cache a word": ({"use_cache": "no"}, "use_cache='no' must be True or False"),
    "stop_on_eos a word": ({"stop_on_eos": "yes"}, "stop_on_eos='yes' must be True or False"),
    "output_history a number": ({"output_history": 2}, "output_history=2 must be True or False"),
    "return_dict_in_generate a word": ({"return_dict_in_generate": "dict"}, "return_dict_in_generate='dict'"),
    "use_cache=False without a grid": (
        {"use_cache": False, "method": "ordered"},
        "use_cache=False evaluates the empty steps",
    ),
    "stop_on_eos without an EOS": ({"stop_on_eos": True}, "stop_on_eos=True needs eos_token_id"),
    "use_cache a number": ({"use_cache": 0}, "use_cache=0 must be True or False"),
    "temperature too small to divide by": ({"temperature": 1e-42}, "temperature=1e-42"),
    "a dictionary with an unknown setting": ({"generation_config": {"stepz": 4}}, "stepz"),
    "a dictionary with a bad setting": ({"generation_config": {"steps": 0}}, "steps=0"),
    "padding with the mask": (
        {"stop_on_eos": True, "generation_config": RaddGenerationConfig(eos_token_id=1, pad_token_id=M)},
        "pad_token_id=299 must be an id below 300 and not the mask's",
    ),
    "padding beyond the vocabulary": (
        {"stop_on_eos": True, "generation_config": RaddGenerationConfig(eos_token_id=1, pad_token_id=999)},
        "pad_token_id=999",
    ),
    "an EOS beyond the vocabulary": (
        {"stop_on_eos": True, "generation_config": RaddGenerationConfig(eos_token_id=[1, V])},
        "eos_token_id=300",
    ),
    "an EOS that is none": ({"stop_on_eos": True, "eos_token_id": True}, "eos_token_id=True must be an id below 300"),
    "a fractional EOS": ({"stop_on_eos": True, "eos_token_id": 1.0}, "eos_token_id=1.0 must be an id"),
    "an EOS of text": ({"stop_on_eos": True, "eos_token_id": "12"}, "eos_token_id='12' must be an id"),
    "a negative EOS": ({"stop_on_eos": True, "eos_token_id": -1}, "eos_token_id=-1 must be an id"),
    "the mask as EOS": ({"stop_on_eos": True, "eos_token_id": [1, M]}, "eos_token_id=299 must be an id"),
    "EOS in rows": ({"stop_on_eos": True, "eos_token_id": [[1]]}, r"eos_token_id=\[1\] must be an id"),
    "an EOS beyond 64 bits": ({"stop_on_eos": True, "eos_token_id": 2**70}, "eos_token_id=1180591620717411303424"),
    "no EOS in a list": ({"stop_on_eos": True, "eos_token_id": []}, "stop_on_eos=True needs eos_token_id"),
    "no rows": ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, r"input_ids has shape \(0, 4\); it must have at l"),
    "no rows of a prefix": ({"prefix": np.zeros((0, 2), dtype=int)}, r"prefix has shape \(0, 2\); it must have at l"),
    "rows of no tokens": ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "input_ids has rows of lengths"),
    "attention_mask that is not a number": (
        {"input_ids": CANVAS, "attention_mask": [float("nan"), 1, 1, 1]},
        r"attention_mask holds nan at \(0, 0\)",
    ),
    "attention_mask of words": ({"input_ids": CANVAS, "attention_mask": "x"}, "attention_mask='x' must be a tensor"),
    "attention_mask of other numbers": (
        {"input_ids": CANVAS, "attention_mask": torch.tensor([[1, 1, 5, 1]])},
        r"attention_mask holds 5 at \(0, 2\); it must be 1 at text and 0 at padding",
    ),
    # orders
    "order of words": ({"method": "ordered", "order": ["a"] * L}, "order=.* must be a tensor, or lists of numbers"),
    "ragged order": ({"method": "ordered", "order": [[0, 1], [0]]}, "order=.* must be a tensor, or lists"),
    "order in a dictionary": ({"method": "ordered", "order": {1: 2}}, "order=.* must be a tensor"),
    "unknown order": ({"method": "ordered", "order": "sideways"}, "order='sideways' must be one of"),
    "order of another method": ({"order": "backward", "method": "tweedie"}, "order='backward' is for method='ordered'"),
    "order too short": ({"method": "ordered", "order": [0, 1]}, r"order has shape \(2,\)"),
    "order for another batch": (
        {"method": "ordered", "order": torch.arange(L).repeat(3, 1)},
        r"order has shape \(3, 12\)",
    ),
    "order names a position twice": (
        {"method": "ordered", "order": [0] * L},
        "names position 0, twice; it must name each position 0 .. 11 exactly once",
    ),
    "order of a row names a position twice": (
        {"method": "ordered", "order": [list(range(L)), [5] * L], "num_return_sequences": 2},
        "names position 5, twice",
    ),
    "order with a position that is none": (
        {"method": "ordered", "order": [*range(L - 1), L]},
        "names position 12, which the row does not have; it must name each position 0 .. 11",
    ),
    "order with a negative position": ({"method": "ordered", "order": range(-1, L - 1)}, "names position -1"),
    "order with True for one": ({"method": "ordered", "order": [0, True, *range(2, L)]}, "holds True or False beside"),
    "order beyond 64 bits": ({"method": "ordered", "order": [*range(L - 1), 2**70]}, "order=.* must be a tensor, or l"),
    "order a set": ({"method": "ordered", "order": set(range(L))}, "order=.* must be a tensor, or lists"),
    "order a number": ({"method": "ordered", "order": 3}, r"order has shape \(\)"),
    "order of nothing": ({"method": "ordered", "order": []}, r"order has shape \(0,\)"),
    "complex order": (
        {"method": "ordered", "order": torch.arange(L) + 0j},
        r"order has shape \(12,\) and dtype torch.c",
    ),
    "order begins at one": ({"method": "ordered", "order": list(range(1, L + 1))}, "must name each position"),
    "fractional order": ({"method": "ordered", "order": torch.rand(L)}, "order has shape"),
    # generators
    "too few generators": (
        {"generator": [seeded()], "num_return_sequences": 2},
        "generator is a list of 1; the batch has 2 rows",
    ),
    "too many generators": ({"generator": [seeded(), seeded()]}, "generator is a list of 2; the batch has 1 rows"),
}
BAD_TYPES = {
    "generator a seed": ({"generator": 42}, "generator=42 must be a torch.Generator"),
    "generators that are seeds": ({"generator": [42]}, "generator=42 must be a torch.Generator"),
    "ids of words and numbers": ({"prefix": [1, "two"]}, "prefix holds 'two'"),
    "True among ids": ({"prefix": [[1, 2], [3, True]]}, "prefix holds True"),
    "complex ids in a tensor": ({"input_ids": torch.ones(1, 4) + 0j}, r"input_ids holds \(1\+0j\)"),
    "fractional ids": ({"prefix": [1, 2.5]}, "prefix holds 2.5"),
    "ids in a dictionary": ({"prefix": {"input_ids": [1]}}, "prefix=.* must be ids"),
    "a number for a prefix": ({"prefix": 7}, "prefix=7 must be ids"),
    "what a tokenizer returns": (
        {"input_ids": {"input_ids": [[1]], "attention_mask": [[1]]}},
        "input_ids=.* must be ids or text: pass its input_ids, and attention_mask with them",
    ),
    "a tokenizer's name": ({"prefix": "a", "tokenizer": "gpt2"}, "tokenizer='gpt2' must be a tokenizer"),
    "a streamer that cannot put": ({"streamer": print}, "streamer=.* must have the methods put and end"),
    "a logits processor that is none": (
        {"logits_processor": ["top_k"]},
        "logits_processor=.* must be a LogitsProcessorList",
    ),
    "a bare function for a list of processors": ({"logits_processor": lambda _, s: s}, "logits_processor="),
    "the name of a generation config": ({"generation_config": "x"}, "generation_config='x' must be"),
}


@pytest.mark.called_only
@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [pytest.param(ValueError, *case, id=name) for name, case in BAD.items()]
    + [pytest.param(TypeError, *case, id=name) for name, case in BAD_TYPES.items()],
)
def test_bad_input_is_refused_by_name_before_any_evaluation(model, monkeypatch, error, arguments, message):
    monkeypatch.setattr(model.model, "forward", lambda **kwargs: pytest.fail("the network was evaluated"))
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    generator = seeded()
    with pytest.raises(error, match=message):
        model.generate(**{"generator": generator, **arguments})
    assert all(torch.equal(arguments[name], value) for name, value in before.items())
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_the_table_of_bad_input_is_long_enough():
    assert len(BAD) + len(BAD_TYPES) >= 60


@pytest.mark.parametrize("streamer", [TextStreamer, TextDiffusionStreamer])
def test_a_streamer_of_one_row_is_not_given_two(model, tiny_tokenizer, streamer):
    with pytest.raises(ValueError, match="prints one row; this batch has 2"):
        model.generate(num_return_sequences=2, streamer=streamer(tiny_tokenizer))


def test_a_streamer_that_would_skip_the_only_text_is_refused(model, tiny_tokenizer):
    with pytest.raises(ValueError, match="skip_prompt=True"):
        model.generate(streamer=TextStreamer(tiny_tokenizer, skip_prompt=True))


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"steps": 0}, {"method": "ancestral"}])
def test_a_generation_config_is_refused_like_the_keywords(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        RaddGenerationConfig(**setting)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("refresh_interval", [1, 3])
def test_a_processor_cannot_bring_the_mask_back(model, temperature, refresh_interval):
    settings = {"temperature": temperature, "refresh_interval": refresh_interval, "seed": 1}
    output = model.generate(
        logits_processor=[lambda _, scores: torch.zeros_like(scores)], return_dict_in_generate=True, **settings
    )
    assert not (output.sequences == model.config.mask_token_id).any()
    assert output.token_logprobs.isfinite().all()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_processor_that_leaves_no_token_is_reported(model, temperature, value):
    with pytest.raises(ValueError, match="logits_processor left a position without a finite score"):
        model.generate(temperature=temperature, logits_processor=[lambda _, scores: scores.fill_(value)])


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        lambda scores: scores > 0,  # True is a finite score, also that of the mask
        lambda scores: scores.nan_to_num(neginf=-9).long(),
        lambda scores: scores + 0j,
        lambda scores: scores.to("meta"),
        lambda scores: scores[:, :5],
        lambda scores: scores.numpy(),
        lambda scores: None,
    ],
)
def test_a_processor_that_returns_no_scores_is_reported(model, temperature, change):
    with pytest.raises(ValueError, match=r"logits_processor returned .*; it must return scores \("):
        model.generate(logits_processor=[lambda _, scores: change(scores)], temperature=temperature, seed=0)


def test_a_processor_that_works_in_place_does_not_change_the_log_probabilities(model):
    plain, doubled = (
        model.generate(
            temperature=0, logits_processor=processors, return_dict_in_generate=True, generator=seeded()
        ).token_logprobs
        for processors in (None, [lambda _, scores: scores.mul_(2)])
    )
    assert torch.equal(plain, doubled)


def test_a_model_without_settings_of_generation_can_still_be_configured():
    assert RaddForMaskedLM(
        RaddConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).generation_config


def test_samples_with_a_seed_are_bounded_before_their_generators_are_made():
    with pytest.raises(ValueError, match="num_return_sequences=100000 with a seed must be at most 65536"):
        random_model().generate(length=1, num_return_sequences=100_000, seed=0)
