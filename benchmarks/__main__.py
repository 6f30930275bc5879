# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""How fast it is, beside the standard algorithm and beside what the machine can do.

    python -m benchmarks [sampling|training|likelihood|loading|memory ...] [--json F] [--plots DIR]

Without a command, all of them. Every line of the table is one quantity of three sides: the algorithm as the field
publishes it (baseline.py) in float32, this library in float32 and in bfloat16. `ratio` is the baseline's median over
the side's; `of the limit` is the operations that cannot be avoided, over the median, as a fraction of the rate of a
large matrix product in the same dtype (measure.py). Run it where nothing else runs.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

# Before torch is imported: its profiler otherwise tells stderr whenever it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from .commands import COMMANDS
from .measure import BASELINE, OURS, OURS_BF16, Case, describe_machine

HEADER = (
    "| case | unit | baseline fp32 | ours fp32 | ours bf16 | ratio fp32 | ratio bf16 "
    "| of the limit: baseline | ours fp32 | ours bf16 |\n|---|---|" + "---:|" * 8
)


def size(dimensions: int):
    """The type of an argument such as 8x128x1024."""

    def parse(text: str) -> tuple[int, ...]:
        values = tuple(int(part) for part in text.split("x"))
        if len(values) != dimensions or min(values) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} must be {dimensions} positive numbers, joined by x")
        return values

    return parse


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commands", nargs="*", metavar="command", help=f"of {', '.join(COMMANDS)}; all by default")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    parser.add_argument("--plots", type=Path, help="folder for nfe.png, time.png and memory.png")
    parser.add_argument("--repeats", type=int, default=3, help="of every time, the sides taking turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timed_steps", type=int, default=32, help="most steps of the baseline, tokens of an order, that are timed"
    )
    parser.add_argument("--refresh_interval", type=int, default=16, help="of the approximate sampler")
    parser.add_argument("--matmul_size", type=int, default=4096, help="of the product that gives the machine's rate")

    model = parser.add_argument_group("model, by default the paper's small one")
    model.add_argument("--vocab_size", type=int, default=50258, help="V, with the mask")
    model.add_argument("--hidden_size", type=int, default=768)
    model.add_argument("--layers", type=int, default=12)
    model.add_argument("--heads", type=int, default=12)

    sizes = parser.add_argument_group("sizes: rows x length x steps")
    sizes.add_argument("--evaluation", type=size(3), nargs="*", default=[(1, 256, 64), (1, 1024, 64)])
    sizes.add_argument("--cached", type=size(3), nargs="*", default=[(8, 128, 1024)])
    sizes.add_argument("--partial", type=size(3), nargs="*", default=[(1, 1024, 1024)], help="by refresh_interval")
    sizes.add_argument("--ordered", type=int, default=256, help="length")
    sizes.add_argument("--nfe_steps", type=int, nargs="+", default=[2**power for power in range(3, 13)])
    sizes.add_argument("--sweep_batches", type=int, nargs="+", default=[1, 2, 4, 8])
    sizes.add_argument("--sweep_length", type=int, default=128, help="length for these batches")
    sizes.add_argument("--sweep_lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="of one row")
    sizes.add_argument("--sweep_steps", type=int, default=64)
    sizes.add_argument("--training", type=size(2), nargs="*", default=[(4, 256)])
    sizes.add_argument("--likelihood", type=size(2), nargs="*", default=[(4, 256)])
    sizes.add_argument("--loading", type=int, default=256, help="length of the first forward")
    sizes.add_argument("--memory", type=size(3), default=(4, 256, 64))
    sizes.add_argument("--vocabularies", type=int, nargs="+", default=[1024, 4096, 16384, 50258])
    args = parser.parse_args(argv)
    for command in args.commands:
        if command not in COMMANDS:
            parser.error(f"{command!r} must be one of {', '.join(COMMANDS)}")
    args.commands = args.commands or list(COMMANDS)
    return args


def format_row(case: Case) -> str:
    def fraction(side: str) -> str:
        value = case.fraction(side)
        return "" if value is None else f"{value:.0%}"

    cells = [case.name, case.unit]
    cells += [f"{case.median(side):.4g}" for side in (BASELINE, OURS, OURS_BF16)]
    cells += [f"{case.ratio(side):.2f}" for side in (OURS, OURS_BF16)]
    cells += [fraction(side) for side in (BASELINE, OURS, OURS_BF16)]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    machine = describe_machine()
    print("; ".join(f"{name} {value}" for name, value in machine.items() if value), flush=True)
    print(f"medians of {args.repeats} repeats, the sides taking turns; random weights, random tokens\n\n{HEADER}")
    cases: list[Case] = []
    points: dict[str, list[dict[str, Any]]] = {}
    for command in args.commands:
        result = COMMANDS[command](args)
        for case in result.cases:
            print(format_row(case), flush=True)
        cases += result.cases
        points |= result.points
    print()
    for case in cases:
        print(f"* {case.name}: {'; '.join(f'{name}: {value}' for name, value in case.facts.items())}")
    rates = {side: rate for case in cases for side, rate in case.rates.items()}
    for side, rate in rates.items():
        print(f"* matrix product of {args.matmul_size}, {side}: {sorted(rate)[len(rate) // 2] / 1e9:.1f} GFLOP/s")

    if args.json is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        report = {"machine": machine, "settings": settings, "cases": [case.as_dict() for case in cases], **points}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plots is not None:
        from .plots import PLOTS  # matplotlib is not among the requirements

        args.plots.mkdir(parents=True, exist_ok=True)
        for name, chosen in points.items():
            PLOTS[name](chosen, args.plots / f"{name}.png")


if __name__ == "__main__":
    main()
