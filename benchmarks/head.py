# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares ways to compute the head and its loss in training: time and memory of loss and gradients in bfloat16.

    python -m benchmarks.head [--device cuda] [--rows 16384] [--hidden_size 768] [--vocab_size 50258] [--repeats 7]

Ours computes the logits in chunks. On a GPU it keeps them for the backward pass, and aligns their rows to 16 bytes. Two
other ways keep no logits, and compute the gradient of a chunk in the forward pass: torch's `linear_cross_entropy`, if
torch has it, and Liger's (arXiv:2410.10989), if `liger-kernel` is installed.
"""

import argparse
import importlib
import statistics
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from radd_hf import kernels_radd
from radd_hf.endings import run_program
from radd_hf.kernels_radd import token_nll

from .measure import alternate, peak_bytes, positive, seconds, seeded

LIGER = "liger_kernel.ops.fused_linear_cross_entropy"


def ways(head: nn.Linear, target: Tensor, backend: str | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns the ways to compute the sum of the losses of hidden states (N, D) with targets (N,)."""

    def logits(hidden: Tensor, layer: Callable[[Tensor], Tensor] = head) -> Tensor:
        return layer(hidden)

    def ours(hidden: Tensor) -> Tensor:
        return token_nll(logits, head, hidden, target, head.out_features, backend).sum()

    def unaligned(hidden: Tensor) -> Tensor:
        with mock.patch.object(kernels_radd, "aligned", return_value=()):
            return ours(hidden)

    def plain(hidden: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden), target, reduction="sum")

    found: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": ours,
        "ours, rows as they are": unaligned,
        "cross_entropy of all logits": plain,
    }
    if hasattr(F, "linear_cross_entropy"):

        def of_torch(hidden: Tensor) -> Tensor:
            weight, bias = head.weight.bfloat16(), head.bias.bfloat16()
            return F.linear_cross_entropy(hidden.bfloat16(), weight, target, linear_bias=bias, reduction="sum")

        found["torch's linear_cross_entropy"] = of_torch
    try:
        liger = importlib.import_module(LIGER).LigerFusedLinearCrossEntropyFunction
    except ImportError:
        return found

    def of_liger(hidden: Tensor) -> Tensor:
        weight, bias = head.weight.bfloat16(), head.bias.bfloat16()
        return liger.apply(hidden.bfloat16(), weight, target, bias, None, -100, 0.0, 0.0, "sum")[0]

    return found | {"Liger's": of_liger}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=positive, default=16384)
    parser.add_argument("--hidden_size", type=positive, default=768)
    parser.add_argument("--vocab_size", type=positive, default=50258)
    parser.add_argument("--repeats", type=positive, default=7)
    args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.head: --device cuda: torch finds no GPU")
    torch.manual_seed(0)
    head = nn.Linear(args.hidden_size, args.vocab_size).to(args.device)
    hidden = torch.randn(args.rows, args.hidden_size, generator=seeded(0)).to(args.device)
    target = torch.randint(args.vocab_size, (args.rows,), generator=seeded(1)).to(args.device)

    def step(way: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            head.zero_grad()
            given = hidden.clone().requires_grad_()
            with torch.autocast(args.device, torch.bfloat16):
                loss = way(given)
            loss.backward()

        return run

    steps = {name: step(way) for name, way in ways(head, target, "inductor" if args.device == "cuda" else None).items()}
    for run in steps.values():
        run()  # compiles, and chooses kernels
    times = alternate({name: partial(seconds, run) for name, run in steps.items()}, args.repeats)
    print("| loss and gradients | ms | times as long as ours | memory, GB |\n|---|---:|---:|---:|")
    first = statistics.median(times["ours"])
    for name, run in steps.items():
        median = statistics.median(times[name])
        print(
            f"| {name} | {1000 * median:.1f} | {median / first:.2f} | {peak_bytes(run, args.device) / 1e9:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.head")
