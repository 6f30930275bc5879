# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares the likelihood of text in several orders: fixed ones, and those that the model chooses.

    python -m benchmarks.orders

It uses the shipped checkpoint and the novel that it has not read. Each order defines a distribution of texts, which
`generate` samples, and its likelihood is exact. Blocks are spread evenly over the novel. All orders score the same
blocks.

Shapes: S blocks, L length.
"""

import argparse

from torch import Tensor

from radd_hf.data.benchmark_texts import load_evaluation_text
from radd_hf.endings import run_program
from radd_hf.hub.loading import load
from radd_hf.likelihood import exact_likelihood, mean_and_error
from radd_hf.settings_radd import ORDERS

from .commands import spread
from .estimators import CHECKPOINT
from .measure import positive

ANY_ORDER = "random"  # the others are compared with it


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--blocks", type=positive, default=64)
    parser.add_argument("--length", type=positive, help="tokens of a block; default: the model's")
    parser.add_argument(
        "--at_once", type=positive, default=4, help="tokens per network evaluation in the last two columns"
    )
    parser.add_argument("--batch_size", type=positive, default=32)
    parser.add_argument("--device", help="default: a GPU if there is one")
    args = parser.parse_args(argv)

    model, tokenizer = load(str(CHECKPOINT), device=args.device)
    length = args.length or model.config.max_position_embeddings
    whole = load_evaluation_text("austen", tokenizer, length=length).blocks
    blocks = [whole[place] for place in spread(args.blocks, len(whole) - 1)]
    print(f"{len(blocks)} blocks of {length} tokens, spread evenly over Persuasion; nats per token, +- one standard")
    print("error over blocks; its difference to random order on the same blocks\n")
    print(f"| order | one at a time | less random | {args.at_once} at once | less random |\n|---|---:|---:|---:|---:|")
    random: list[Tensor] = []  # (S,) for each number of steps
    for order in (ANY_ORDER, *(order for order in ORDERS if order != ANY_ORDER)):
        cells = []
        for column, steps in enumerate((None, -(-length // args.at_once))):
            nats = exact_likelihood(model, blocks, order, steps=steps, batch_size=args.batch_size) / length  # (S,)
            if order == ANY_ORDER:
                random.append(nats)
            cells += [shown(nats, ""), "" if order == ANY_ORDER else shown(nats - random[column], "+")]
        print(f"| {order} | {' | '.join(cells)} |", flush=True)


def shown(values: Tensor, sign: str) -> str:
    if len(values) == 1:
        return f"{float(values):{sign}.3f}"
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.3f} +- {error:.3f}"


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.orders")
