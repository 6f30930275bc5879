# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures how fast the library is, compared with the standard algorithm and with the limit of the machine.

    python -m benchmarks [sampling|training|likelihood|loading|memory|preparation ...]
        [--device cuda] [--json F] [--plots DIR]

Without a command it runs all of them. Each line of the table gives one quantity for three sides: the algorithm as the
field publishes it (baseline.py), in float32, or on a GPU in float16; this library in float32; and this library in
bfloat16. `ratio` is the baseline's median divided by the side's. `of the limit` is the rate of the unavoidable
operations, as a fraction of the rate of a large matrix product in the same dtype on the same device (measure.py).
`preparation` prints a separate table of the host's work before a training step. Run nothing else on the machine.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Set before torch is imported. Otherwise its profiler prints to stderr whenever it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from radd_hf.endings import run_program
from radd_hf.figure_style import require_matplotlib, save_figure
from radd_hf.results import check_output, to_json

from .commands import COMMANDS
from .measure import Case, describe_machine, positive, sides_of

# Defaults that depend on the device: a GPU gets more work at once.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "matmul_size": 4096,
        "timed_steps": 32,
        "cached": [(8, 128, 1024)],
        "ordered": [(1, 256)],
        "ordered_top_p": [],
        "ordered_partial": [],
        "infill": [],
        "training": [(4, 256)],
        "training_medium": [],
        "training_tiny": [],
        "training_steps": 1,
        "likelihood": [(4, 256)],
        "compile": False,
        "script_step": False,
    },
    "cuda": {
        "matmul_size": 8192,
        "timed_steps": 64,
        "cached": [(1, 1024, 1024), (8, 1024, 256), (32, 1024, 64)],
        "ordered": [(8, 1024), (32, 1024)],
        "ordered_top_p": [(1, 1024)],
        "ordered_partial": [(8, 1024), (32, 1024)],
        "infill": [(128, 16)],
        "training": [(32, 1024)],
        "training_medium": [(16, 1024)],
        "training_tiny": [(1024, 82)],
        "training_steps": 10,
        "likelihood": [(16, 1024)],
        "compile": True,
        "script_step": True,
    },
}


def header(sides: Sequence[str]) -> str:
    """Returns the header of the table that compares the sides, the baseline first."""
    ours = sides[1:]
    ratios = [f"ratio {side.removeprefix('ours ')}" for side in ours]
    cells = ["case", "unit", *sides, *ratios, "of the limit: baseline", *ours]
    return f"| {' | '.join(cells)} |\n|---|---|" + "---:|" * (len(cells) - 2)


def size(dimensions: int):
    """Returns a parser of arguments such as 8x128x1024."""

    def parse(text: str) -> tuple[int, ...]:
        values = tuple(int(part) for part in text.split("x"))
        if len(values) != dimensions or min(values) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} must be {dimensions} positive numbers, joined by x")
        return values

    return parse


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commands", nargs="*", metavar="command", help=f"one of {', '.join(COMMANDS)}; default: all")
    parser.add_argument("--device", choices=list(DEFAULTS), default="cpu")
    parser.add_argument("--json", type=Path, help="file to write all measurements to")
    parser.add_argument("--plots", type=Path, help="folder to write nfe.png, time.png, memory.png to")
    parser.add_argument("--repeats", type=positive, default=3, help="measurements of every time; the sides take turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timed_steps", type=positive, help="largest number of timed steps of the baseline, or tokens of an order"
    )
    parser.add_argument(
        "--refresh_interval", type=positive, default=16, help="refresh_interval of the approximate sampler"
    )
    parser.add_argument("--matmul_size", type=positive, help="size of the product that gives the device's rate")

    model = parser.add_argument_group("model, by default the paper's small one")
    model.add_argument("--vocab_size", type=positive, default=50258, help="V, including the mask")
    model.add_argument("--hidden_size", type=positive, default=768)
    model.add_argument("--layers", type=positive, default=12)
    model.add_argument("--heads", type=positive, default=12)

    sizes = parser.add_argument_group("sizes: rows x length x steps")
    sizes.add_argument("--evaluation", type=size(3), nargs="*", default=[(1, 256, 64), (1, 1024, 64)])
    sizes.add_argument("--cached", type=size(3), nargs="*")
    sizes.add_argument("--partial", type=size(3), nargs="*", default=[(1, 1024, 1024)], help="with refresh_interval")
    sizes.add_argument("--ordered", type=size(2), nargs="*", help="rows x length, like the next two")
    sizes.add_argument("--ordered_top_p", type=size(2), nargs="*", help="with top-p 0.8")
    sizes.add_argument("--ordered_partial", type=size(2), nargs="*", help="with refresh_interval")
    sizes.add_argument("--infill", type=size(2), nargs="*", help="length x masks, for the shipped checkpoint")
    sizes.add_argument("--nfe_steps", type=positive, nargs="+", default=[2**power for power in range(3, 13)])
    sizes.add_argument("--sweep_batches", type=positive, nargs="+", default=[1, 2, 4, 8])
    sizes.add_argument("--sweep_length", type=positive, default=128, help="length of these batches")
    sizes.add_argument(
        "--sweep_lengths", type=positive, nargs="+", default=[64, 128, 256, 512, 1024], help="lengths of one row"
    )
    sizes.add_argument("--sweep_steps", type=positive, default=64)
    sizes.add_argument("--training", type=size(2), nargs="*", help="rows x length, like the next three")
    sizes.add_argument("--training_medium", type=size(2), nargs="*", help="for the paper's medium model")
    sizes.add_argument("--training_tiny", type=size(2), nargs="*", help="for a model of 6.3 million parameters")
    sizes.add_argument("--likelihood", type=size(2), nargs="*")
    sizes.add_argument("--loading", type=positive, default=256, help="length of the first forward pass")
    sizes.add_argument("--memory", type=size(3), default=(4, 256, 64))
    sizes.add_argument("--vocabularies", type=positive, nargs="+", default=[1024, 4096, 16384, 50258])
    sizes.add_argument(
        "--preparation",
        type=size(3),
        nargs="*",
        default=[(512, 1024, 350_000), (1024, 82, 2_000_000)],
        help="rows x length x tokens trained on per second",
    )
    sizes.add_argument("--preparation_repeats", type=positive, default=7, help="measurements for each loss")

    training = parser.add_argument_group("training; default on a GPU: like train_accelerate.py")
    training.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compile our network and its loss")
    training.add_argument("--compile_backend", help="backend of torch.compile; default: inductor")
    training.add_argument(
        "--script_step",
        action=argparse.BooleanOptionalAction,
        help="let ours prepare batches ahead and average weights",
    )
    training.add_argument("--training_steps", type=positive, help="training steps timed together")
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for command in args.commands:
        if command not in COMMANDS:
            parser.error(f"{command!r} must be one of {', '.join(COMMANDS)}")
    if args.compile_backend is not None and not args.compile:
        parser.error(f"--compile_backend {args.compile_backend}: nothing is compiled; pass --compile, too")
    args.compile_backend = args.compile_backend or "inductor"
    args.commands = args.commands or list(COMMANDS)
    return args


def format_row(case: Case) -> str:
    def fraction(side: str) -> str:
        value = case.fraction(side)
        return "" if value is None else f"{value:.0%}"

    sides = list(case.values)
    cells = [case.name, case.unit]
    cells += [f"{case.median(side):.4g}" for side in sides]
    cells += [f"{case.ratio(side):.2f}" for side in sides[1:]]
    cells += [fraction(side) for side in sides]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks: --device cuda: torch finds no GPU")
    check_output("json", args.json)
    if args.plots is not None:
        require_matplotlib("plots", args.plots)
    machine = describe_machine(args.device)
    print("; ".join(f"{name} {value}" for name, value in machine.items() if value), flush=True)
    print(f"medians of {args.repeats} repeats, the sides taking turns; random weights, random tokens\n")
    cases: list[Case] = []
    tables: list[list[str]] = []
    points: dict[str, list[dict[str, Any]]] = {}
    for command in args.commands:
        result = COMMANDS[command](args)
        if result.cases and not cases:
            print(header(sides_of(args.device)))
        for case in result.cases:
            print(format_row(case), flush=True)
        cases += result.cases
        points |= result.points
        tables += [result.lines] if result.lines else []
    for table in tables:
        print("\n".join(["", *table] if cases else table))
    print()
    for case in cases:
        print(f"* {case.name}: {'; '.join(f'{name}: {value}' for name, value in case.facts.items())}")
    rates = {side: rate for case in cases for side, rate in case.rates.items()}
    for side, rate in rates.items():
        print(f"* matrix product of {args.matmul_size}, {side}: {sorted(rate)[len(rate) // 2] / 1e9:.1f} GFLOP/s")

    if args.json is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        report = {"machine": machine, "settings": settings, "cases": [case.as_dict() for case in cases], **points}
        args.json.write_text(to_json(report, indent=1) + "\n", encoding="utf-8")
    if args.plots is not None:
        from .plots import SPEED_FIGURES  # matplotlib is not among the requirements

        args.plots.mkdir(parents=True, exist_ok=True)
        for name in SPEED_FIGURES.keys() & points.keys():
            save_figure(partial(SPEED_FIGURES[name], points[name]), args.plots / f"{name}.png")


if __name__ == "__main__":
    run_program(main, "python -m benchmarks")
