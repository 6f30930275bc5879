# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares our matrix products and dropout on a CPU with torch's, for every layer. They justify kernels_radd.py.

    python -m benchmarks.layers [--hidden_size 768] [--vocab_size 50258] [--rows 1 16 256 1024] [--repeats 9]

For every layer of the small model and every number of rows, it times the float32 product, its gradients, and up_proj
with its GELU in one pass or two. Then it times products with plain and with packed weights. Several weights are
multiplied in turn, as in a model, so no weight stays in the CPU's cache.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from radd_hf.endings import run_program
from radd_hf.kernels_radd import ONEDNN_LINEAR, ONEDNN_PACK, Dropout, linear, onednn_linear, packed_weights

from .measure import alternate, positive, seconds

WEIGHTS = 4  # number of weights multiplied in turn for a layer


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hidden_size", type=positive, default=768)
    parser.add_argument("--vocab_size", type=positive, default=50258)
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 16, 256, 1024])
    parser.add_argument("--repeats", type=positive, default=9)
    args = parser.parse_args(argv)
    if ONEDNN_LINEAR is None or ONEDNN_PACK is None:
        parser.exit(1, "this torch was built without oneDNN: there is nothing to compare\n")
    width = args.hidden_size
    layers = {
        "qkv_proj": (width, 3 * width),
        "o_proj": (width, width),
        "up_proj": (width, 4 * width),
        "down_proj": (4 * width, width),
        "lm_head": (width, args.vocab_size),
    }
    torchs: Callable[[], list[torch.Tensor]] | float  # first a function, later its milliseconds
    ways: dict[str, Callable[[], Any]]
    print("| what | rows | torch, GFLOP/s | oneDNN, GFLOP/s | times as fast | apart by |")
    print("|---|---:|---:|---:|---:|---:|")
    for rows in args.rows:
        for name, (d_in, d_out) in layers.items():
            for what, torchs, onednns in comparisons(name, rows, d_in, d_out):
                ways = {"torch": partial(seconds, torchs), "oneDNN": partial(seconds, onednns)}
                times = alternate(ways, args.repeats)
                rates = [2e-9 * WEIGHTS * rows * d_in * d_out / statistics.median(each) for each in times.values()]
                apart = max(float((a - b).norm() / b.norm()) for a, b in zip(torchs(), onednns(), strict=True))
                print(
                    f"| {what} | {rows} | {rates[0]:.3g} | {rates[1]:.3g} | {rates[1] / rates[0]:.1f} | {apart:.0e} |"
                )
    print("\n| packed weights of | rows | as they are, ms | packed, ms | times as fast | equal to the bit |")
    print("|---|---:|---:|---:|---:|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for rows in args.rows:
            for name, (d_in, d_out) in layers.items():
                as_they_are, packed, equal = packing(rows, d_in, d_out, dtype, args.repeats)
                speed = f"{as_they_are:.3g} | {packed:.3g} | {as_they_are / packed:.2f}"
                print(f"| {name}, {dtype} | {rows} | {speed} | {'yes' if equal else 'no'} |")
    print("\n| dropout of | torch, ms | ours, ms | times as fast |\n|---|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        hidden, dropout = torch.ones(max(args.rows), width, dtype=dtype), Dropout(0.1)
        ways = {"torch": partial(F.dropout, hidden, 0.1), "ours": partial(dropout, hidden)}
        times = alternate({name: partial(seconds, way) for name, way in ways.items()}, args.repeats)
        torchs, ours = (1000 * statistics.median(each) for each in times.values())
        print(f"| {max(args.rows)} rows, {dtype} | {torchs:.2f} | {ours:.2f} | {torchs / ours:.1f} |")


def packing(rows: int, d_in: int, d_out: int, dtype: torch.dtype, repeats: int) -> tuple[float, float, bool]:
    """Returns the milliseconds of a product with plain and with packed weights, and whether both have the same bits."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, d_in, generator=generator).to(dtype)
    layers = [nn.Linear(d_in, d_out, dtype=dtype) for _ in range(WEIGHTS)]
    ways: dict[str, Callable[[], list[torch.Tensor]]] = {
        "plain": lambda: [onednn_linear(hidden, layer.weight, layer.bias) for layer in layers],
        "packed": lambda: [linear(layer, hidden) for layer in layers],
    }
    with packed_weights():
        equal = all(map(torch.equal, *(way() for way in ways.values())))
        times = alternate({name: partial(seconds, way) for name, way in ways.items()}, repeats)
    as_they_are, packed_ms = (1000 * statistics.median(each) / WEIGHTS for each in times.values())
    return as_they_are, packed_ms, equal


def comparisons(name: str, rows: int, d_in: int, d_out: int) -> list[tuple[str, Callable, Callable]]:
    """Returns names with torch's and oneDNN's functions. A function returns a list of results, one for each weight."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(d_out, d_in, generator=generator) for _ in range(WEIGHTS)]
    hidden, grad = torch.randn(rows, d_in, generator=generator), torch.randn(rows, d_out, generator=generator)
    found: list[tuple[str, Callable, Callable]] = [
        (name, lambda: [F.linear(hidden, w) for w in weights], lambda: [onednn_linear(hidden, w) for w in weights]),
        (
            f"{name}, gradient of its input",
            lambda: [grad @ w for w in weights],
            lambda: [onednn_linear(grad, w.t()) for w in weights],
        ),
    ]
    if name != "lm_head":
        found.append(
            (
                f"{name}, gradient of its weight",
                lambda: [grad.t() @ hidden for _ in weights],
                lambda: [onednn_linear(grad.t(), hidden.t()) for _ in weights],
            )
        )
    if name == "up_proj":
        found.append(
            (
                f"{name} and GELU",
                lambda: [F.gelu(F.linear(hidden, w), approximate="tanh") for w in weights],
                lambda: [onednn_linear(hidden, w, gelu=True) for w in weights],
            )
        )
    return found


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.layers")
