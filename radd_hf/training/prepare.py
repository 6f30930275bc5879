# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Prepares the batches of the next optimizer step while the present one is computed.

    blocks -> masks, labels and weights -> pinned memory    in a thread, one step ahead
    pinned memory -> the GPU                                when the step begins, without waiting

The batches of a step are a function of the run's seed and the step. So preparing ahead changes only the time.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.blocks import ShuffledBlocks, StreamedBlocks
from ..data.collator import DiffusionCollator


@dataclass(frozen=True)
class Step:
    """The forward passes of one optimizer step on this process.

    Attributes:
        forwards: the arguments of the model for each forward pass, on the CPU.
        blocks: the state of the blocks after the step, for a checkpoint.
    """

    forwards: list[dict[str, Any]]
    blocks: dict


class Preparation:
    """Yields the steps in order, and prepares each while the one before is computed.

    Args:
        rows: the rows of a step in each forward pass of this process.
        n_rows: the number of rows of a step, over all processes.
        device: where the batches will be used. For a GPU they are pinned.
        step, last: the first step, and the one after the last.
    """

    def __init__(
        self,
        blocks: ShuffledBlocks | StreamedBlocks,
        collator: DiffusionCollator,
        rows: Sequence[range],
        n_rows: int,
        device: torch.device,
        step: int,
        last: int,
    ):
        self.blocks, self.collator, self.rows, self.n_rows, self.device = blocks, collator, rows, n_rows, device
        self.step, self.last = step, last
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self.waiting: Future[Step] | None = None

    def __enter__(self) -> "Preparation":
        self._begin()
        return self

    def __exit__(self, *failure) -> None:
        self.worker.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        self.waiting = self.worker.submit(self._prepare, self.step) if self.step < self.last else None

    def next(self) -> Step:
        """Returns the next step. An error in its preparation is raised here."""
        if self.waiting is None:
            raise IndexError(f"step {self.step} is beyond the last, {self.last - 1}.")
        ready = self.waiting.result()
        self.step += 1
        self._begin()
        return ready

    def _prepare(self, step: int) -> Step:
        forwards = []
        for rows in self.rows:
            inputs = self.collator.rows(self.blocks.rows(step, rows), step, rows, self.n_rows)
            forward = {name: self._pin(value) for name, value in inputs.items()}
            forward["max_targets"] = int((inputs["labels"] != -100).sum())  # counted here, so nothing waits for the GPU
            forwards.append(forward)
        return Step(forwards, self.blocks.state_dict())

    def _pin(self, value: Any) -> Any:
        return value.pin_memory() if isinstance(value, Tensor) and self.device.type == "cuda" else value


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Copies the arguments of a forward pass to the device; from pinned memory, without waiting."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
