# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Times a save of the paper's small model, and the parts of it that the manifest and the disk take.

    python -m benchmarks.saving [--folder runs] [--repeats 3]

Without a manifest, a save would end when its files are written, usually to memory only. Our save then also hashes the
files, and waits until they are on disk. The benchmark alternates two kinds of saves. The first kind does these parts
one after the other, to time each. The second kind is the save of a training run, which hashes and waits together in
several threads. All figures are medians.
"""

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.data.documents import train_tokenizer
from radd_hf.endings import run_program
from radd_hf.training import run as run_module
from radd_hf.training.averages import Ema
from radd_hf.training.checkpoints import complete, sync
from radd_hf.training.run import Run
from radd_hf.training.stops import Stops

from .measure import positive

PARTS = ("writing", "to the disk", "hashing")


def run_to_save(config: RaddConfig, output: Path) -> Run:
    """Makes a run of a random model after one step, with moments of zero."""
    model = RaddForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for weight in model.parameters():
        moments = {key: torch.zeros_like(weight, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": torch.ones(())} | moments
    accelerator = Accelerator(cpu=True)
    return Run(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,  # type: ignore[arg-type]
        scheduler=LambdaLR(optimizer, lambda _: 1.0),
        ema=Ema(model, 0.9999),
        skeleton=None,
        blocks=None,  # type: ignore[arg-type]
        collator=None,  # type: ignore[arg-type]
        tokenizer=train_tokenizer(["A text of few words."], 260),
        output=output,
        seed=0,
        settings={},
        identity={},
        stops=Stops(),
    )


def timed_save(run: Run) -> float:
    """Returns the seconds of a save like that of training."""
    run.step += 1
    start = time.perf_counter()
    run.save(keep_last=1)
    return time.perf_counter() - start


def timed_parts(run: Run) -> list[float]:
    """Returns the seconds of each of `PARTS`, in a save that does them one after the other."""
    times = [time.perf_counter()]

    def complete_in_parts(folder: Path, *given, **settings) -> Path:
        times.append(time.perf_counter())
        for path in folder.rglob("*"):
            sync(path)
        times.append(time.perf_counter())
        target = complete(folder, *given, **settings)
        times.append(time.perf_counter())
        return target

    run.step += 1
    with mock.patch.object(run_module, "complete", complete_in_parts):
        run.save(keep_last=1)
    return [after - before for before, after in pairwise(times)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder on the disk to time; default: that of temporary files")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--hidden_size", type=positive, default=768)
    parser.add_argument("--num_hidden_layers", type=positive, default=12)
    args = parser.parse_args(argv)

    sizes = {"hidden_size": args.hidden_size, "num_hidden_layers": args.num_hidden_layers}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = run_to_save(RaddConfig(**sizes, num_attention_heads=12), Path(folder))
        timed_save(run)  # the first save of a process is slower
        wholes, parts = [], []
        for _ in range(args.repeats):
            parts.append(timed_parts(run))
            wholes.append(timed_save(run))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    medians = [statistics.median(times) for times in zip(*parts, strict=True)]
    whole = statistics.median(wholes)
    print(f"a checkpoint of {size / 1e9:.2f} GB")
    for name, seconds in zip(PARTS, medians, strict=True):
        print(f"{name:<12}{seconds:6.2f} s")
    print(f"{'a save':<12}{whole:6.2f} s, {whole / medians[0]:.2f} times as long as writing alone")


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.saving")
