# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A tiny model, and random valid settings of `generate`, to compare replayed with called events."""

import random

import torch
from torch import Tensor

from radd_hf import RaddForMaskedLM, RaddGenerateOutput, RaddGenerationConfig
from radd_hf.programs_radd import KEPT
from radd_hf.settings_radd import ADAPTIVE_ORDERS
from support.toys import random_model

VOCABULARY, MASK, LENGTH, EOS = 40, 39, 12, 7


def make_model(**settings) -> RaddForMaskedLM:
    model = random_model(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **settings)
    model.generation_config = RaddGenerationConfig(eos_token_id=EOS, pad_token_id=3)
    return model


def graphs_of(model) -> int:
    """Counts the graphs that a model keeps."""
    return sum(len(programs.replays) for programs in KEPT[model].layouts.values()) if model in KEPT else 0


def assert_same_output(found: RaddGenerateOutput, expected: RaddGenerateOutput, settings: dict, tolerance: float):
    assert found.keys() == expected.keys()
    for name in ("sequences", "reveal_step", "num_function_evaluations"):
        assert torch.equal(found[name], expected[name]), (name, settings)
    torch.testing.assert_close(found.token_logprobs, expected.token_logprobs, atol=tolerance, rtol=tolerance)
    for one, other in zip(found.history or (), expected.history or (), strict=True):
        assert torch.equal(one, other), settings


def padded_batch() -> dict[str, Tensor]:
    ids = torch.full((3, LENGTH), MASK)
    ids[:, 2:4] = 5
    seen = torch.ones_like(ids)
    ids[0, :2], seen[0, :2] = 0, 0
    ids[1, 9:], seen[1, 9:] = 0, 0
    return {"input_ids": ids, "attention_mask": seen}


def random_settings(draw: random.Random) -> dict:
    """Draws settings of `generate` that are valid together."""
    settings = draw.choice(
        [
            {"method": "tweedie", "steps": draw.choice([None, 1, 3, 30])},
            {"method": "tweedie", "steps": draw.randint(1, 20), "use_cache": False},
            {"method": "euler", "steps": draw.randint(1, 20)},
            {"method": "first_hitting"},
            {"method": "ordered", "order": draw.choice(["forward", "backward", "random"])},
            {"schedule": "profile", "steps": draw.randint(1, 15), "information_profile": [3.0, 2.0, 1.5, 1.4]},
            {"method": "ordered", "steps": draw.randint(1, 15), "order": draw.sample(range(LENGTH), LENGTH)},
            {"method": "ordered", "order": draw.choice(ADAPTIVE_ORDERS)},
            {"method": "ordered", "order": draw.choice(ADAPTIVE_ORDERS), "steps": draw.randint(1, 15)},
            {"method": "ordered", "entropy_bound": draw.uniform(0, 6)},
            {"method": "ordered", "order": draw.choice(ADAPTIVE_ORDERS), "confidence_threshold": draw.uniform(0.1, 1)},
            {"method": "first_hitting", "speculate": draw.randint(2, 9)},
            {"method": "ordered", "order": draw.choice(["forward", "random"]), "speculate": draw.randint(2, 20)},
        ]
    )
    adaptive = settings.get("order") in ADAPTIVE_ORDERS or "entropy_bound" in settings
    settings |= draw.choice([{}, {"temperature": 0}, {"temperature": draw.uniform(0.3, 2)}])
    settings |= draw.choice([{}, {"top_k": draw.randint(1, VOCABULARY)}, {"top_p": draw.uniform(0.3, 1)}])
    if settings.get("use_cache", True) and not adaptive and "speculate" not in settings:
        settings |= draw.choice([{}, {"refresh_interval": draw.randint(2, 9), "refresh_window": draw.randint(0, 5)}])
    settings |= draw.choice([{}, {}, {"stop_on_eos": True}])
    settings |= draw.choice([{}, {"num_return_sequences": draw.randint(1, 5)}])
    settings |= draw.choice([{}, {}, {"output_history": True}])
    settings |= draw.choice([{}, {"prefix": [[1, 2], [3]]}, {"suffix": [4, 5]}, {"length": LENGTH}, padded_batch()])
    return {"seed": draw.randrange(10**6), "return_dict_in_generate": True} | settings
