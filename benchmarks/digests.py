# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Prints digests of outputs that a refactoring must not change. Run it on both commits and compare the lines.

    python -m benchmarks.digests > build/after.txt

It prints lines for the authors' (golden) logits in two dtypes, the tokens of twelve settings of `generate`, the weights
and their averages after 20 training steps of each loss, and the likelihood of two sequences by each estimator. It uses
only public names, so it runs on a commit of another layout, too:

    PYTHONPATH=OTHER_CHECKOUT python benchmarks/digests.py

Run both on one machine, since CPUs of other makers round differently. It uses one thread, since sums depend on the
number of threads.
"""

import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported, which reads it
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from safetensors.torch import load_file
from torch import Tensor

from radd_hf import RaddForMaskedLM
from radd_hf.endings import run_program

# The checkout of the imported package. It may be another one than this file's.
ROOT = Path(importlib.import_module("radd_hf").__file__ or "").parents[1]
LOSSES = ("t_DSE", "t_DCE", "lambda_DCE", "k_DCE")
ESTIMATORS = ("k_stratified", *LOSSES, "ar_forward", "ar_backward", "ar_random")
LENGTH = 48
SETTINGS: dict[str, dict] = {
    "tweedie": {"steps": 24},
    "tweedie, history": {"steps": 24, "output_history": True},
    "tweedie, padded": {"steps": 24, "padded": True},
    "tweedie, top-p": {"steps": 16, "top_p": 0.8},
    "tweedie, every step evaluated": {"steps": 16, "use_cache": False},
    "euler": {"method": "euler", "steps": 24},
    "euler, top-k, cooler": {"method": "euler", "steps": 12, "top_k": 20, "temperature": 0.7},
    "first hitting": {"method": "first_hitting"},
    "ordered": {"method": "ordered"},
    "ordered, backward, 16 events, padded": {"method": "ordered", "order": "backward", "steps": 16, "padded": True},
    "ordered, random, greedy": {"method": "ordered", "order": "random", "temperature": 0},
    "first hitting, refresh interval": {"method": "first_hitting", "refresh_interval": 4},
}
TRAINING = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "length": 32,
    "batch_size": 8,
    "accumulation": 2,
    "warmup_steps": 5,
    "max_steps": 20,
    "save_steps": 20,
    "eval_steps": 20,
    "n_samples": 0,
    "random_length_fraction": 0.2,
    "embedding_std": 0.5,
}


def digest(tensors: Iterable[Tensor]) -> str:
    """Returns sixteen hexadecimal digits of a hash of shapes, dtypes and bytes."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def golden_logits() -> Iterator[tuple[str, str]]:
    """Digests the logits of the authors' checkpoint on their input, in float32 and in bfloat16."""
    golden = ROOT / "tests" / "golden"
    ids = load_file(golden / "forward.safetensors")["input_ids"]
    for dtype in (torch.float32, torch.bfloat16):
        model = RaddForMaskedLM.from_pretrained(golden / "hub", dtype=dtype).eval()
        with torch.no_grad():
            yield f"golden logits, {dtype}", digest([model(input_ids=ids).logits])


def samples(model: RaddForMaskedLM) -> Iterator[tuple[str, str]]:
    mask = model.config.mask_token_id
    canvas = torch.full((3, LENGTH), mask)
    canvas[:, :8] = torch.arange(24).view(3, 8) + 300
    padding = torch.ones_like(canvas)
    padding[1, 40:] = 0
    padding[2, :12] = 0
    for name, settings in SETTINGS.items():
        settings = dict(settings)
        ids, attention_mask = canvas, None
        if settings.pop("padded", False):
            ids, attention_mask = canvas.where(padding.bool(), 5), padding
        output = model.generate(
            ids,
            generation_config={"temperature": 1.0, "top_p": 1.0},  # older commits do not know `exact`
            attention_mask=attention_mask,
            generator=[torch.Generator().manual_seed(row) for row in range(len(ids))],
            return_dict_in_generate=True,
            **settings,
        )
        assert not isinstance(output, Tensor)
        kept = [output.sequences, output.num_function_evaluations, output.reveal_step, *(output.history or ())]
        yield f"generate, {name}", digest(cast(list[Tensor], kept))


def likelihoods(model: RaddForMaskedLM) -> Iterator[tuple[str, str]]:
    from radd_hf.likelihood import estimate_likelihood, exact_likelihood

    text = [torch.arange(40) * 7 % 3000 + 1, torch.arange(25) * 11 % 3000 + 1]
    for estimator in ESTIMATORS:
        found = estimate_likelihood(model, text, estimator=estimator, passes=8, batch_size=6, seed=1)
        yield f"likelihood, {estimator}", f"{found.nats_per_token!r} +- {found.standard_error!r}"
    yield "likelihood, exact, random order", digest([exact_likelihood(model, text, "random", seed=2)])


def trainings() -> Iterator[tuple[str, str]]:
    """Trains with each loss by the script, on a text made here, and digests the weights and averages."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(
            "".join(f"{n}. She read the letter {n % 7} times before supper.\n" for n in range(400)), encoding="utf-8"
        )
        for loss in LOSSES:
            run = Path(folder) / loss
            flags = TRAINING | {"dataset": text, "output_dir": run, "loss_type": loss}
            command = [sys.executable, str(ROOT / "train_accelerate.py")]
            command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
            finished = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            )
            if finished.returncode:
                raise RuntimeError(finished.stderr)
            last = run / "checkpoints" / "step_20"
            for what, file in (
                ("averages", last / "model.safetensors"),
                ("weights", last / "state" / "model.safetensors"),
            ):
                tensors = load_file(file)
                yield f"training, {loss}, {what}", digest(tensors[name] for name in sorted(tensors))


def main() -> None:
    torch.set_num_threads(1)
    model = RaddForMaskedLM.from_pretrained(ROOT / "checkpoints" / "radd-austen", dtype=torch.float32).eval()
    for part in (golden_logits(), samples(model), likelihoods(model), trainings()):
        for name, value in part:
            print(f"{name:<48}{value}", flush=True)


if __name__ == "__main__":
    run_program(lambda _: main(), "python -m benchmarks.digests")
