# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Puts tasks of any lengths into batches of nearly equal length."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ..ranges import check_count

# Default tokens of a batch, rows x length, on a CPU and on a GPU. More tokens are not faster there.
BATCH_TOKENS, BATCH_TOKENS_ON_A_GPU = 2048, 16384


def tokens_of_a_batch(batch_tokens: int | None, device: Any) -> int:
    """Returns `batch_tokens`, or the default of a torch.device for None. Raises a ValueError if it is no count."""
    if batch_tokens is None:
        return BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS_ON_A_GPU
    return check_count("batch_tokens", batch_tokens)


class Task(NamedTuple):
    """Holds the work for one result.

    row: number of the row in its file. sample: number of the result among those of the row. length: L, tokens of the
    sequence. masks: number of tokens to fill or to score; the time of the task depends on it. content: data for
    `RowFiller` or `RowScorer`.
    """

    row: int
    sample: int
    length: int
    masks: int
    content: Any


def batches_of(tasks: Sequence[Task], batch_tokens: int, slack: float = 0.0) -> list[list[Task]]:
    """Returns batches of at most `batch_tokens` tokens, padding included, the longest first.

    Each batch has at least one task. Lengths in a batch differ little: all are at least (1 - slack) of the longest.
    Tasks of similar length are sorted by masks, because a batch takes as long as its task with the most masks.
    """
    batches: list[list[Task]] = []
    for band in _bands(tasks, slack):
        longest, begun = band[0].length, len(batches)
        for task in sorted(band, key=lambda task: (-task.masks, -task.length, task.row, task.sample)):
            if len(batches) > begun and (len(batches[-1]) + 1) * longest <= batch_tokens:
                batches[-1].append(task)
            else:
                batches.append([task])
    return batches


def _bands(tasks: Sequence[Task], slack: float) -> Iterator[list[Task]]:
    band: list[Task] = []
    for task in sorted(tasks, key=lambda task: (-task.length, task.row, task.sample)):
        if band and task.length < (1 - slack) * band[0].length:
            yield band
            band = []
        band.append(task)
    if band:
        yield band


class Encoder(Protocol):
    """Makes tasks from rows, like `RowFiller` and `RowScorer`."""

    batch_tokens: int
    slack: float  # see `batches_of`

    def encode(self, row: Mapping[str, Any], number: int) -> list[Task]: ...

    def refusal(self, number: int, error: ValueError) -> dict[str, Any]: ...


def batches_of_rows(
    work: Encoder, rows: Iterable[tuple[int, Mapping[str, Any]]]
) -> tuple[list[dict[str, Any]], list[list[Task]]]:
    """Returns the results of refused rows, and the batches of the other rows. `rows` has pairs of number and row."""
    refusals, tasks = list[dict[str, Any]](), list[Task]()
    for number, row in rows:
        try:
            tasks += work.encode(row, number)
        except ValueError as error:
            refusals.append(work.refusal(number, error))
    return refusals, batches_of(tasks, work.batch_tokens, work.slack)
