# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Times one way of loading a model, in a separate process: seconds to the first output, and memory.

    python -m benchmarks.loading naive|ours FOLDER float32|float16|bfloat16 LENGTH [--device cuda]

The naive way makes and initialises a model, and then calls `torch.load` for a state dict and `load_state_dict`. Ours is
`from_pretrained`. Both then evaluate one row, with the distribution at one position, so only loading differs. The naive
way has float32 weights, and runs in float16 by autocast. Imports and the start of a GPU are not timed. The files come
from the page cache, since they were read before. The memory is that of the process, or on a GPU that of the GPU.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.endings import run_program

from .measure import ResidentPeak, peak_bytes, positive, seconds

WEIGHTS = "weights.pth"  # for the naive way, beside the files of `save_pretrained`


def load(way: str, folder: Path, dtype: torch.dtype) -> RaddForMaskedLM:
    if way == "ours":
        return RaddForMaskedLM.from_pretrained(folder, dtype=dtype)
    model = RaddForMaskedLM(RaddConfig.from_pretrained(folder))
    model.load_state_dict(torch.load(folder / WEIGHTS))
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("way", choices=["naive", "ours"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("length", type=positive)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args(argv)

    disable_progress_bar()
    ids = torch.zeros(1, args.length, dtype=torch.int64, device=args.device)  # this starts the GPU

    def load_and_evaluate() -> None:
        model = load(args.way, args.folder, getattr(torch, args.dtype)).to(args.device)  # type: ignore[arg-type]
        with torch.no_grad(), torch.autocast(args.device, torch.float16, enabled=args.dtype == "float16"):
            logits = model(input_ids=ids, output_positions=ids[:, :1]).logits
        assert logits.isfinite().any()

    times: list[float] = []

    def timed() -> None:
        times.append(seconds(load_and_evaluate))

    if args.device == "cuda":
        peak = peak_bytes(timed, args.device)
    else:
        with ResidentPeak() as memory:
            timed()
        peak = memory.bytes
    print(json.dumps({"seconds": times[0], "peak_bytes": peak}))


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.loading")
