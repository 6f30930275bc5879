# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills the blanks of texts of mixed lengths, as `radd generate --input` does, beside one full batch of equal lengths.

    python -m benchmarks.batches [--rows 2000] [--device cpu] [--batch_tokens 2048]

The texts are passages of a novel with one blank each; lengths and blanks are uniform, and independent. The job reads
them from a file, and writes a file. The batch has texts of one length with the mean blank, as many as a batch holds. A
generated token costs an evaluation of its whole text, so the length is the mean over the tokens that the job fills. The
batch is filled again and again, and nothing else is done, half of the times before the job and half after it.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from radd_hf.data.documents import load_documents
from radd_hf.endings import run_program
from radd_hf.hub.loading import load
from radd_hf.jobs.filling import RowFiller
from radd_hf.jobs.job import run_on_file
from radd_hf.jobs.rows import RowsFile
from radd_hf.jobs.scoring import RowScorer

from .measure import EXACT, positive

LENGTHS, BLANKS = (16, 96), (1, 16)  # tokens, uniform between these


def texts(tokenizer: Any, count: int, chance: random.Random) -> list[str]:
    """Makes passages of a novel with one blank each."""
    ids = tokenizer(load_documents("austen", "validation")[0]["text"][:400_000])["input_ids"]
    made = []
    for _ in range(count):
        length, blank = chance.randint(*LENGTHS), chance.randint(*BLANKS)
        blank = min(blank, length - 2)
        start, begin = chance.randrange(len(ids) - length), chance.randint(1, length - blank - 1)
        passage = ids[start : start + length]
        before, after = (tokenizer.decode(part) for part in (passage[:begin], passage[begin + blank :]))
        made.append(f"{before}[MASK:{blank}]{after}".replace("\n", " "))
    return made


def time_job(work: RowFiller | RowScorer, lines: list[str], folder: Path) -> tuple[int, float]:
    """Returns the tokens that a job wrote or scored, and its seconds from reading the file to the written one."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    started = time.perf_counter()
    examined = RowsFile.examine("input", str(source), output)
    accelerator = Accelerator(cpu=work.model.device.type == "cpu")
    report = run_on_file(accelerator, examined, output, lambda _: work, {}, 0, unit="text", quiet=True)
    return int(report.totals["tokens"]), time.perf_counter() - started


def time_batch(model: Any, rows: int, length: int, blank: int, times: int) -> tuple[int, float]:
    """Returns the tokens that a batch wrote when it was filled so many times, and the seconds."""
    canvas = torch.randint(model.config.vocab_size - 1, (rows, length), generator=torch.Generator().manual_seed(0))
    begin = (length - blank) // 2
    canvas[:, begin : begin + blank] = model.config.mask_token_id
    started = time.perf_counter()
    for _ in range(times):
        generators = [torch.Generator().manual_seed(row) for row in range(rows)]
        model.generate(canvas, generator=generators, generation_config=EXACT).tolist()
    return rows * blank * times, time.perf_counter() - started


def speeds(work: Any, lines: list[str], time_batches: Callable[[], tuple[int, float]]) -> tuple[float, float]:
    """Returns the tokens a second of a job on lines, and of batches that are timed before it and after it."""
    with tempfile.TemporaryDirectory() as folder:
        time_job(work, lines[:8], Path(folder))  # what is made once
    before = time_batches()
    with tempfile.TemporaryDirectory() as folder:
        job = time_job(work, lines, Path(folder))
    after = time_batches()
    return job[0] / job[1], (before[0] + after[0]) / (before[1] + after[1])


def print_speeds(job: float, batch: float, batches: str) -> None:
    """Prints both speeds, and their ratio."""
    print(f"{'a job on them':<39}{job:8,.0f} tokens/s")
    print(f"{batches:<39}{batch:8,.0f} tokens/s")
    print(f"{'ratio':<39}{job / batch:8.2f}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=positive, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_tokens", type=positive, help="rows x length; default: what suits the device")
    args = parser.parse_args(argv)

    model, tokenizer = load("checkpoints/radd-austen", device=args.device)
    filler = RowFiller(model, tokenizer, seed=0, batch_tokens=args.batch_tokens, **EXACT)
    lines = texts(tokenizer, args.rows, random.Random(0))
    tasks = [task for line in lines for task in filler.encode({"text": line}, 0)]
    blank = round(statistics.mean(task.masks for task in tasks))
    length = round(sum(task.masks * task.length for task in tasks) / sum(task.masks for task in tasks))
    rows = max(filler.batch_tokens // length, 1)
    times = max(args.rows // rows // 2, 1)

    job, batch = speeds(filler, lines, lambda: time_batch(model, rows, length, blank, times))
    print(f"{args.rows:,} texts; a generated token is in one of {length} tokens on average, {blank} of them blank")
    print_speeds(job, batch, f"a batch of {rows} x {length}, again and again")


if __name__ == "__main__":
    run_program(main, "benchmarks.batches")
