# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures how much the text around a blank helps, and which order fills it best, on the novel held out of training.

    python -m benchmarks.conditioning

It computes the exact likelihood of the author's words in the blank, in each order, given one side, both or none. The
last column fills the blank all at once, like a sampler with one step. The script prints the table of
docs/generation.md, and writes docs/figures/conditioning.json.
"""

import json

import torch
from torch import Tensor

from radd_hf.data.blocks import Blocks
from radd_hf.data.documents import load_documents, tokenize
from radd_hf.endings import run_program
from radd_hf.hub.loading import load_model, load_tokenizer
from radd_hf.likelihood import conditional_likelihood, mean_and_error

from .commands import ROOT, spread
from .estimators import CHECKPOINT

RESULT = ROOT / "docs" / "figures" / "conditioning.json"
BEFORE, BLANK, AFTER = 56, 16, 56  # tokens
PASSAGES = 64
GIVEN = {"nothing": (False, False), "prefix": (True, False), "suffix": (False, True), "both": (True, True)}
ORDERS = ("forward", "backward", "random")
COLUMNS = (*ORDERS, "all at once")


def read_passages(tokenizer) -> list[Tensor]:
    """Returns PASSAGES texts of BEFORE + BLANK + AFTER tokens, spread evenly over the novel."""
    blocks = Blocks(tokenize(load_documents("austen", "validation"), tokenizer), BEFORE + BLANK + AFTER)
    return [blocks[place] for place in spread(PASSAGES, len(blocks))]


@torch.no_grad()
def all_at_once(model, targets: list[Tensor], prefixes: list[Tensor], suffixes: list[Tensor]) -> Tensor:
    """Computes the nats (S,) of the targets if no token of a target sees another."""
    text = torch.stack([torch.cat(parts) for parts in zip(prefixes, targets, suffixes, strict=True)])  # (S, L)
    blank = torch.zeros_like(text, dtype=torch.bool)
    blank[:, len(prefixes[0]) : len(prefixes[0]) + BLANK] = True
    masked = text.masked_fill(blank, model.config.mask_token_id)
    return model.eval()(input_ids=masked, labels=text.masked_fill(~blank, -100)).sequence_nll.double()


def measure() -> dict:
    model, passages = load_model(str(CHECKPOINT)), read_passages(load_tokenizer(str(CHECKPOINT)))
    parts = [passage.split([BEFORE, BLANK, AFTER]) for passage in passages]
    prefixes, targets, suffixes = (list(sides) for sides in zip(*parts, strict=True))
    nothing = [targets[0][:0]] * PASSAGES
    per_token = {}
    for given, (before, after) in GIVEN.items():
        sides = (prefixes if before else nothing, suffixes if after else nothing)
        nats = {
            order: conditional_likelihood(model, targets, prefixes=sides[0], suffixes=sides[1], order=order)
            for order in ORDERS
        }
        nats["all at once"] = all_at_once(model, targets, *sides)
        per_token[given] = {column: values / BLANK for column, values in nats.items()}  # (S,) each
    prefix, both = per_token["prefix"], per_token["both"]
    per_token["prefix, less both"] = {column: prefix[column] - both[column] for column in COLUMNS}
    rows = [{"given": given} | {c: mean_and_error(row[c]) for c in COLUMNS} for given, row in per_token.items()]
    return {"passages": PASSAGES, "before": BEFORE, "gap": BLANK, "after": AFTER, "rows": rows}


def table(result: dict) -> str:
    lines = [f"| given | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    for row in result["rows"]:
        cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in (row[column] for column in COLUMNS)]
        lines.append(f"| {row['given']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    result = measure()
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{PASSAGES} blanks of {BLANK} tokens between {BEFORE} and {AFTER}; nats per token of what the author wrote\n"
    )
    print(table(result))


if __name__ == "__main__":
    run_program(lambda _: main(), "python -m benchmarks.conditioning")
