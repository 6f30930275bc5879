# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Many rows filled together: each has the result that it has alone."""

import math

import numpy as np
import pytest
import torch

from radd_hf.jobs.batches import Task, batches_of
from radd_hf.jobs.filling import RowFiller, columns_to_fill
from radd_hf.pipeline_radd import RaddInfillingPipeline
from support.toys import random_model

ROWS = [
    {"text": "It is [MASK:5] truth"},
    {"text": "[MASK:3], in [MASK] of"},
    {"text": "no blank"},
    {"text": "It is [MASK:2] truth"},
    {"text": None},
    {"text": "[MASK:12]"},
    {"text": "It is [MASK:5] truth"},
    {"text": 7},
]
WRITTEN = [0, 1, 3, 5, 6]


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=300, max_position_embeddings=32)


@pytest.fixture
def filler(model, tiny_tokenizer):
    return lambda **settings: RowFiller(model, tiny_tokenizer, **settings)


def assert_same(one: list[dict], other: list[dict]) -> None:
    """Equal words, log-probabilities up to rounding."""
    for first, second in zip(one, other, strict=True):
        assert {k: v for k, v in first.items() if "log" not in k} == {k: v for k, v in second.items() if "log" not in k}
        assert (first["log_probability"] is None) == (second["log_probability"] is None)
        if first["log_probability"] is not None:
            assert math.isclose(first["log_probability"], second["log_probability"], rel_tol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "ordered", "order": "confidence"},
        {"steps": 2, "number": 2},
        {"method": "euler"},
        {"method": "first_hitting", "speculate": 3},
        {"method": "ordered", "order": "random", "refresh_interval": 2},
    ],
)
def test_a_row_has_the_result_that_it_has_alone_whatever_the_batch(filler, settings, monkeypatch):
    together = filler(seed=3, **settings)(ROWS, range(10, 18))
    for batch_tokens in (1, 40):
        monkeypatch.setattr(RowFiller, "slack", 0.5)  # texts of many lengths in a batch
        assert_same(filler(seed=3, batch_tokens=batch_tokens, **settings)(ROWS, range(10, 18)), together)
    one_by_one = zip(ROWS, range(10, 18), strict=True)
    alone = [result for row, number in one_by_one for result in filler(seed=3, **settings)([row], [number])]
    assert_same(alone, together)
    back = filler(seed=3, **settings)(ROWS[::-1], range(17, 9, -1))
    assert_same(sorted(back, key=lambda each: (each["row"], each.get("sample", 0))), together)


def test_results_stand_in_the_order_of_the_rows_and_refused_rows_say_why(filler):
    results = filler(seed=0)(ROWS, range(len(ROWS)))
    assert [result["row"] for result in results] == [*range(len(ROWS))]
    assert [index for index, result in enumerate(results) if result["error"] is None] == WRITTEN
    assert "has no blank: write [MASK:12]" in results[2]["error"]
    assert "text is missing" in results[4]["error"]
    assert "text=7 must be a string" in results[7]["error"]
    written = results[1]
    assert written["text"] == f"{written['fills'][0]}, in{written['fills'][1]} of"
    assert written["tokens"] == 4
    assert 1 <= written["nfe"] <= 4
    assert written["log_probability"] == pytest.approx(sum(written["log_probabilities"]))


def test_a_row_has_what_the_pipeline_writes_for_the_same_seed_and_number(model, tiny_tokenizer, filler):
    pipe = RaddInfillingPipeline(model=model, tokenizer=tiny_tokenizer, device="cpu")
    texts = [ROWS[number]["text"] for number in WRITTEN]
    results = filler(seed=5)([{"text": text} for text in texts], range(len(texts)))
    for (sample,), result in zip(pipe(texts, seed=5), results, strict=True):
        assert sample["fill_scores"] == pytest.approx(result["log_probabilities"], rel=1e-4)


def test_a_row_with_a_seed_of_its_own_has_what_generate_writes_for_it(model, tiny_tokenizer, filler):
    row = {"prefix": "It is", "suffix": " truth", "length": 14.0, "seed": np.int64(9)}
    (result,) = filler(seed=0)([row], [77])
    ids = model.generate(prefix="It is", suffix=" truth", length=14, seed=9, tokenizer=tiny_tokenizer)
    assert tiny_tokenizer.decode(ids[0], skip_special_tokens=True).startswith(result["text"].removesuffix(" truth"))
    (other,) = filler(seed=1)([row], [3])
    assert other | {"row": 77} == result
    (drawn,) = filler(seed=0)([{**row, "seed": math.nan, "suffix": None}], [77])
    assert drawn["text"] != result["text"]


def test_a_length_for_all_is_of_rows_that_name_none(filler):
    rows = [{"prefix": "It is", "length": None}, {"prefix": "It is", "length": 9}, {"length": 8}]
    lengths = [filler(length=20).encode(row, 0)[0].length for row in rows]
    assert lengths == [20, 9, 8]
    assert filler().encode(rows[0], 0)[0].length == 32  # the model's


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prefix": "It", "length": 4.5}, "length=4.5 must be an integer"),
        ({"prefix": "It", "length": 33}, "the row has 33 tokens with its blanks; the model was trained on at most 32"),
        ({"prefix": "It is a truth", "length": 2}, "leave nothing to generate in length=2"),
        ({"text": "a [MASK:2]", "seed": -1}, "seed=-1 must be an integer"),
        ({"text": "a [mask:2]"}, "a blank is written"),
        ({"text": "\ud800 [MASK:2]"}, "lone surrogate"),
        ({"title": "a"}, "the columns ['title'] have neither 'text'"),
        ({"text": "a [MASK]", "prefix": "a"}, "have both 'text' and 'prefix'"),
        ({"seed": 3}, "have neither 'text'"),
    ],
)
def test_a_row_that_cannot_be_filled_is_refused_and_the_others_are_filled(filler, row, reason):
    results = filler()([{"text": "It [MASK]"}, row], [0, 1])
    assert results[0]["error"] is None
    assert reason in results[1]["error"]
    assert "\n" not in results[1]["error"]


def test_settings_that_do_not_fit_are_refused_before_any_row(filler):
    for settings, reason in (
        ({"temperature": -1}, "temperature=-1 must be"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"number": 0}, "number=0 must be an integer of at least 1"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be an integer of at least 1"),
        ({"max_time": 3.0}, "max_time=3.0 makes a text depend on the speed of the machine"),
        ({"num_beams": 3}, "num_beams=3 is not a setting"),
        ({"steps": 3, "method": "first_hitting"}, "steps=3 does not fit method='first_hitting'"),
        ({"length": 30, "columns": {"text": "text"}}, "length=30 is for rows with prefix and suffix"),
    ):
        with pytest.raises(ValueError, match=reason):
            filler(**settings)


def test_rows_are_told_apart_by_their_numbers(filler):
    for numbers, reason in (([5, 5], "must all be different"), ([0, 1.5], "numbers=1.5 must be an integer")):
        with pytest.raises(ValueError, match=reason):
            filler()([{"text": "It [MASK]"}] * 2, numbers)
    assert [each["row"] for each in filler()([{"text": "It [MASK]"}] * 2, torch.tensor([3, 1]))] == [3, 1]


def test_tokens_are_those_that_were_written_before_an_end(model, tiny_tokenizer):
    ends = {"stop_on_eos": True, "eos_token_id": [*range(299)], "pad_token_id": 0}
    (result,) = RowFiller(model, tiny_tokenizer, method="ordered", **ends)([{"text": "It is [MASK:9]"}], [0])
    assert result["tokens"] == result["nfe"] == 1


def test_columns_are_read_by_name_and_what_is_unclear_is_refused():
    assert columns_to_fill(["id", "text", "length"]) == {"text": "text"}  # a length may be about the text
    assert columns_to_fill(["prompt", "prefix", "seed"], "prompt") == {"text": "prompt", "seed": "seed"}
    assert columns_to_fill(["id", "suffix", "length"]) == {"suffix": "suffix", "length": "length"}
    with pytest.raises(ValueError, match=r"text_column='prompt' must be one of \['text'\]"):
        columns_to_fill(["text"], "prompt")


def test_batches_have_one_length_and_at_most_so_many_tokens():
    chance = np.random.default_rng(0)
    tasks = [Task(row, 0, int(chance.integers(1, 20)), int(chance.integers(1, 5)), None) for row in range(500)]
    for slack in (0.1, 0.3):
        for batch in batches_of(tasks, 40, slack):
            lengths = [task.length for task in batch]
            assert min(lengths) >= (1 - slack) * max(lengths)
            assert len(batch) == 1 or len(batch) * max(lengths) <= 40
        assert sorted(task for batch in batches_of(tasks, 40, slack) for task in batch) == tasks
    assert len(batches_of(tasks, 400, 0.1)) < len(batches_of(tasks, 400))
    batches = batches_of(tasks, 40)
    assert sorted(task for batch in batches for task in batch) == tasks
    for batch in batches:
        assert len({task.length for task in batch}) == 1
        assert len(batch) * batch[0].length <= 40
    full = sum((len(batch) + 1) * batch[0].length > 40 for batch in batches)
    assert len(batches) - full <= len({task.length for task in tasks})  # one of each length may have room
    assert [len(batch) for batch in batches_of([Task(0, 0, 99, 1, None)] * 2, 40)] == [1, 1]
    assert batches_of(list(reversed(tasks)), 40) == batches
    assert torch.tensor([batch[0].length for batch in batches]).diff().max() <= 0
