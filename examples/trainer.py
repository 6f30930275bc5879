# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Trains a small model with transformers' Trainer: the collator draws the masks, the model computes the loss.

    python examples/trainer.py --output_dir runs/trainer
    python examples/trainer.py --output_dir runs/trainer --dataset my.txt --max_steps 2000

The default text is the shipped novels, with the tokenizer of the shipped checkpoint. It takes a few minutes on two
cores. The output folder is a checkpoint like any other: score it with `python eval_ppl.py --model runs/trainer
--dataset austen`. docs/training.md says what `train_accelerate.py` does beyond this.
"""

import argparse
import sys
from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.data.blocks import Blocks
from radd_hf.data.collator import DiffusionCollator
from radd_hf.data.documents import load_documents, tokenize, vocabulary_size
from radd_hf.hub.loading import load_tokenizer

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "radd-austen"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", required=True, help="folder to write the model to")
    parser.add_argument("--dataset", default="austen", help="text to train on, as in train_accelerate.py")
    parser.add_argument("--max_steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--batch_size", type=int, default=32, help="blocks in a step")
    parser.add_argument("--hidden_size", type=int, default=128, help="width of the network")
    args = parser.parse_args(argv)

    set_seed(0)
    tokenizer = load_tokenizer(str(CHECKPOINT))
    blocks = Blocks(tokenize(load_documents(args.dataset, "train"), tokenizer), length=128)
    config = RaddConfig(
        vocab_size=vocabulary_size(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=args.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        embedding_std=0.1,  # this and the next setting help small models
        zero_init_residual=True,
    )
    settings = TrainingArguments(
        args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=2e-3,
        warmup_steps=min(100, args.max_steps // 4),
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        RaddForMaskedLM(config),
        settings,
        train_dataset=blocks,
        data_collator=DiffusionCollator(config, loss_type="k_DCE", seed=0),
        processing_class=tokenizer,
    )
    trainer.train()  # its "loss" is nats per sequence of 128 tokens
    trainer.save_model()
    print(f"The model and its tokenizer are in {args.output_dir}.")


if __name__ == "__main__":
    main(sys.argv[1:])
