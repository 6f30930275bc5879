# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Loads a model in 8 or 4 bits with bitsandbytes, and compares its memory and likelihood with the whole model.

    pip install 'radd_hf[quantised]'
    python examples/quantised.py --bits 4
    python examples/quantised.py --bits 8 --model me/my-radd --text my.txt

bitsandbytes replaces the nn.Linear layers of the network, but not the output layer. PEFT can train adapters on the
result: `peft.prepare_model_for_kbit_training(model)`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from radd_hf import RaddForMaskedLM, estimate_likelihood
from radd_hf.data.documents import encode, load_documents
from radd_hf.hub.loading import load_tokenizer

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "radd-austen"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder or Hub repository of a RADD model")
    parser.add_argument("--bits", type=int, choices=[8, 4], default=8, help="bits of a weight")
    parser.add_argument("--text", default="austen", help="data set, as in eval_ppl.py; its held-out part is scored")
    parser.add_argument("--blocks", type=int, default=16, help="number of blocks of the text to score")
    args = parser.parse_args(argv)

    settings: dict[str, Any] = {"load_in_8bit": True}
    if args.bits == 4:
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loading: dict[str, Any] = {"dtype": torch.float32, "device_map": device}
    whole = RaddForMaskedLM.from_pretrained(args.model, **loading)
    small = RaddForMaskedLM.from_pretrained(args.model, quantization_config=BitsAndBytesConfig(**settings), **loading)

    tokenizer, length = load_tokenizer(args.model), whole.config.max_position_embeddings
    text = load_documents(args.text, "validation")[0]["text"][: 20 * args.blocks * length]
    ids = torch.tensor(encode([text], tokenizer)[0][: args.blocks * length])
    print(f"{'':<12}{'bytes':>12}  nats per token")
    for name, model in (("float32", whole), (f"{args.bits} bits", small)):
        scored = estimate_likelihood(model, list(ids.split(length)), passes=8)
        print(
            f"{name:<12}{model.get_memory_footprint():>12,}  {scored.nats_per_token:.3f} +- {scored.standard_error:.3f}"
        )
    written = small.generate(prefix="It was a", length=24, tokenizer=tokenizer, temperature=0.7, seed=0)
    print(tokenizer.decode(written[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
