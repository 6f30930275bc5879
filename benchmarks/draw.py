# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Times drawing tokens from logits, compared with an evaluation of the network for one row.

    python -m benchmarks.draw [--device cuda] [--rows 1 8 64] [--vocab_size 50258] [--length 1024] [--repeats 7]

Our way chooses a part of the vocabulary, and then a token of that part (`draw_radd.draw_tokens`). The other way is a
softmax and one cumulative sum over the whole vocabulary, in float64 like ours. Both give tokens and log-probabilities.
On a GPU each is replayed as a CUDA graph, as in `generate`.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from radd_hf import RaddConfig
from radd_hf.draw_radd import draw_tokens
from radd_hf.endings import run_program
from radd_hf.programs_radd import CAPTURERS, Programs

from .commands import make_model
from .measure import alternate, positive, repeated, seconds, seeded

CALLS = 20  # timed together


def in_parts(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draws like the library: (N, V), (N,) -> tokens and log-probabilities (N,)."""
    token, log_sum = draw_tokens(logits, uniform)
    return token, logits.gather(1, token[:, None]).squeeze(1).float() - log_sum


def in_one_sum(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    distribution = logits.softmax(dim=-1, dtype=torch.float32).double().cumsum(dim=-1)  # (N, V)
    total = distribution[:, -1:]
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(distribution, target, right=True).squeeze(1)
    logits = logits.float()
    return token, logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(dim=-1)


def runner_of(function: Callable[..., Any], *inputs: Any) -> Callable[[], None]:
    """Returns a function that runs `function` on these inputs. On a GPU it is captured and replayed."""
    device = next(each.device for each in inputs if isinstance(each, Tensor))
    make = CAPTURERS.get(device.type)
    programs = Programs(device, make and make(device))

    def call() -> None:
        function(*inputs)

    @torch.no_grad()
    def run() -> None:
        programs.run("draw", call)

    return run


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 8, 64], help="positions drawn together")
    parser.add_argument("--vocab_size", type=positive, default=50258)
    parser.add_argument("--length", type=positive, default=1024, help="length of the evaluated row")
    parser.add_argument("--hidden_size", type=positive, default=768)
    parser.add_argument("--layers", type=positive, default=12)
    parser.add_argument("--heads", type=positive, default=12)
    parser.add_argument("--repeats", type=positive, default=7)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.draw: --device cuda: torch finds no GPU")
    config = RaddConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
    )
    model = make_model(config, 0, args.device).to(torch.bfloat16)  # type: ignore[arg-type]
    canvas = torch.full((1, args.length), args.vocab_size - 1, device=args.device)
    place = torch.zeros(1, 1, dtype=torch.int64, device=args.device)
    runs = {"evaluation": runner_of(lambda ids, where: model(ids, output_positions=where).logits, canvas, place)}
    for rows in args.rows:
        logits = (3 * torch.randn(rows, args.vocab_size, generator=seeded(0))).bfloat16().to(args.device)
        uniform = torch.rand(rows, generator=seeded(1), dtype=torch.float64).to(args.device)
        for way in (in_parts, in_one_sum):
            runs[f"{rows} {way.__name__}"] = runner_of(way, logits, uniform)
    for run in runs.values():
        repeated(run, 3)()  # the first call runs, the second captures, the third replays
    times = alternate({name: partial(seconds, repeated(run, CALLS)) for name, run in runs.items()}, args.repeats)
    median = {name: 1e6 * statistics.median(values) / CALLS for name, values in times.items()}
    print("| tokens drawn | in parts, us | in one sum, us | in parts, of an evaluation |\n|---:|---:|---:|---:|")
    for rows in args.rows:
        ours, other = median[f"{rows} in_parts"], median[f"{rows} in_one_sum"]
        print(f"| {rows} | {ours:.0f} | {other:.0f} | {ours / median['evaluation']:.1%} |")
    print(
        f"\nan evaluation of one row of {args.length} tokens, head at one of them, bf16: {median['evaluation']:.0f} us"
    )


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.draw")
