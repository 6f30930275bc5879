# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures what drawing tokens together costs, by the sizes of the groups, on the novel held out of training.

    python -m benchmarks.profile

For each text and one random order of its tokens: the nats of its tokens when they are drawn in groups, less those when
they are drawn one by one. The mean is the divergence from the text's distribution that the groups add. A group is a
uniform choice of the masked tokens, so that its nats are taken as its size times the mean over all masked ones: the
same in expectation, with less noise. The best groups are those of the profile that is saved with the checkpoint, which
is of other texts of the novel. The script prints the table of docs/generation.md and writes
docs/figures/information_profile.json.
"""

import json

import torch
from torch import Tensor

from radd_hf.data.blocks import Blocks
from radd_hf.data.documents import load_documents, tokenize
from radd_hf.endings import run_program
from radd_hf.evaluation.profile import COLUMNS, divergences
from radd_hf.hub.loading import load_model, load_tokenizer
from radd_hf.kernels_radd import evaluation_mode, packed_weights
from radd_hf.likelihood import mean_and_error, nats_of_tokens
from radd_hf.noise_radd import get_noise
from radd_hf.plan_radd import group_sizes

from .commands import ROOT, spread
from .estimators import CHECKPOINT

RESULT = ROOT / "docs" / "figures" / "information_profile.json"
LENGTH, TEXTS, EVENTS, BATCH = 128, 128, (8, 16, 32), 64
ESTIMATED_ON = 256  # blocks that `radd profile` takes by default
DIFFERENCE = "balanced less profile"


def read_texts(tokenizer) -> list[Tensor]:
    """TEXTS blocks, spread over those of the novel that the saved profile is not of."""
    blocks = Blocks(tokenize(load_documents("austen", "validation"), tokenizer), LENGTH)
    taken = {index * len(blocks) // ESTIMATED_ON for index in range(ESTIMATED_ON)}
    others = [index for index in range(len(blocks)) if index not in taken]
    return [blocks[others[place]] for place in spread(TEXTS, len(others))]


def curve_of(model, text: Tensor, generator: torch.Generator) -> list[float]:
    """Mean nats of the masked tokens of a text (L,), when 0, 1, ... L - 1 tokens of a random order are visible."""
    place = torch.randperm(LENGTH, generator=generator).argsort()
    masked = place >= torch.arange(LENGTH)[:, None]  # (L, L) a row for each number of visible tokens
    nats = torch.cat(list(nats_of_tokens(model, text.expand(LENGTH, -1), masked, masked, BATCH)))  # (L, L)
    return (nats.sum(dim=1) / masked.sum(dim=1)).tolist()


def measure() -> dict:
    model, texts = load_model(str(CHECKPOINT)), read_texts(load_tokenizer(str(CHECKPOINT)))
    saved, noise = model.generation_config.information_profile, get_noise(model.config)
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
    return {"texts": TEXTS, "length": LENGTH, "rows": rows}


def table(result: dict) -> str:
    columns = (*COLUMNS, DIFFERENCE)
    lines = [f"| evaluations | {' | '.join(columns)} | profile, predicted |", "|---:|" + "---:|" * (len(columns) + 1)]
    for row in result["rows"]:
        cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in (row[column] for column in columns)]
        lines.append(f"| {row['events']} | {' | '.join(cells)} | {row['predicted']['profile']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    result = measure()
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{TEXTS} texts of {LENGTH} tokens; nats a text more than one token an evaluation\n")
    print(table(result))
    for row in result["rows"]:
        print(f"\n{row['events']} groups of the profile: {row['sizes']}", end="")
    print()


if __name__ == "__main__":
    run_program(lambda _: main(), "python -m benchmarks.profile")
