# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares scoring texts of mixed lengths, by `radd score --input`, with full batches of equal lengths.

    python -m benchmarks.scoring [--rows 600] [--device cpu] [--batch_tokens 2048]

The texts are passages of a novel, of uniform lengths. The job reads them from a file, and writes a file. The batches
hold texts of the mean length, with nothing else to do. Half of them run before the job and half after it.
"""

import argparse
import random
import statistics
import time
from typing import Any

import torch

from radd_hf.data.documents import load_documents
from radd_hf.endings import run_program
from radd_hf.hub.loading import load
from radd_hf.jobs.scoring import RowScorer
from radd_hf.likelihood import estimate_likelihood

from .batches import LENGTHS, print_speeds, speeds
from .measure import positive

PASSES = 16


def texts(tokenizer: Any, count: int, chance: random.Random) -> list[str]:
    """Makes passages of a novel."""
    ids = tokenizer(load_documents("austen", "validation")[0]["text"][:400_000])["input_ids"]
    made = []
    for _ in range(count):
        length = chance.randint(*LENGTHS)
        start = chance.randrange(len(ids) - length)
        made.append(tokenizer.decode(ids[start : start + length]).replace("\n", " "))
    return made


def time_batches(model: Any, texts: int, length: int, rows: int) -> tuple[int, float]:
    """Returns the tokens of texts of one length, scored in batches of `rows` rows, and the seconds."""
    ids = torch.randint(model.config.vocab_size - 1, (texts, length), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    estimate_likelihood(model, list(ids), passes=PASSES, batch_size=rows)
    return texts * length, time.perf_counter() - started


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=positive, default=600, help="number of texts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--batch_tokens", type=positive, help="rows x length of a batch; default: what suits the device"
    )
    args = parser.parse_args(argv)

    model, tokenizer = load("checkpoints/radd-austen", device=args.device)
    scorer = RowScorer(model, tokenizer, batch_tokens=args.batch_tokens, passes=PASSES)
    lines = texts(tokenizer, args.rows, random.Random(0))
    length = round(statistics.mean(task.length for line in lines for task in scorer.encode({"text": line}, 0)))
    round_rows = PASSES // 2  # rounds then fill the batches exactly
    rows = max(scorer.batch_tokens // length // round_rows, 1) * round_rows
    half = max(args.rows // 2, 1)

    job, batch = speeds(scorer, lines, lambda: time_batches(model, half, length, rows))
    print(f"{args.rows:,} texts of {length} tokens on average, {PASSES} passes")
    print_speeds(job, batch, f"batches of {rows} x {length}")


if __name__ == "__main__":
    run_program(main, "benchmarks.scoring")
