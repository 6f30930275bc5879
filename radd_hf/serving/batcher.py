# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills rows of many requests together. One thread has the model and fills rows of one shape in one batch.

    submit -> queue -> the oldest row, and waiting rows of its shape -> fill -> the future of each row

A shape is a length and settings. The rows of a batch have the same shape, so they need no padding. Each row has its own
random generator, so its samples do not depend on the batch. While a batch is computed, other rows wait.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from .handler import Request, length_of

# Number of texts that may wait, and seconds that a batch waits for another text; see `Batcher`.
QUEUE, GATHER = 256, 0.005
# A batch waits for a moment: GATHER seconds, or this fraction of the last batch's time if that is longer. It waits for
# at most so many moments; see `Batcher`.
GATHER_SHARE, MOMENTS = 0.02, 5

STOPPING = "The server is stopping."

Fill = Callable[..., list[list[dict[str, Any]]]]


class Full(Exception):
    """Says that the queue has no room for all rows of a request."""


class Closed(Exception):
    """Says that the server is stopping."""


@dataclass(eq=False)
class Job:
    """Holds one row that waits or runs.

    samples: number of samples of the row. tokens: tokens of all sequences that a network evaluation computes for it.
    on_draft: called by the thread of the model whenever tokens were filled, with the ids of each sample, (samples, L).
    gone: whether no client waits for the result any more.
    """

    row: dict[str, Any]
    settings: dict[str, Any]
    samples: int
    tokens: int
    on_draft: Callable[[Tensor], None] | None = None
    result: Future[list[dict[str, Any]]] = field(default_factory=Future)
    gone: bool = False

    @property
    def shape(self) -> tuple:
        return length_of(self.row), *sorted(self.settings.items())


def jobs_of(request: Request, on_draft: Callable[[int, Tensor], None] | None = None) -> list[Job]:
    """Makes a job from each row of a request. `on_draft` is called with the number of a row and its draft."""

    def of_row(number: int) -> Callable[[Tensor], None] | None:
        return None if on_draft is None else lambda draft: on_draft(number, draft)

    return [
        Job(row, request.settings, request.samples, request.sequences * length_of(row), of_row(number))
        for number, row in enumerate(request.rows)
    ]


class Batcher:
    """Fills submitted jobs in one thread.

    Args:
        fill: fills rows of one length, as `RaddInfillingPipeline.fill` does.
        batch_tokens: tokens of a batch, all sequences of its rows together; a row with more is computed alone.
        queue: number of rows that may wait.
        gather: seconds without a new row after which a batch begins although it is not full. If 2 % of the last batch's
            time is longer, that is the wait. A batch waits at most five times as long in all. So clients that send
            their next request after an answer of the last batch get into the next batch.
        on_batch: called for each batch before its results are set, with the batch, its seconds and its outcome:
            "filled", "failed", or "abandoned" if no client waited for it.
    """

    def __init__(
        self,
        fill: Fill,
        *,
        batch_tokens: int,
        queue: int = QUEUE,
        gather: float = GATHER,
        on_batch: Callable[[list[Job], float, str], None] = lambda batch, seconds, outcome: None,
    ):
        self.fill, self.batch_tokens, self.queue, self.gather, self.on_batch = (
            fill,
            batch_tokens,
            queue,
            gather,
            on_batch,
        )
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.closed = False
        self.seconds = 0.0  # of the last batch
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self.thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues either all jobs of one request or none.

        Raises:
            Full: if there is no room for all. Closed: after [`Batcher.close`].
        """
        with self.changed:
            if self.closed:
                raise Closed(STOPPING)
            if len(self.waiting) + len(jobs) > self.queue:
                raise Full(f"{len(self.waiting)} texts wait, and the most is {self.queue}: try again later.")
            self.waiting += jobs
            self.changed.notify_all()

    def withdraw(self, jobs: Sequence[Job]) -> bool:
        """Takes jobs out of the queue. Returns whether one of them still waited there."""
        with self.changed:
            mine = [job for job in jobs if job in self.waiting]
            self.waiting = [job for job in self.waiting if job not in mine]
        for job in mine:
            job.result.cancel()
        return bool(mine)

    def forget(self, jobs: Sequence[Job]) -> None:
        """Withdraws jobs whose clients have gone. A batch of only such jobs ends at its next draft."""
        for job in jobs:
            job.gone = True
        self.withdraw(jobs)

    def close(self) -> None:
        """Refuses new jobs. The thread ends when the waiting jobs are done."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def abandon(self) -> None:
        """Ends the running batch at its next draft, and refuses the waiting jobs."""
        self.close()
        with self.changed:
            left, self.waiting = self.waiting, []
            for job in self.running:
                job.gone = True
        for job in left:
            job.result.set_exception(Closed(STOPPING))

    # The thread of the model.

    def _run(self) -> None:
        while batch := self._next():
            started = time.perf_counter()
            try:
                results = self._fill(batch)
            except Exception as error:
                outcome = "abandoned" if isinstance(error, Closed) else "failed"
                self.on_batch(batch, time.perf_counter() - started, outcome)
                for job in batch:
                    job.result.set_exception(error)
            else:
                self.seconds = time.perf_counter() - started
                self.on_batch(batch, self.seconds, "filled")
                for job, samples in zip(batch, results, strict=True):
                    job.result.set_result(samples)

    def _next(self) -> list[Job]:
        """Waits for jobs and returns the next batch. The batch is empty if the batcher is closed and no job is left."""
        with self.changed:
            self.running = []
            while not self.running:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                self._wait_for_more()
                batch = self._batch()
                if not batch and self.closed:
                    break
                self.waiting = [job for job in self.waiting if job not in batch]
                self.running = [job for job in batch if job.result.set_running_or_notify_cancel()]
            return self.running

    def _wait_for_more(self) -> None:
        """Waits until the batch is full, or until no row has come for a moment."""
        moment = max(self.gather, GATHER_SHARE * self.seconds)
        deadline = time.monotonic() + MOMENTS * moment

        def has_come(before: int) -> bool:
            return len(self.waiting) > before or self.closed

        while not (self._is_full() or self.closed):
            left = min(moment, deadline - time.monotonic())
            if not self.changed.wait_for(partial(has_come, len(self.waiting)), left):
                break

    def _batch(self) -> list[Job]:
        """Returns the oldest waiting job and the jobs of its shape that fit into its batch."""
        batch, tokens = self.waiting[:1], sum(job.tokens for job in self.waiting[:1])
        for job in self.waiting[1:]:
            if job.shape == batch[0].shape and tokens + job.tokens <= self.batch_tokens:
                batch.append(job)
                tokens += job.tokens
        return batch

    def _is_full(self) -> bool:
        batch = self._batch()
        return bool(batch) and sum(job.tokens for job in batch) + batch[0].tokens > self.batch_tokens

    def _fill(self, batch: list[Job]) -> list[list[dict[str, Any]]]:
        drafts = _Drafts(batch)
        try:
            return self.fill([job.row for job in batch], streamer=drafts, **batch[0].settings)
        except Abandoned:
            raise Closed(STOPPING) from None
        except ValueError as error:
            if not drafts.begun:  # `fill` checks settings before the first draft
                raise
            raise RuntimeError(str(error)) from error


class Abandoned(Exception):
    """Says that no client waits for the results of a batch."""


class _Drafts:
    """Streams the drafts of `generate` to each row, and ends a batch that no client waits for."""

    def __init__(self, batch: list[Job]):
        self.batch, self.begun = batch, False

    def put_draft(self, canvas: Tensor) -> None:
        """Passes the masked sequences, (rows x samples, L), to the rows that listen."""
        self.begun = True
        if all(job.gone for job in self.batch):
            raise Abandoned
        for job, draft in zip(self.batch, canvas.split([job.samples for job in self.batch]), strict=True):
            if job.on_draft is not None and not job.gone:
                job.on_draft(draft)

    def put(self, ids: Tensor) -> None:
        pass  # `fill` returns them

    def end(self) -> None:
        pass
