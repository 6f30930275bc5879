# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The bar of `generate(progress=True)`: what it shows, and that nothing else changes."""

import pytest
import torch

from radd_hf import generation_radd
from radd_hf.pipeline_radd import RaddInfillingPipeline
from radd_hf.state_radd import SamplerState
from support.programs import LENGTH, assert_same_output, make_model, padded_batch
from support.toys import random_model

PROFILE = [3.0 - index / 8 for index in range(LENGTH)]
CASES = {
    "tweedie": {"num_return_sequences": 3},
    "every step": {"use_cache": False, "steps": 20},
    "refresh and padding": {"refresh_interval": 3, "method": "first_hitting", **padded_batch()},
    "profile": {"schedule": "profile", "information_profile": PROFILE, "steps": 5},
    "confidence": {"method": "ordered", "order": "confidence", "num_return_sequences": 2},
    "entropy bound": {"entropy_bound": 0.5, "num_return_sequences": 2},
    "speculation": {"speculate": 3, "method": "first_hitting", "num_return_sequences": 2},
    "end of text": {"stop_on_eos": True, "method": "ordered", "num_return_sequences": 4},
    "no time": {"max_time": 1e-9, "num_return_sequences": 2},
}
each_case = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
each_kind = pytest.mark.parametrize("events", ["called", "replayed"], indirect=True)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def bars(monkeypatch):
    """The bars of the calls, shown at once."""
    made = []

    class Recorder(generation_radd.tqdm):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self.closed_at = None
            made.append(self)

        def close(self):
            if self.closed_at is None:
                self.closed_at = self.n
            super().close()

    monkeypatch.setattr(generation_radd, "tqdm", Recorder)
    monkeypatch.setattr(generation_radd, "BAR_DELAY", 0)
    return made


def write(model, **settings):
    return model.generate(seed=5, return_dict_in_generate=True, **settings)


@each_kind
@each_case
def test_the_same_is_written_with_and_without_a_bar(model, bars, settings, events):
    assert_same_output(write(model, progress=True, **settings), write(model, **settings), settings, tolerance=0)
    assert len(bars) == 1


@each_kind
@each_case
def test_the_bar_ends_full_at_the_events_of_the_longest_row(model, bars, settings, events):
    evaluations = int(write(model, progress=True, **settings).num_function_evaluations.max())
    (bar,) = bars
    written, total = bar.postfix.removesuffix(" tokens").split(" of ")
    if "stop_on_eos" in settings:  # replayed events are asked for ended rows now and then alone
        assert evaluations <= bar.closed_at == bar.total
    else:
        assert (bar.closed_at, bar.total, written) == (evaluations, evaluations, total)


def test_the_bar_counts_the_tokens_of_all_rows(model, bars, capsys):
    write(model, progress=True, method="ordered", steps=4, num_return_sequences=2)
    assert "0/4 [00:00<?, ?event/s]" in capsys.readouterr().err
    assert bars[0].postfix == "24 of 24 tokens"


def test_the_bar_is_closed_when_a_call_fails(model, bars):
    def fail(canvases, scores):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write(model, progress=True, logits_processor=[fail])
    assert bars[0].closed_at == 0


@pytest.mark.usefixtures("replayed")
def test_captured_events_are_waited_for_now_and_then_alone(model, bars, monkeypatch):
    waits, wait = [], SamplerState.wait
    monkeypatch.setattr(SamplerState, "wait", lambda state: waits.append(wait(state)))
    write(model, method="first_hitting")
    assert waits == []
    monkeypatch.setattr(generation_radd, "EVENTS_BETWEEN_QUESTIONS", 5)
    write(model, method="first_hitting", progress=True)
    assert len(waits) == 3  # after events 5 and 10, and at the end


def test_a_call_that_is_done_at_once_shows_nothing(model, monkeypatch, capsys):
    monkeypatch.setattr(generation_radd, "BAR_DELAY", 1000)
    write(model, progress=True)
    assert capsys.readouterr().err == ""


def test_a_bar_is_asked_for_by_true_or_false(model):
    with pytest.raises(ValueError, match="progress='yes' must be True or False"):
        model.generate(progress="yes")
    assert torch.equal(model.generate(seed=1, progress=None), model.generate(seed=1, progress=False))


def test_the_pipeline_shows_the_bar_too(bars, tiny_tokenizer):
    small = random_model(vocab_size=300, max_position_embeddings=16)
    fill = RaddInfillingPipeline(model=small, tokenizer=tiny_tokenizer, progress=True)
    (shown,) = fill("It is [MASK:3]", seed=1)
    assert bars[0].postfix == "3 of 3 tokens"
    assert fill("It is [MASK:3]", seed=1, progress=False) == [shown]
    assert len(bars) == 1
