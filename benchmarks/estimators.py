# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares the estimators of the likelihood, on the shipped checkpoint and a held-out novel.

    python -m benchmarks.estimators agreement     prints all estimators and exact random orders, with their intervals
    python -m benchmarks.estimators efficiency    prints the mean squared error of each, with equally many passes

Blocks are spread evenly over the novel. Shapes: S blocks, L length, P passes.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from radd_hf import RaddForMaskedLM
from radd_hf import likelihood as estimators
from radd_hf.data.benchmark_texts import load_evaluation_text
from radd_hf.endings import run_program
from radd_hf.likelihood import Likelihood, LikelihoodRounds, estimate_likelihood, mixture
from radd_hf.losses import FIRST_TIME, masks_at
from radd_hf.noise_radd import get_noise
from radd_hf.randomness_radd import stream_seed

from .commands import spread
from .measure import positive

GROUP = 4  # number of blocks that the authors' code scores together

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "radd-austen"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    agreement = commands.add_parser("agreement")
    agreement.add_argument("--blocks", type=positive, default=16)
    agreement.add_argument("--passes", type=positive, default=64, help="passes of the estimators")
    agreement.add_argument(
        "--orders", type=positive, default=4, help="random orders; each takes L evaluations of a row"
    )
    efficiency = commands.add_parser("efficiency")
    efficiency.add_argument("--blocks", type=positive, default=16)
    efficiency.add_argument("--passes", type=positive, default=16)
    efficiency.add_argument("--reference", type=positive, default=512, help="passes of the long run")
    efficiency.add_argument("--repeats", type=positive, default=64)
    args = parser.parse_args(argv)

    model = RaddForMaskedLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    length = model.config.max_position_embeddings
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    whole = load_evaluation_text("austen", tokenizer, length=length).blocks
    blocks = [whole[place] for place in spread(args.blocks, len(whole) - 1)]
    print(f"{len(blocks)} blocks of {length} tokens, spread evenly over Persuasion; nats per token\n")
    if args.command == "agreement":
        print_agreement(model, blocks, args.passes, args.orders)
    else:
        print_efficiency(model, blocks, args.passes, args.reference, args.repeats)


def print_agreement(model, blocks: list[Tensor], passes: int, orders: int) -> None:
    print("| estimator | passes | nats per token | standard error | 95 % interval |\n|---|---:|---:|---:|---|")
    for name in ("k_stratified", "k_DCE", "lambda_DCE", "t_DCE", "t_DSE"):
        show(name, estimate_likelihood(model, blocks, estimator=name, passes=passes, batch_size=64))
    nats = torch.zeros(len(blocks), orders, dtype=torch.float64)
    rounds = LikelihoodRounds(model, blocks, estimator="ar_random", passes=orders, batch_size=64)
    for found in rounds:
        nats[found.sequence, found.number] = found.nats
    show("ar_random", rounds.summary())
    for name in ("ar_forward", "ar_backward"):
        show(name, estimate_likelihood(model, blocks, estimator=name, batch_size=64))
    mean = float(mixture(nats).sum()) / sum(map(len, blocks))
    print(f"\nA mixture of the {orders} random orders of ar_random needs {mean:.4f}. The t losses estimate")
    print(f"1 / (1 - {FIRST_TIME}) times the integral from t = {FIRST_TIME} on, about 0.1 % off the others.")


def show(name: str, result: Likelihood) -> None:
    low, high = result.interval
    error = f"{result.standard_error:.4f}" if result.standard_error else "exact"
    interval = f"{low:.4f} .. {high:.4f}" if result.standard_error else ""
    print(f"| {name} | {result.passes} | {result.nats_per_token:.4f} | {error} | {interval} |", flush=True)


def print_efficiency(model, blocks: list[Tensor], passes: int, reference: int, repeats: int) -> None:
    """Prints the mean squared error of the mean over four blocks, averaged over all such groups and the seeds."""
    truth, variance = nats_of_blocks(model, blocks, "k_stratified", reference, seed=-1)
    print(f"{reference} passes: {truth.mean():.5f}; below {passes} passes, {repeats} seeds. Squared errors are")
    print(f"of the mean over {GROUP} blocks, less that of the long run, {variance:.1e}.\n")
    print("| estimator | mean squared error | of k_stratified |\n|---|---:|---:|")

    def ours(name: str):
        return lambda seed: nats_of_blocks(model, blocks, name, passes, seed)[0]

    ways = {
        "k_stratified": ours("k_stratified"),
        "without control variate": with_settings(ours("k_stratified"), CONTROL=0.0),
        "and strata of one width": with_settings(ours("k_stratified"), CONTROL=0.0, STRATA_EXPONENT=1.0),
        "k_DCE": ours("k_DCE"),
        "lambda_DCE": ours("lambda_DCE"),
        "lambda stratified over 4 fixed rows": lambda seed: authors_estimate(model, blocks, passes, seed),
    }
    first = None
    for name, estimate in ways.items():
        errors = torch.cat([mean_of_groups(estimate(seed) - truth) for seed in range(repeats)])
        squared = float(errors.square().mean()) - variance
        first = first or squared
        print(f"| {name} | {squared:.1e} | {squared / first:.1f} |", flush=True)


def mean_of_groups(nats: Tensor) -> Tensor:
    return torch.stack([group.mean() for group in nats.split(GROUP)])


def nats_of_blocks(model, blocks: list[Tensor], estimator: str, passes: int, seed: int) -> tuple[Tensor, float]:
    """Returns the nats per token (S,) of each block, and the variance of a group's mean, from the spread of rounds."""
    rounds: list[list[float]] = [[] for _ in blocks]
    for found in LikelihoodRounds(model, blocks, estimator=estimator, passes=passes, batch_size=64, seed=seed):
        rounds[found.sequence].append(found.nats / len(blocks[found.sequence]))
    nats = torch.tensor(rounds, dtype=torch.float64)  # (S, rounds)
    return nats.mean(dim=1), float((nats.var(dim=1) / nats.shape[1]).mean()) / GROUP


def with_settings(estimate, **settings):
    def changed(seed: int) -> Tensor:
        before = {name: getattr(estimators, name) for name in settings}
        try:
            for name, value in settings.items():
                setattr(estimators, name, value)
            return estimate(seed)
        finally:
            for name, value in before.items():
                setattr(estimators, name, value)

    return changed


@torch.no_grad()
def authors_estimate(model, blocks: list[Tensor], passes: int, seed: int) -> Tensor:
    """Estimates like the authors' code (github ML-GSAI/RADD): of four rows, row i has lambda in the i-th quarter."""
    noise = get_noise(model.config)
    generator = torch.Generator().manual_seed(stream_seed(seed, "authors"))
    nats = []
    for start in range(0, len(blocks), GROUP):
        x0 = torch.stack(blocks[start : start + GROUP])  # (4, L)
        total = torch.zeros(len(x0), dtype=torch.float64)
        for _ in range(passes):
            lam = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator, dtype=torch.float64)) / len(x0)
            uniform = torch.rand(x0.shape, generator=generator, dtype=torch.float64)
            inputs = masks_at("lambda_DCE", 1 - lam, uniform, noise).apply(x0, model.config.mask_token_id)
            weights = inputs.pop("loss_weights")
            total += (weights * model(**inputs).sequence_nll).double() / passes
        nats.append(total / x0.shape[1])
    return torch.cat(nats)


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.estimators")
