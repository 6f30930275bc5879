# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the scripts in tests: with tiny settings, in separate processes; and reads their logs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

# The first lines of a script, which hide an installed radd_hf.
WITHOUT_RADD_HF = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "radd_hf":
            raise ImportError("radd_hf is not installed here")

sys.meta_path.insert(0, Absent())
"""

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "zero_init_residual": True,
    "embedding_std": 0.5,
    "vocab_size": 320,
    "length": 16,
    "batch_size": 8,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "max_steps": 8,
    "save_steps": 4,
    "eval_steps": 4,
    "log_steps": 4,
    "eval_sequences": 4,
    "eval_passes": 2,
    "sample_steps": 4,
    "n_samples": 2,
    "keep_last": 3,
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def command(processes: int, *script: str) -> list[str]:
    if processes == 1:
        return [sys.executable, *script]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    return [sys.executable, *launcher, *script]


def kill(process: subprocess.Popen) -> None:
    """Kills the launcher and its workers. The workers are in process groups of their own."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
