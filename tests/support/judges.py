# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Judge models of generated text, with random weights."""

import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from support.toys import seeded

LIMIT = 16  # positions of the judge models
SIZES = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
ARCHITECTURES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=LIMIT, **SIZES)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LIMIT,
            **SIZES,
        )
    ),
    "bert": lambda: BertLMHeadModel(
        BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    ),
}


def random_judge(architecture: str):
    """Makes weights so large that the predictions depend on the context."""
    model = ARCHITECTURES[architecture]().eval()
    generator = seeded(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model
