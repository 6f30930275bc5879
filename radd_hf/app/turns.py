# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Gives the model to the visitors of a page one after the other, each for a limited time.

    a button is pressed -> join, or Busy -> wait while others have their turn -> run until done, stopped or too long

A visitor is a session (an open page) at an address. Anyone can open many sessions, so each address has a limit, too.
Behind a proxy all visitors may have one address. Then only the limits of a session and of the whole queue hold.

Everything here runs in the event loop of the server, so it needs no lock.
"""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Seconds between two checks whether a waiting visitor is still there.
LOOK = 0.5


class Limits(NamedTuple):
    """Limits the jobs of visitors.

    seconds: time of one job, from the beginning of its turn. gone: seconds without an open connection after which a
    visitor counts as gone. of_session: waiting and running jobs of one open page, all buttons together. of_address: the
    same for one address; None: no limit. in_all: the same for all visitors together.
    """

    seconds: float = 120.0
    gone: float = 5.0
    of_session: int = 2
    of_address: int | None = 8
    in_all: int = 64


class Busy(ValueError):
    """Says that too many jobs wait already."""


class Stop(threading.Event):
    """Ends a run at its next network evaluation. The page then shows `reason`.

    `others_wait` tells whether another run waits for this one. Any thread may call it.
    """

    reason = "Stopped"

    def __init__(self, others_wait: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self.others_wait = others_wait

    def set_because(self, reason: str) -> None:
        if not self.is_set():
            self.reason = reason
            self.set()


@dataclass(eq=False)
class Job:
    """Holds one press of a button. arrival: number of the job. seen: when its visitor was last there, in loop time."""

    session: str
    address: str
    button: str
    arrival: int
    seen: float
    stop: Stop
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """Gives the model to one job at a time, and to visitors in turn.

    The next job comes from the waiting address that was served longest ago. Within that address it comes from the
    session that was served longest ago, and within that session it is the oldest job. So a visitor with many jobs or
    many sessions does not delay another by more than one job.

    Args:
        streams: number of open connections of each session, which the gate counts. A job is stopped if its session has
            none for `Limits.gone` seconds.
    """

    def __init__(self, limits: Limits | None = None, streams: Mapping[str, int] | None = None) -> None:
        self.limits = limits or Limits()
        self.streams = streams
        self.jobs: list[Job] = []  # the first has the model, if its turn has come
        self._arrivals = itertools.count(1)
        self._served: dict[str, int] = {}  # the last turn of each address and session; cleared when no job is left

    def join(self, session: str, address: str, button: str) -> Job:
        """Queues a job.

        Raises:
            Busy: if a limit is reached.
        """
        sessions = Counter(job.session for job in self.jobs)
        addresses = Counter(job.address for job in self.jobs)
        if any((job.session, job.button) == (session, button) for job in self.jobs):
            raise Busy("This page has such a run already: stop it, or wait for its end.")
        if sessions[session] >= self.limits.of_session:
            raise Busy(f"This page has {sessions[session]} unfinished runs: wait for the end of one.")
        if self.limits.of_address is not None and addresses[address] >= self.limits.of_address:
            raise Busy(f"Your address has {addresses[address]} unfinished runs: wait for the end of one.")
        if len(self.jobs) >= self.limits.in_all:
            raise Busy(f"The page is busy with {len(self.jobs)} unfinished runs. Try again later.")
        now = asyncio.get_running_loop().time()
        stop = Stop(others_wait=lambda: len(self.jobs) > 1)
        job = Job(session, address, button, next(self._arrivals), now, stop)
        self.jobs.append(job)
        self._give_turn()
        return job

    def leave(self, job: Job) -> None:
        """Takes out a job, whether it ran or not. The next job gets its turn."""
        job.stop.set()
        if job in self.jobs:
            self.jobs.remove(job)
            self._give_turn()

    def stop(self, session: str, button: str | None = None) -> None:
        """Ends the jobs of a session, for one button or for all."""
        for job in self.jobs:
            if job.session == session and button in (job.button, None):
                job.stop.set()

    @asynccontextmanager
    async def job(self, session: str, address: str, button: str) -> AsyncIterator[Job]:
        job = self.join(session, address, button)
        try:
            yield job
        finally:
            self.leave(job)

    async def wait(self, job: Job) -> AsyncIterator[int]:
        """Yields the number of jobs before this one when it changes. Ends at the job's turn, or if it is stopped."""
        told = None
        while not (job.turn.is_set() or job.stop.is_set()):
            if (before := self._order().index(job)) != told:
                yield (told := before)
            try:
                await asyncio.wait_for(job.turn.wait(), LOOK)
            except TimeoutError:
                self._look_for_visitor(job)

    async def run(self, job: Job, work: Iterator[Any]) -> AsyncIterator[Any]:
        """Yields the results of `work`, which runs in a thread. Sets `job.stop` when the job's time is over."""
        seconds = self.limits.seconds
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, job.stop.set_because, f"Stopped after {seconds:g} s")
        watch = loop.create_task(self._watch(job))
        end = object()
        try:
            while (shown := await asyncio.to_thread(next, work, end)) is not end:
                yield shown
        finally:
            timer.cancel()
            watch.cancel()
            job.stop.set()

    async def _watch(self, job: Job) -> None:
        while not job.stop.is_set():
            await asyncio.sleep(LOOK)
            self._look_for_visitor(job)

    def _look_for_visitor(self, job: Job) -> None:
        now = asyncio.get_running_loop().time()
        if self.streams is None or self.streams.get(job.session, 0):
            job.seen = now
        elif now - job.seen > self.limits.gone:
            job.stop.set()

    def _order(self) -> list[Job]:
        """Returns the jobs by turn, the running one first. The jobs of one visitor alternate with those of others."""
        served, waiting = dict(self._served), [job for job in self.jobs if not job.turn.is_set()]
        order = [job for job in self.jobs if job.turn.is_set()]
        for turn in itertools.count(max(served.values(), default=0) + 1):
            if not waiting:
                return order
            job = min(waiting, key=lambda each: _precedence(each, served))
            waiting.remove(job)
            order.append(job)
            served[job.address] = served[f"{job.address} {job.session}"] = turn
        return order

    def _give_turn(self) -> None:
        if not self.jobs:
            self._served.clear()
        elif not any(job.turn.is_set() for job in self.jobs):
            job = self._order()[0]
            turn = max(self._served.values(), default=0) + 1
            self._served[job.address] = self._served[f"{job.address} {job.session}"] = turn
            job.turn.set()


def _precedence(job: Job, served: Mapping[str, int]) -> tuple[int, int, int]:
    return served.get(job.address, 0), served.get(f"{job.address} {job.session}", 0), job.arrival
