# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compiles the layers of a model with torch.compile, for evaluation and sampling, and times both before and after.

    python examples/compiled.py
    python examples/compiled.py --device cuda --dtype bfloat16 --model JingyangOu/radd-t-dce

It compiles the layers, not the whole model. All layers are alike, so one compilation serves them all, and their control
flow does not depend on the data. The last layer is not compiled, since it computes only the requested positions.

The compiler fuses norms, rotary embedding, activation and residual sums. Matrix products and attention keep their
kernels, and take most of the time on a CPU or in a large model. So expect almost no gain on a CPU, and some on a GPU,
where the small operations are bound by memory. The printed times show it. The first calls take seconds to compile.
Logits may round differently, which can change a sampled token.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from radd_hf.hub.loading import load_model

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "radd-austen"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder or Hub repository of a RADD model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--batch_size", type=int, default=8, help="rows")
    parser.add_argument("--length", type=int, help="tokens of a row; default: the model's length")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls, of which the fastest counts")
    args = parser.parse_args(argv)

    model = load_model(args.model, dtype=args.dtype).to(args.device).eval()
    length = args.length or model.config.max_position_embeddings
    rows = (args.batch_size, length)
    clean = torch.randint(model.config.mask_token_id, rows, generator=torch.Generator().manual_seed(0)).to(args.device)
    labels = clean.masked_fill(torch.arange(length, device=args.device) % 2 == 0, -100)  # every other token is scored

    @torch.no_grad()
    def evaluate() -> Tensor:
        canvas = clean.masked_fill(labels != -100, model.config.mask_token_id)
        return model(input_ids=canvas, labels=labels).sequence_nll

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return model.generate(
            length=length, steps=8, num_return_sequences=args.batch_size, method="ordered", generator=generator
        )

    plain_nll, plain_sample = evaluate(), sample()
    plain = {function.__name__: seconds(function, args.repeats) for function in (evaluate, sample)}
    for layer in model.model.layers[:-1]:
        layer.compile(dynamic=True, backend=args.backend)
    started = time.perf_counter()
    difference = (evaluate() / plain_nll - 1).abs().max().item()
    same = (sample() == plain_sample).float().mean().item()
    first = time.perf_counter() - started
    compiled = {function.__name__: seconds(function, args.repeats) for function in (evaluate, sample)}

    print(f"{args.model} on {args.device}, {args.dtype}, {args.batch_size} rows of {length} tokens; seconds per call")
    for name in plain:
        ratio = plain[name] / compiled[name]
        print(f"{name:<9} plain {plain[name]:.4f}  compiled {compiled[name]:.4f}  ratio {ratio:.2f}")
    print(f"The first calls took {first:.1f} s. The likelihood differs by at most {difference:.1e} of its value,")
    print(f"and {same:.1%} of the sampled tokens are the same.")


def seconds(function: Callable[[], Tensor], repeats: int) -> float:
    """Returns the seconds of the fastest of a few calls. Reading a number makes a GPU finish."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function().sum().item()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main(sys.argv[1:])
