# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Batches prepared ahead are those that would be made on the spot, in order, and what fails says so."""

import threading

import pytest
import torch

from radd_hf import DiffusionCollator, RaddConfig
from radd_hf.training.prepare import Preparation, to_device

CONFIG = RaddConfig(vocab_size=32, hidden_size=8, num_attention_heads=2, max_position_embeddings=6)
ROWS = [range(0, 2), range(4, 6)]
CPU = torch.device("cpu")


class Counted:
    """Blocks that remember what they were asked for, and in which thread."""

    def __init__(self, fail_at: int | None = None):
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self.fail_at = fail_at

    def rows(self, step: int, rows: range) -> torch.Tensor:
        if step == self.fail_at:
            raise ValueError("the stream has ended")
        self.asked.append(step)
        self.threads.add(threading.current_thread().name)
        return torch.full((len(rows), 6), step) + torch.tensor(rows)[:, None]

    def state_dict(self) -> dict:
        return {"read": self.asked[-1]}


def preparation(blocks: Counted, first: int = 0, last: int = 4) -> Preparation:
    return Preparation(blocks, DiffusionCollator(CONFIG, seed=3), ROWS, 8, CPU, first, last)


def test_steps_are_those_that_would_be_made_on_the_spot_and_carry_the_place_of_the_blocks():
    collator, expected = DiffusionCollator(CONFIG, seed=3), Counted()
    with preparation(blocks := Counted()) as prepared:
        for step in range(4):
            ready = prepared.next()
            assert ready.blocks == {"read": step}, "not the place of what is read ahead"
            for rows, inputs in zip(ROWS, ready.forwards, strict=True):
                made = collator.rows(expected.rows(step, rows), step, rows, 8)
                assert inputs.keys() == made.keys() | {"max_targets"}
                assert inputs["max_targets"] == int((made["labels"] != -100).sum())
                assert all(torch.equal(value, inputs[name]) for name, value in made.items())
    assert all(name.startswith("prepare") for name in blocks.threads)


def test_the_next_step_is_prepared_while_the_present_one_is_computed_and_none_beyond_the_last():
    with preparation(blocks := Counted(), last=2) as prepared:
        prepared.next()
        prepared.waiting.result()
        assert max(blocks.asked) == 1
        prepared.next()
        with pytest.raises(IndexError, match="step 2 is beyond the last, 1"):
            prepared.next()
    assert max(blocks.asked) == 1


def test_a_run_that_goes_on_begins_where_it_was():
    with preparation(blocks := Counted(), first=2) as prepared:
        prepared.next()
    assert min(blocks.asked) == 2


def test_what_fails_in_the_thread_is_raised_where_the_step_is_wanted():
    with preparation(Counted(fail_at=1)) as prepared:
        prepared.next()
        with pytest.raises(ValueError, match="the stream has ended"):
            prepared.next()


def test_numbers_stay_numbers_on_the_way_to_the_device():
    moved = to_device({"input_ids": torch.zeros(2, 3), "max_targets": 5}, torch.device("meta"))
    assert moved["input_ids"].device.type == "meta"
    assert moved["max_targets"] == 5
