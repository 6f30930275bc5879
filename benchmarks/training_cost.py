# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Estimates the operations, memory and time of a training run from its configuration, without measuring.

    python -m benchmarks.training_cost [--config small medium] [--processes 8] [--memory 80]

Symbols as in modeling_radd.py: D hidden size, I inside the MLP, H heads, L length, V vocabulary, n layers.
"""

import argparse

from radd_hf import RaddConfig
from radd_hf.endings import run_program
from radd_hf.hub.facts import count_parameters, forward_flops
from radd_hf.training.memory import MASKED, activation_bytes, gradient_bytes, state_bytes

from .measure import positive

CONFIGS = {
    "small": RaddConfig(),
    "medium": RaddConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
}
ASSUMPTIONS = """
* FLOPs: 2 for each multiply-add of a matrix product, nothing else counted; half of the tokens masked; in the last
  layer queries of all L positions (K, the most masks of a row in the micro-batch, comes close); backward twice forward.
* The head runs once, and its logits are kept in bf16; with gradient checkpointing the layers are computed again.
* Data parallel, bf16 by autocast. Every GPU has weights (4 bytes a parameter), gradients (4), AdamW's moments (8), the
  average of the weights (4), DDP's buckets (4, with more than one process) and bf16 copies of what is in a Linear (2).
* Activations: the residual stream in float32, the rest in bf16, from attention no L x L matrix (sdpa, flash); the last
  layer as any other. The logits at half of the positions, in bf16, and the gradient of one chunk of them.
* {reserve:.0%} of the memory stay free, for CUDA, fragments and short-lived tensors.
* Each GPU does {utilisation:.0%} of {peak:.3g} FLOP/s (989e12: H100, bf16, dense), recomputation included. 30 % is
  what one H100 reaches with the small model in 32 rows of 1024, all else of a step counted in: 417,000 tokens/s by
  `python -m benchmarks --device cuda training`. Communication between GPUs is not counted.
* An optimizer step is {batch_size} rows; the micro-batch the largest power of two that fits and divides a process's.
"""


def largest_micro_batch(config: RaddConfig, args: argparse.Namespace, checkpointing: bool) -> tuple[int, float]:
    """Finds the rows of the largest micro-batch that fits, and the bytes that it uses.

    Raises:
        ValueError: if the batch cannot be divided among the processes, or not even one row fits.
    """
    if args.batch_size % args.processes:
        raise ValueError(f"batch_size={args.batch_size} must be a multiple of processes={args.processes}.")
    fixed, row = state_bytes(config, args.processes) + gradient_bytes(), activation_bytes(config, checkpointing)
    share, micro_batch = args.batch_size // args.processes, 1
    fits = args.memory * 1e9 * (1 - args.reserve) - fixed
    if fits < row:
        raise ValueError(
            f"memory={args.memory} GB must be larger: weights and one row take {(fixed + row) / 1e9:.1f} GB."
        )
    while share % (2 * micro_batch) == 0 and 2 * micro_batch * row <= fits:
        micro_batch *= 2
    return micro_batch, fixed + micro_batch * row


def figures(config: RaddConfig, args: argparse.Namespace, checkpointing: bool) -> dict[str, str]:
    """Returns the rows of the table for one configuration."""
    length = config.max_position_embeddings
    forward = forward_flops(config, masked=MASKED * length)
    training = forward.training(checkpointing, head_again=False)  # FLOPs a row
    micro_batch, used = largest_micro_batch(config, args, checkpointing)
    seconds = args.batch_size * training / (args.processes * args.flops_per_second * args.utilisation)
    return {
        "parameters": f"{count_parameters(config)[0]:,}",
        "forward, GFLOPs a token": f"{(forward.layers + forward.head) / length / 1e9:.3f}",
        "training, GFLOPs a token": f"{training / length / 1e9:.3f}",
        "training, PFLOPs a step": f"{args.batch_size * training / 1e15:.3f}",
        "weights, gradients, optimizer, average, GB": f"{state_bytes(config, args.processes) / 1e9:.2f}",
        "activations, GB a row": f"{activation_bytes(config, checkpointing) / 1e9:.3f}",
        "gradient of a chunk of logits, GB": f"{gradient_bytes() / 1e9:.2f}",
        "micro-batch, rows a GPU": f"{micro_batch}",
        "accumulation": f"{args.batch_size // args.processes // micro_batch}",
        "memory in use, GB": f"{used / 1e9:.1f}",
        "seconds a step": f"{seconds:.3f}",
        "tokens a second": f"{args.batch_size * length / seconds:,.0f}",
        f"days for {args.steps:,} steps": f"{args.steps * seconds / 86400:.1f}",
    }


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--config",
        nargs="+",
        default=list(CONFIGS),
        help="configurations: small, medium, or folders with a config.json",
    )
    parser.add_argument("--processes", type=positive, default=8, help="number of GPUs, one for each process")
    parser.add_argument("--memory", type=float, default=80, help="memory of a GPU, in GB")
    parser.add_argument("--reserve", type=float, default=0.1, help="fraction of the memory that stays free")
    parser.add_argument("--batch_size", type=positive, default=512, help="rows of an optimizer step")
    parser.add_argument("--steps", type=positive, default=400_000, help="optimizer steps")
    parser.add_argument("--flops_per_second", type=float, default=989e12, help="peak of one GPU")
    parser.add_argument("--utilisation", type=float, default=0.30, help="fraction of the peak")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    columns = {}
    for name in args.config:
        config = CONFIGS[name] if name in CONFIGS else RaddConfig.from_pretrained(name)
        for checkpointing in (False, True):
            columns[f"{name}, checkpointing" if checkpointing else name] = figures(config, args, checkpointing)
    print(f"| {args.processes} GPUs of {args.memory:g} GB |", " | ".join(columns), "|")
    print("|---|" + "---:|" * len(columns))
    for row in next(iter(columns.values())):
        print(f"| {row} |", " | ".join(column[row] for column in columns.values()), "|")
    print(ASSUMPTIONS.rstrip().format(peak=args.flops_per_second, **vars(args)))


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.training_cost")
