# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Who has the model when: limits, turns, and what becomes of a visitor who has gone."""

import asyncio
from itertools import count

import pytest

from radd_hf.app import turns as turns_module
from radd_hf.app.turns import Busy, Limits, Turns


def order_of(turns: Turns) -> list[tuple[str, str]]:
    """Lets all jobs have their turn; addresses and sessions in that order."""
    served = []
    while turns.jobs:
        (job,) = [job for job in turns.jobs if job.turn.is_set()]
        served.append((job.address, job.session))
        turns.leave(job)
    return served


def test_a_visitor_with_many_sessions_delays_another_by_one_job():
    async def run():
        turns = Turns(Limits(of_address=100, in_all=100))
        for number in range(30):
            turns.join(f"greedy {number}", "a", "write")
        turns.join("other", "b", "write")
        return order_of(turns)

    served = asyncio.run(run())
    assert served.index(("b", "other")) == 1
    assert len(served) == 31


def test_behind_one_address_sessions_take_turns():
    async def run():
        turns = Turns(Limits(of_address=None))
        for session, button in [("x", "write"), ("x", "judge"), ("y", "write"), ("y", "judge"), ("z", "write")]:
            turns.join(session, "proxy", button)
        return [session for _, session in order_of(turns)]

    assert asyncio.run(run()) == ["x", "y", "z", "x", "y"]


def test_beyond_a_limit_a_visitor_is_told():
    async def run():
        turns = Turns(Limits(of_session=2, of_address=3, in_all=4))
        turns.join("x", "a", "write")
        with pytest.raises(Busy, match="such a run"):
            turns.join("x", "a", "write")
        turns.join("x", "a", "judge")
        with pytest.raises(Busy, match="This page has 2 unfinished runs"):
            turns.join("x", "a", "load")
        turns.join("y", "a", "write")
        with pytest.raises(Busy, match="Your address has 3 unfinished runs"):
            turns.join("z", "a", "write")
        job = turns.join("z", "b", "write")
        with pytest.raises(Busy, match="The page is busy with 4 unfinished runs"):
            turns.join("u", "c", "write")
        turns.leave(job)
        turns.join("u", "c", "write")

    asyncio.run(run())


def test_a_run_ends_when_its_time_is_over_and_says_so():
    async def run():
        turns = Turns(Limits(seconds=0.05))
        async with turns.job("x", "a", "write") as job:
            work = (job.stop.wait(5) for _ in range(2))
            shown = [each async for each in turns.run(job, work)]
        return shown, job.stop.reason, turns.jobs

    assert asyncio.run(run()) == ([True, True], "Stopped after 0.05 s", [])


@pytest.mark.parametrize("waiting", [True, False])
def test_the_job_of_a_visitor_who_has_gone_is_given_up(waiting, monkeypatch):
    monkeypatch.setattr(turns_module, "LOOK", 0.01)

    async def run():
        turns = Turns(Limits(gone=0.02), streams={"first": 1})
        if waiting:
            turns.join("first", "a", "write")
        async with turns.job("gone", "b", "write") as job:
            if waiting:
                return [before async for before in turns.wait(job)]
            (ended,) = [each async for each in turns.run(job, (job.stop.wait(5) for _ in range(1)))]
            return ended

    assert asyncio.run(run()) == ([1] if waiting else True)


def test_stop_ends_the_runs_of_one_session_alone():
    async def run():
        turns = Turns()
        mine, other = turns.join("x", "a", "write"), turns.join("y", "a", "write")
        turns.stop("x", "judge")
        assert not mine.stop.is_set()
        turns.stop("x", "write")
        return mine.stop.is_set(), other.stop.is_set()

    assert asyncio.run(run()) == (True, False)


def test_a_run_that_fails_gives_its_turn_to_the_next():
    def fails():
        for number in count():
            if number == 1:
                raise ValueError("no")
            yield number

    async def use(turns):
        async with turns.job("x", "a", "write") as job:
            following.append(turns.join("y", "b", "write"))
            return [each async for each in turns.run(job, fails())]

    async def run():
        with pytest.raises(ValueError, match="no"):
            await use(Turns())
        return following[0].turn.is_set()

    following = []

    assert asyncio.run(run())


def test_a_run_knows_whether_another_waits_for_it():
    async def run():
        turns = Turns()
        first = turns.join("x", "a", "write")
        alone = first.stop.others_wait()
        second = turns.join("y", "b", "write")
        waited_for = first.stop.others_wait()
        turns.leave(second)
        return alone, waited_for, first.stop.others_wait()

    assert asyncio.run(run()) == (False, True, False)
