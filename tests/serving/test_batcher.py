# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Which rows a batch has, who is refused, and how a batch ends, with a stand-in for the model."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch

from radd_hf.serving.batcher import Batcher, Closed, Full, Job

WAIT = 30.0  # seconds, for what takes milliseconds


class Model:
    """Fills rows with their numbers; each batch begins when `go` allows it. `batches` are the numbers of each."""

    def __init__(self):
        self.batches, self.begun, self.go, self.events = [], threading.Semaphore(0), threading.Semaphore(0), 0

    def __call__(self, rows, *, streamer, **settings):
        self.batches.append([row["number"] for row in rows])
        self.begun.release()
        assert self.go.acquire(timeout=WAIT)
        if settings.get("fails"):
            raise RuntimeError("the model failed")
        for _ in range(self.events):
            streamer.put_draft(torch.zeros(2 * len(rows), rows[0]["input_ids"].shape[1], dtype=torch.long))
        if settings.get("has_no_scores"):
            raise ValueError("no token had a finite score")
        return [[{"text": row["number"]}] for row in rows]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def make(model):
    """A batcher of the model that has begun with the row "first", so that others wait."""
    made = []

    def batcher(**settings) -> Batcher:
        made.append(Batcher(model, **{"gather": 0.0, "batch_tokens": 1000} | settings))
        made[0].submit([job("first", length=8)])
        assert model.begun.acquire(timeout=WAIT)
        return made[0]

    yield batcher
    for each in made:
        each.abandon()
        for _ in range(64):
            model.go.release()
        each.thread.join(WAIT)
        assert not each.thread.is_alive()


def job(number, length: int = 4, on_draft=None, **settings) -> Job:
    row = {"number": number, "input_ids": torch.zeros(1, length)}
    return Job(row, settings, samples=2, tokens=2 * length, on_draft=on_draft)


def finish(model: Model, jobs: list[Job]) -> list:
    for _ in range(64):
        model.go.release()
    return [each.result.result(WAIT)[0]["text"] for each in jobs]


def test_rows_of_one_shape_that_wait_are_filled_together(model, make):
    batcher = make()
    jobs = [job(0), job(1, length=5), job(2), job(3, steps=2), job(4, steps=2), job(5, steps=3), job(6, length=5)]
    batcher.submit(jobs)
    assert finish(model, jobs) == [0, 1, 2, 3, 4, 5, 6]
    assert model.batches == [["first"], [0, 2], [1, 6], [3, 4], [5]]


def test_a_batch_keeps_within_its_tokens_and_a_larger_row_is_filled_alone(model, make):
    batcher = make(batch_tokens=17)
    jobs = [job(number) for number in range(5)] + [job("large", length=100)]
    batcher.submit(jobs)
    finish(model, jobs)
    assert model.batches == [["first"], [0, 1], [2, 3], [4], ["large"]]


def test_a_batch_waits_a_moment_for_more_rows_unless_it_is_full(model, make):
    batcher = make(gather=WAIT, batch_tokens=16)
    jobs = [job(0), job(1)]
    batcher.submit(jobs[:1])
    model.go.release()
    assert not model.begun.acquire(timeout=0.1)
    batcher.submit(jobs[1:])
    assert finish(model, jobs) == [0, 1]
    assert model.batches[1:] == [[0, 1]]


def test_a_full_queue_refuses_all_rows_of_a_request(model, make):
    batcher = make(queue=3)
    batcher.submit([job(0), job(1)])
    with pytest.raises(Full, match="2 texts wait, and the most is 3"):
        batcher.submit([job(2), job(3)])
    assert [each.row["number"] for each in batcher.waiting] == [0, 1]
    batcher.submit([job(4)])


def test_a_failure_is_that_of_its_batch_alone(model, make):
    batcher = make()
    fails, works = job(0, fails=True), job(1)
    batcher.submit([fails, works])
    assert finish(model, [works]) == [1]
    with pytest.raises(RuntimeError, match="the model failed"):
        fails.result.result(WAIT)


def test_an_error_in_the_middle_of_a_batch_is_not_the_fault_of_its_settings(model, make):
    batcher, model.events = make(), 1
    fails = job(0, has_no_scores=True)
    batcher.submit([fails])
    model.go.release(2)
    with pytest.raises(RuntimeError, match="no token had a finite score"):
        fails.result.result(WAIT)


def test_a_row_that_is_withdrawn_frees_its_place_and_is_not_filled(model, make):
    batcher = make(queue=1)
    withdrawn, other = job(0), job(1)
    batcher.submit([withdrawn])
    assert batcher.withdraw([withdrawn])
    assert not batcher.withdraw([withdrawn])
    batcher.submit([other])
    assert finish(model, [other]) == [1]
    assert model.batches == [["first"], [1]]
    with pytest.raises(CancelledError):
        withdrawn.result.result(WAIT)


def test_drafts_go_to_the_row_that_they_are_of(model, make):
    batcher, model.events, seen = make(), 2, []
    jobs = [job(0, on_draft=lambda draft: seen.append(("a", draft.shape))), job(1)]
    jobs.append(job(2, on_draft=lambda draft: seen.append(("c", draft.shape))))
    batcher.submit(jobs)
    finish(model, jobs)
    assert seen == [("a", (2, 4)), ("c", (2, 4))] * 2


def test_a_batch_that_nobody_waits_for_ends_at_its_next_event(model, make):
    batcher, model.events = make(), 1
    gone, left, stays = job(0), job(1), job(2, length=5)
    batcher.submit([gone, left, stays])
    model.go.release()
    assert model.begun.acquire(timeout=WAIT)
    batcher.forget([gone, left])
    assert finish(model, [stays]) == [2]
    for each in (gone, left):
        with pytest.raises(Closed):
            each.result.result(WAIT)


def test_a_batch_goes_on_for_those_who_still_wait(model, make):
    batcher, model.events = make(), 1
    gone, stays = job(0), job(1)
    batcher.submit([gone, stays])
    model.go.release()
    assert model.begun.acquire(timeout=WAIT)
    batcher.forget([gone])
    assert finish(model, [stays]) == [1]


def test_a_closed_batcher_fills_what_waits_and_refuses_the_rest(model, make):
    batcher, waits = make(), job(0)
    batcher.submit([waits])
    batcher.close()
    with pytest.raises(Closed):
        batcher.submit([job(1)])
    assert finish(model, [waits]) == [0]
    batcher.thread.join(WAIT)
    assert not batcher.thread.is_alive()


def test_an_abandoned_batcher_refuses_what_waits_and_ends_what_runs(model, make):
    batcher, model.events = make(), 1
    first, waits = batcher.running[0], job(0)
    batcher.submit([waits])
    batcher.abandon()
    model.go.release()
    for each in (first, waits):
        with pytest.raises(Closed):
            each.result.result(WAIT)
    batcher.thread.join(WAIT)
    assert not batcher.thread.is_alive()
