# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the quality and speed of partial caching, `generate(..., refresh_interval=m, refresh_window=w)`.

    python -m benchmarks.partial_caching [--method first_hitting] [--json F] [--plot F]

Every setting fills the same fully masked rows of the shipped checkpoint with the same random numbers. So differences
to the exact sampler are paired. Three figures show what the approximation costs in quality, in nats per token:

    KL        E[log q(x) - log p(x)] over samples x of the approximate distribution q; p is the exact distribution in
              the order in which x was filled. It has the smallest error of the three.
    NLL       any-order negative log-likelihood of the samples under the exact model
    entropy   entropy of the tokens within a sample

The cost of a setting is the number of positions that it computes, in evaluations of the whole text.

Shapes: R rows, L length.
"""

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radd_hf import RaddForMaskedLM
from radd_hf.endings import run_program
from radd_hf.evaluation.quality import token_entropy
from radd_hf.figure_style import check_figure, save_figure
from radd_hf.likelihood import ROUNDS, LikelihoodRounds, exact_likelihood, mean_and_error
from radd_hf.plan_radd import Schedule
from radd_hf.results import check_output, to_json

from .estimators import CHECKPOINT
from .measure import EXACT, describe_machine, positive

SETTINGS = [(1, 0), (16, 0), (16, 1), (16, 2), (16, 4), (8, 4), (32, 4), (64, 4), (32, 8)]
HEADER = (
    "| refresh_interval | refresh_window | cost | seconds | times as fast | KL | of the NLL | any-order NLL "
    "| above exact | entropy |\n|---:|---:|---:|---:|---:|---|---:|---|---|---:|"
)


@dataclass
class Outcome:
    """The outcome of one setting. `_error`: standard error over rows. NLL, KL: nats per token. Entropy: nats."""

    interval: int
    window: int
    cost: float
    seconds: float
    kl: float
    kl_error: float
    nll: float
    nll_error: float
    nll_above: float
    nll_above_error: float
    entropy: float


class Sampler:
    """A model and a method that always sample with the same random numbers."""

    def __init__(self, model, method: str, rows: int, seed: int):
        self.model, self.method, self.rows, self.seed = model, method, rows, seed

    def sample(self, interval: int, window: int):
        return self.model.generate(
            num_return_sequences=self.rows,
            generation_config=EXACT,
            method=self.method,
            refresh_interval=interval,
            refresh_window=window,
            generator=[torch.Generator().manual_seed(self.seed + row) for row in range(self.rows)],
            return_dict_in_generate=True,
        )


def cost_of(reveal_step: Tensor, interval: int, window: int) -> float:
    """Positions computed, over the length: mean over rows (R, L)."""
    length = reveal_step.shape[1]
    shapes = Schedule(reveal_step, None, interval, window).shapes
    return sum(shape.rows * (shape.recomputed or length) for shape in shapes) / length / len(reveal_step)


def nll_in_own_order(model, sequences: Tensor, reveal_step: Tensor) -> Tensor:
    """Computes the nats (R,) of sequences under the exact model, in the order in which their tokens were revealed."""
    orders = reveal_step.argsort(dim=1)
    rows = [exact_likelihood(model, [x], order, batch_size=64) for x, order in zip(sequences, orders, strict=True)]
    return torch.cat(rows)


def measure(sampler: Sampler, scored_rows: int, passes: int, repeats: int) -> list[Outcome]:
    model, length = sampler.model, sampler.model.config.max_position_embeddings
    times: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    outputs = {}  # every repeat gives the same
    for _ in range(repeats):  # the settings take turns
        for setting in SETTINGS:
            start = time.perf_counter()
            outputs[setting] = sampler.sample(*setting)
            times[setting].append(time.perf_counter() - start)
    outcomes: list[Outcome] = []
    exact: Tensor | None = None
    for interval, window in SETTINGS:
        output = outputs[interval, window]
        part = slice(0, scored_rows)
        exact_nll = nll_in_own_order(model, output.sequences[part], output.reveal_step[part])
        kl = (output.token_logprobs[part].double().sum(dim=1) + exact_nll) / length  # (scored rows,)
        nats = torch.zeros(sampler.rows, dtype=torch.float64)

        for found in LikelihoodRounds(model, list(output.sequences), passes=passes, batch_size=64, seed=1):
            nats[found.sequence] += found.nats / length / ROUNDS
        exact = nats if exact is None else exact
        seconds = statistics.median(times[interval, window])
        nll, above = mean_and_error(nats), mean_and_error(nats - exact)
        cost = cost_of(output.reveal_step, interval, window)
        figures = (cost, seconds, *mean_and_error(kl), *nll, *above, token_entropy(output.sequences))
        outcomes.append(Outcome(interval, window, *figures))
        print(format_row(outcomes[-1], outcomes[0]), flush=True)
    return outcomes


def format_row(outcome: Outcome, exact: Outcome) -> str:
    cells = [
        f"{outcome.interval}",
        f"{outcome.window}" if outcome.interval > 1 else "",
        f"{outcome.cost:.1f}",
        f"{outcome.seconds:.2f}",
        f"{exact.seconds / outcome.seconds:.1f}",
        f"{outcome.kl:z.4f} ± {outcome.kl_error:.4f}",
        f"{outcome.kl / exact.nll:z.2%}",
        f"{outcome.nll:.3f} ± {outcome.nll_error:.3f}",
        f"{outcome.nll_above:+z.3f} ± {outcome.nll_above_error:.3f}",
        f"{outcome.entropy:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument(
        "--method",
        default="first_hitting",
        choices=["first_hitting", "ordered"],
        help="method, which reveals one token per evaluation",
    )
    parser.add_argument("--rows", type=positive, default=96)
    parser.add_argument(
        "--scored_rows", type=positive, default=32, help="rows to compute the KL of, at L evaluations each"
    )
    parser.add_argument("--passes", type=positive, default=16, help="passes of the any-order NLL")
    parser.add_argument("--repeats", type=positive, default=3, help="measurements of every time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="image file to write; also NAME-dark, for dark pages")
    args = parser.parse_args(argv)
    check_output("json", args.json)
    check_figure("plot", args.plot)
    model = RaddForMaskedLM.from_pretrained(args.model, dtype=torch.float32)
    machine = describe_machine()
    print("; ".join(f"{name} {value}" for name, value in machine.items() if value))
    print(f"{args.method}, {args.rows} rows of {model.config.max_position_embeddings} tokens, float32\n\n{HEADER}")
    outcomes = measure(Sampler(model, args.method, args.rows, args.seed), args.scored_rows, args.passes, args.repeats)
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "plot")}
    settings["model"] = Path(args.model).name  # its folder means nothing elsewhere
    report: dict[str, Any] = {
        "machine": machine,
        "settings": settings,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    if args.json is not None:
        args.json.write_text(to_json(report, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        from .plots import partial_caching_figure  # matplotlib is not among the requirements

        save_figure(partial(partial_caching_figure, report["outcomes"]), args.plot)


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.partial_caching")
