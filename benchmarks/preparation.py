# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Times what the host does before a training step: blocks, masks, labels and weights (radd_hf.training.prepare).

In training this happens while the step before is computed. As long as that step takes longer, the preparation costs
only a share of the interpreter.

Shapes: B rows of a step, L length.
"""

import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow
import torch
from datasets import Dataset

from radd_hf import RaddConfig
from radd_hf.data.blocks import Blocks, ShuffledBlocks
from radd_hf.data.collator import DiffusionCollator
from radd_hf.losses import LOSS_TYPES, draw_step_masks
from radd_hf.training.prepare import Preparation

from .measure import repeated, seconds, seeded

TOGETHER = 10  # steps timed together, since threads may pass on the interpreter at any point of a step
EPOCH = 4  # steps of a pass over the text, which is read again and again
DOCUMENT = 1000  # tokens of a document
TIMES = ("blocks_ms", "masks_ms", "all_ms")
HEADER = (
    "| preparation of | loss | blocks, ms | masks, ms | all, ms | the step, ms | of the step |\n|---|---|" + "---:|" * 5
)


def random_blocks(vocab_size: int, rows: int, length: int, seed: int) -> ShuffledBlocks:
    """Makes blocks of random tokens in memory, in documents like those of `data.tokenize`."""
    total = EPOCH * rows * length
    tokens = torch.randint(vocab_size - 1, (total,), generator=seeded(seed)).numpy()
    width = "uint16" if vocab_size <= 2**16 else "int32"
    borders = [*range(0, total, DOCUMENT), total]
    ids = pyarrow.ListArray.from_arrays(borders, pyarrow.array(tokens.astype(width)))
    n_bytes = pyarrow.array([stop - start for start, stop in pairwise(borders)])
    documents = Dataset(pyarrow.table({"input_ids": ids, "n_bytes": n_bytes}))
    return ShuffledBlocks(Blocks(documents, length), rows, seed)


@contextmanager
def prepared(
    config: RaddConfig, loss_type: str, rows: int, length: int, seed: int, device: str, steps: int
) -> Iterator[Preparation]:
    """Prepares the steps of one process that computes all rows in one forward pass."""
    blocks = random_blocks(config.vocab_size, rows, length, seed)
    collator = DiffusionCollator(config, loss_type, seed)
    with Preparation(blocks, collator, [range(rows)], rows, torch.device(device), 0, steps) as preparation:
        yield preparation


def measure(
    config: RaddConfig, rows: int, length: int, tokens_per_second: int, seed: int, device: str, repeats: int
) -> list[dict[str, Any]]:
    """Measures the milliseconds of blocks, of masks and of the whole, for each loss, and compares them with a step."""
    step_ms = 1000 * rows * length / tokens_per_second
    points = []
    for loss_type in LOSS_TYPES:
        with prepared(config, loss_type, rows, length, seed, device, TOGETHER * repeats + 1) as preparation:
            preparation.next()  # a warm-up
            # Nothing is computed between the steps, so each waits for its whole preparation.
            some = repeated(preparation.next, TOGETHER)
            whole = [1000 * seconds(some) / TOGETHER for _ in range(repeats)]
            blocks, noise = preparation.blocks, preparation.collator.noise
        read = in_a_thread(partial(blocks.rows, rows=range(rows)), repeats)
        sizes: dict[str, Any] = {"rows": range(rows), "n_rows": rows, "length": length, "noise": noise}
        draw = partial(draw_step_masks, loss_type, seed, lengths=torch.full((rows,), length), **sizes)
        masks = in_a_thread(draw, repeats)
        points.append(
            {
                "rows": rows,
                "length": length,
                "loss_type": loss_type,
                "tokens_per_second": tokens_per_second,
                "step_ms": step_ms,
                "blocks_ms": statistics.median(read),
                "masks_ms": statistics.median(masks),
                "all_ms": statistics.median(whole),
                "fraction_of_the_step": statistics.median(whole) / step_ms,
                "repeats": dict(zip(TIMES, (read, masks, whole), strict=True)),
            }
        )
    return points


def in_a_thread(function: Callable[..., Any], repeats: int) -> list[float]:
    """Returns the milliseconds of function(step=...) for each step, in a separate thread, after a warm-up."""

    def run() -> list[float]:
        return [1000 * seconds(partial(function, step=step)) for step in range(repeats + 1)][1:]

    with ThreadPoolExecutor(max_workers=1) as worker:
        return worker.submit(run).result()


def format_row(point: dict[str, Any]) -> str:
    name = f"{point['rows']} x {point['length']}, a step at {point['tokens_per_second']:,} tokens/s"
    times = " | ".join(f"{point[key]:.3g}" for key in TIMES)
    fraction = f"{point['fraction_of_the_step']:.1%}"
    return f"| {name} | {point['loss_type']} | {times} | {point['step_ms']:.4g} | {fraction} |"
