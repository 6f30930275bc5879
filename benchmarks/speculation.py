# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the gain and the cost of `generate(speculate=k)`, on the shipped checkpoint.

    python -m benchmarks.speculation [--device cuda] [--dtype bfloat16] [--lengths 128 64 256] [--k 1 2 4 8 16]
    python -m benchmarks.speculation --device cuda --dtype bfloat16 --hidden_size 768 --layers 12 --heads 12

The first command prints a table: the tokens generated in a round; for each token, the evaluations one after the other
and the sequences evaluated; the seconds of a call, and its speed relative to k = 1. The counts come from one call with
many rows (`--samples`). The seconds come from calls with one row (`--rows`), in which every k takes its turn.

The second command also measures a network of another size, with random weights: the time of an evaluation of k
sequences, and the time of a call without its evaluations. The number of accepted drafts depends on the weights. So the
evaluations of a text are those of the checkpoint, and `times as fast` is computed from both.
"""

import argparse
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.endings import run_program
from radd_hf.settings_radd import MOST_SPECULATION

from .commands import make_model
from .estimators import CHECKPOINT
from .measure import EXACT, alternate, describe_machine, positive, seconds

ORDERS: dict[str, dict[str, Any]] = {
    "random": {"method": "first_hitting"},
    "forward": {"method": "ordered", "order": "forward"},
}
HEADER = (
    "| order | tokens | k | tokens a round | evaluations a token | sequences a token | {time} | times as fast |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass
class Cost:
    """Counts tokens, evaluations one after the other, and evaluated sequences, each summed over rows."""

    tokens: int
    evaluations: int
    sequences: int


@dataclass
class Writer:
    """Generates texts of one length in one order, with the same seeds for each k."""

    model: RaddForMaskedLM
    order: str
    length: int

    def write(self, k: int, rows: int, seeds: int = 1) -> Cost:
        """Calls `generate` once for each seed, and adds up the counts."""
        cost = Cost(0, 0, 0)
        for seed in range(seeds):
            out: Any = self.model.generate(
                length=self.length,
                num_return_sequences=rows,
                speculate=k,
                generation_config=EXACT,
                seed=seed,
                return_dict_in_generate=True,
                **ORDERS[self.order],
            )
            cost.tokens += out.sequences.numel()
            cost.evaluations += int(out.num_function_evaluations.sum())
            cost.sequences += int(out.num_sequences_evaluated.sum())
        return cost

    def fill_one(self, rows: int) -> None:
        """Fills one mask with one evaluation."""
        given = [[0] * (self.length - 1)] * rows
        self.model.generate(prefix=given, length=self.length, generation_config=EXACT, **ORDERS[self.order])

    def time(self, ks: list[int], rows: int, seeds: int, repeats: int) -> dict[int, float]:
        """Returns the median seconds of a call with each k."""
        for k in ks:
            for _ in range(3 if self.model.device.type == "cuda" else 1):
                self.write(k, rows)  # on a GPU a new shape first runs, then is captured, then is replayed
        sides = {str(k): partial(seconds, partial(self.write, k, rows, seeds)) for k in ks}
        return {int(k): statistics.median(times) / seeds for k, times in alternate(sides, repeats).items()}


def format_row(order: str, length: int, k: int, cost: Cost, time: str, ratio: float) -> str:
    per_token = cost.evaluations / cost.tokens, cost.sequences / cost.tokens
    figures = f"{1 / per_token[0]:.2f} | {per_token[0]:.3f} | {per_token[1]:.2f}"
    return f"| {order} | {length} | {k} | {figures} | {time} | {ratio:.2f} |"


def print_best(ratios: dict[tuple[str, int, int], float]) -> None:
    """Prints the k with the best speed for each order and length."""
    print()
    for order, length in dict.fromkeys((order, length) for order, length, _ in ratios):
        here = {k: ratio for (o, n, k), ratio in ratios.items() if (o, n) == (order, length)}
        best = max(here, key=lambda k: here[k])
        verdict = "does not pay" if best == 1 else f"pays most with k = {best}: {here[best]:.2f} times as fast"
        print(f"{order} order, {length} tokens: {verdict}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--orders", choices=ORDERS, nargs="+", default=[*ORDERS])
    parser.add_argument("--lengths", type=positive, nargs="+", default=[128])
    parser.add_argument(
        "--k",
        type=positive,
        nargs="+",
        default=[1, 2, 4, 8, 16],
        help="numbers of sequences per evaluation; 1 is always measured",
    )
    parser.add_argument("--samples", type=positive, default=16, help="rows for the counts")
    parser.add_argument("--rows", type=positive, default=1, help="rows of a timed call")
    parser.add_argument("--calls", type=positive, default=4, help="calls timed together, with different seeds")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--hidden_size", type=positive, help="width of a network with random weights to time, too")
    parser.add_argument("--layers", type=positive, default=12)
    parser.add_argument("--heads", type=positive, default=12)
    parser.add_argument("--vocab_size", type=positive, default=50258)
    args = parser.parse_args(argv)
    args.k = sorted({1, *args.k})
    if min(args.lengths) < 2:
        parser.error(f"--lengths {min(args.lengths)} must be at least 2")
    if args.k[-1] > MOST_SPECULATION:
        parser.error(f"--k {args.k[-1]} must be at most {MOST_SPECULATION}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.speculation: --device cuda: torch finds no GPU")
    dtype = getattr(torch, args.dtype)
    model = RaddForMaskedLM.from_pretrained(args.model, dtype=dtype).to(args.device)  # type: ignore[arg-type]
    machine = describe_machine(args.device)
    print("; ".join(f"{name} {value}" for name, value in machine.items() if value))
    print(f"{args.dtype}, calls of {args.rows} row(s)\n\n{HEADER.format(time='seconds')}")
    ratios, written = {}, {}
    for order in args.orders:
        for length in args.lengths:
            writer = Writer(model, order, length)
            times = writer.time(args.k, args.rows, args.calls, args.repeats)
            for k, time in times.items():
                cost = written[order, length, k] = writer.write(k, args.samples)
                ratios[order, length, k] = times[1] / time
                print(format_row(order, length, k, cost, f"{time:.3f}", times[1] / time), flush=True)
    print_best(ratios)
    if args.hidden_size is None:
        return

    config = RaddConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=max(args.lengths),
    )
    network = make_model(config, 0, args.device).to(dtype)
    print(f"\n{args.layers} layers of width {args.hidden_size}, random weights")
    print(f"\n{HEADER.format(time='ms an evaluation')}")
    ratios = {}
    for length in args.lengths:
        writer = Writer(network, "random", length)
        times = writer.time(args.k, args.rows, 1, args.repeats)
        one = statistics.median(seconds(partial(writer.fill_one, args.rows)) for _ in range(args.repeats + 2))
        beside = max((one * length - times[1]) / (length - 1), 0)  # seconds of a call without its evaluations
        rounds = {k: writer.write(k, args.rows).evaluations / args.rows for k in args.k}
        each = {k: (times[k] - beside) / rounds[k] for k in args.k}  # seconds of an evaluation
        for order in args.orders:
            texts = {k: written[order, length, k] for k in args.k}
            whole = {k: beside + each[k] * length * cost.evaluations / cost.tokens for k, cost in texts.items()}
            for k, cost in texts.items():
                ratios[order, length, k] = whole[1] / whole[k]
                print(format_row(order, length, k, cost, f"{1e3 * each[k]:.2f}", whole[1] / whole[k]))
    print_best(ratios)


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.speculation")
