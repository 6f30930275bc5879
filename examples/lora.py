# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes the shipped checkpoint with low-rank adapters (PEFT), and scores unseen text before and after.

    pip install 'radd_hf[peft]'
    python examples/lora.py --output_dir runs/lora
    python examples/lora.py --output_dir runs/lora --text my.txt

The default text is Persuasion, the one novel of Jane Austen that the checkpoint has not read. Training uses its first
three quarters, and scoring uses passages of the last quarter. It takes a minute or two on two cores. The output folder
holds the adapters. `merged/` in it holds the model with the adapters added, which needs no PEFT.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from radd_hf import RaddConfig
from radd_hf.data.blocks import Blocks
from radd_hf.data.collator import DiffusionCollator
from radd_hf.data.documents import load_documents, tokenize
from radd_hf.hub.loading import load_model, load_tokenizer
from radd_hf.likelihood import ROUNDS, LikelihoodRounds, mean_and_error
from radd_hf.training.adapters import add_adapters, merged

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "radd-austen"


def nats_by_passage(model: nn.Module, passages: Sequence[Tensor]) -> Tensor:
    """Estimates the nats per token (S,) of each passage. Every call uses the same masks, to compare models."""
    nats = torch.zeros(len(passages), dtype=torch.float64)
    for found in LikelihoodRounds(model, passages, passes=8, seed=0):
        nats[found.sequence] += found.nats / ROUNDS / len(passages[found.sequence])
    return nats


def figure(values: Tensor) -> str:
    return "{:.3f} +- {:.3f}".format(*mean_and_error(values))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write the adapters to")
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder or Hub repository of a RADD model")
    parser.add_argument("--text", help="local text to fine-tune on; default: Persuasion")
    parser.add_argument("--max_steps", type=int, default=150, help="optimizer steps")
    parser.add_argument("--batch_size", type=int, default=16, help="blocks in a step")
    parser.add_argument("--passages", type=int, default=40, help="passages of 128 tokens to score")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters")
    args = parser.parse_args(argv)

    set_seed(0)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    documents = load_documents(args.text, "all") if args.text else load_documents("austen", "validation")
    blocks = Blocks(tokenize(documents, tokenizer), length=128)
    border = len(blocks) * 3 // 4
    held_out = blocks[border :: max((len(blocks) - border) // args.passages, 1)][: args.passages]
    before = nats_by_passage(model, held_out)

    adapted: Any = add_adapters(model, args.rank, alpha=2 * args.rank, dropout=0.0)  # a PeftModel
    adapted.print_trainable_parameters()
    settings = TrainingArguments(
        str(args.output_dir),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=1e-3,
        warmup_steps=args.max_steps // 10,
        logging_steps=25,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    collator = DiffusionCollator(cast(RaddConfig, model.config), loss_type="k_DCE", seed=0)
    Trainer(adapted, settings, train_dataset=blocks[:border], data_collator=collator).train()

    after = nats_by_passage(adapted, held_out)
    adapted.save_pretrained(args.output_dir)
    merged(adapted).save_pretrained(args.output_dir / "merged")
    tokenizer.save_pretrained(args.output_dir / "merged")
    print(f"nats per token: mean of {len(held_out)} passages held out of training, and its standard error:")
    print(f"before      {figure(before)}")
    print(f"after       {figure(after)}")
    print(f"difference  {figure(after - before)}")


if __name__ == "__main__":
    main(sys.argv[1:])
