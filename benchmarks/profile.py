# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the cost of drawing tokens together in groups, on the novel held out of training.

    python -m benchmarks.profile [--texts N]

For each text, in random orders, it measures the nats of the tokens drawn in groups, minus their nats drawn one by one.
The mean is the divergence from the distribution of texts that the groups add. Two things reduce the error without
changing the mean. First, a group is a uniform choice among the masked tokens, so its nats are taken as its size times
the mean over all masked tokens. Second, the orders of a text are rotations of one order, so each token is masked
equally often. The best groups are those of the profile saved with the checkpoint, which was estimated on other texts of
the novel. The script prints the table of docs/generation.md.
"""

import argparse

import torch
from torch import Tensor

from radd_hf.data.blocks import Blocks
from radd_hf.data.documents import load_documents, tokenize
from radd_hf.endings import run_program
from radd_hf.evaluation.profile import COLUMNS, divergences
from radd_hf.hub.loading import load
from radd_hf.kernels_radd import evaluation_mode, packed_weights
from radd_hf.likelihood import mean_and_error, nats_of_tokens
from radd_hf.noise_radd import get_noise
from radd_hf.plan_radd import group_sizes
from radd_hf.ranges import check_count

from .commands import spread
from .estimators import CHECKPOINT

LENGTH, TEXTS, ROTATIONS, EVENTS, BATCH = 128, 64, 4, (8, 16, 32), 64
ESTIMATED_ON = 256  # blocks that `radd profile` uses by default
DIFFERENCE = "balanced less profile"


def read_texts(tokenizer, count: int) -> list[Tensor]:
    """Returns `count` blocks, spread over the part of the novel that the saved profile was not estimated on."""
    blocks = Blocks(tokenize(load_documents("austen", "validation"), tokenizer), LENGTH)
    taken = {index * len(blocks) // ESTIMATED_ON for index in range(ESTIMATED_ON)}
    others = [index for index in range(len(blocks)) if index not in taken]
    return [blocks[others[place]] for place in spread(count, len(others))]


def curve_of(model, text: Tensor, generator: torch.Generator) -> list[float]:
    """Computes the mean nats of the masked tokens of a text (L,), with 0 .. L - 1 tokens in random order visible."""
    order = torch.randperm(LENGTH, generator=generator)
    curve = torch.zeros(LENGTH, dtype=torch.float64)
    for rotation in range(ROTATIONS):
        place = order.roll(rotation * LENGTH // ROTATIONS).argsort()  # (L,) the event that reveals each token
        masked = place >= torch.arange(LENGTH)[:, None]  # (L, L), a row for each number of visible tokens
        nats = torch.cat(list(nats_of_tokens(model, text.expand(LENGTH, -1), masked, masked, BATCH)))  # (L, L)
        curve += nats.sum(dim=1) / masked.sum(dim=1) / ROTATIONS
    return curve.tolist()


def measure(count: int) -> dict:
    model, tokenizer = load(str(CHECKPOINT), device=None)
    texts, noise = read_texts(tokenizer, count), get_noise(model.config)
    saved = getattr(model.generation_config, "information_profile", None)
    if saved is None:
        raise ValueError(f"{CHECKPOINT} has no information_profile: run radd profile {CHECKPOINT}.")
    generator = torch.Generator().manual_seed(0)
    with packed_weights(), evaluation_mode(model):
        curves = [curve_of(model, text, generator) for text in texts]
    rows = []
    for events in EVENTS:
        of_texts = [divergences(curve, saved, events, noise) for curve in curves]
        nats = {name: torch.tensor([each[name] for each in of_texts], dtype=torch.float64) for name in COLUMNS}
        nats[DIFFERENCE] = nats["balanced"] - nats["profile"]
        predicted = divergences(saved, saved, events, noise)
        figures = {name: mean_and_error(values) for name, values in nats.items()}
        rows.append({"events": events, "sizes": group_sizes(saved, LENGTH, events), "predicted": predicted} | figures)
    return {"texts": len(texts), "length": LENGTH, "rows": rows}


def table(result: dict) -> str:
    columns = (*COLUMNS, DIFFERENCE)
    lines = [f"| evaluations | {' | '.join(columns)} | profile, predicted |", "|---:|" + "---:|" * (len(columns) + 1)]
    for row in result["rows"]:
        cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in (row[column] for column in columns)]
        lines.append(f"| {row['events']} | {' | '.join(cells)} | {row['predicted']['profile']:.2f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Measures the cost of drawing tokens together in groups.")
    parser.add_argument("--texts", type=int, default=TEXTS, help=f"texts to measure (default {TEXTS})")
    result = measure(check_count("--texts", parser.parse_args(argv).texts, least=2))
    print(f"{result['texts']} texts of {LENGTH} tokens; nats per text above one token per evaluation\n")
    print(table(result))
    for row in result["rows"]:
        print(f"\n{row['events']} groups of the profile: {row['sizes']}", end="")
    print()


if __name__ == "__main__":
    run_program(main, "python -m benchmarks.profile")
