# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads and compares the results of two training runs."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from radd_hf.hub.runs import IDENTITIES
from support.launches import metrics


def outcome(folder: Path, step: int) -> dict:
    """Returns all results of a run except its timings."""
    last = folder / "checkpoints" / f"step_{step}"
    records = [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in metrics(folder)]
    files = {name: load_file(last / name) for name in ("model.safetensors", "state/model.safetensors")}
    progress = json.loads((last / "state" / "progress.json").read_text())
    return {
        "metrics": records,
        "ema": load_file(last / "state" / "ema.safetensors"),
        "optimizer": load_file(last / "state" / "optimizer.safetensors"),
        "progress": {name: value for name, value in progress.items() if name not in IDENTITIES},
        **files,
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
