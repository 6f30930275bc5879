# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares attention in bfloat16 on a CPU, for one layer: time of torch's kernel and of our matrix products.

    python -m benchmarks.attention [--heads 12] [--width 64] [--repeats 9]

Shapes: B rows, H heads, L length, d head width.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from radd_hf.endings import run_program
from radd_hf.kernels_radd import attention_by_products

from .measure import alternate, positive, seconds

SIZES = [(1, 256), (1, 1024), (8, 128)]


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--heads", type=positive, default=12)
    parser.add_argument("--width", type=positive, default=64)
    parser.add_argument("--repeats", type=positive, default=9)
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(0)
    print("| rows | length | torch, ms | products, ms | times as fast | torch off by | products off by |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for rows, length in SIZES:
        exact = torch.randn(3, rows, args.heads, length, args.width, generator=generator)  # (3, B, H, L, d)
        query, key, value = exact.bfloat16()
        products = partial(attention_by_products, nn.Identity(), query, key, value, None, args.width**-0.5)
        ways: dict[str, Callable[[], Any]] = {
            "torch": partial(scaled_dot_product_attention, query, key, value),
            "products": products,
        }
        times = alternate({name: partial(seconds, way) for name, way in ways.items()}, args.repeats)
        torchs, ours = (1000 * statistics.median(times[name]) for name in ways)
        reference = scaled_dot_product_attention(*exact)
        errors = relative_error(ways["torch"](), reference), relative_error(products()[0].transpose(1, 2), reference)
        speed = f"{torchs:.2f} | {ours:.2f} | {torchs / ours:.1f}"
        print(f"| {rows} | {length} | {speed} | {errors[0]:.2%} | {errors[1]:.2%} |")


def relative_error(got: Tensor, reference: Tensor) -> float:
    return float((got.float() - reference).norm() / reference.norm())


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.attention")
