# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Estimates the memory of a training step from its configuration, and refuses a step that cannot fit.

A GPU and a CPU differ in what they keep for the backward pass. For a CPU the estimate is within
15 % of the tensors that were counted, over sizes, dtypes and kinds of attention (tests/training/test_memory.py). For a
GPU it is that of a compiled step in 16 bits, and too low for others; so no step is refused that fits.

Symbols as in modeling_radd.py: D hidden size, I inside the MLP, H heads, L length, V vocabulary, n layers.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil
import torch

from ..configuration_radd import RaddConfig
from ..hub.facts import count_parameters
from ..kernels_radd import MAX_LOGITS_ELEMENTS, MAX_LOGITS_ELEMENTS_OF_A_CARD

MASKED = 0.5  # mean fraction of masked tokens: of lambda ~ U(0, 1] and of k ~ U{1..L}, but for 1 / 2L
ROOM = 0.8  # of the free memory is what is proposed to take, since more than tensors needs some
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def state_bytes(config: RaddConfig, processes: int = 1, half: bool = True, adapters: bool = False) -> int:
    """Counts the bytes on each device that do not depend on the rows: weights, gradients, AdamW's moments, the average.

    With more than one process there are DDP's buckets; under autocast, copies in 16 bits of what is in a Linear. Of
    adapters, which are small, nothing but the frozen weights is counted.
    """
    parameters, in_linear = count_parameters(config)
    weights, gradients, moments, average, buckets, copies = 4, 4, 2 * 4, 4, 4, 2
    trained = gradients + moments + average + (buckets if processes > 1 else 0)
    return (weights + (0 if adapters else trained)) * parameters + (copies * in_linear if half else 0)


def layer_bytes(config: RaddConfig, half: bool = True, on_card: bool = True) -> int:
    """Counts the bytes a layer keeps for its backward pass, for each token; `half`: under autocast to 16 bits."""
    width, inner, heads = config.hidden_size, cast(int, config.intermediate_size), config.num_attention_heads
    size = 2 if half else 4
    norms = 2 * 4 * width  # inputs in float32, of both; the outputs are computed again
    attention = 3 * size * width + size * width + 4 * heads  # turned q and k, v, the output (input of o_proj), log-sum
    if config._attn_implementation == "eager":
        attention += 4 * heads * config.max_position_embeddings  # of the softmax, in float32
    mlp = size * inner  # input of GELU, whose output is computed again
    if half and not on_card:  # where outputs are kept, see `keeps_steps`
        norms, mlp = norms + 2 * size * width, 2 * mlp
    dropout = 2 * width if config.hidden_dropout else 0  # two masks of one byte
    return norms + attention + mlp + dropout


def kept_bytes(config: RaddConfig, checkpointing: bool, half: bool = True, on_card: bool = True) -> int:
    """Counts the bytes that all layers keep for each token; with checkpointing, their inputs and one layer's whole."""
    each, layers = layer_bytes(config, half, on_card), config.num_hidden_layers
    return layers * 4 * config.hidden_size + each if checkpointing else layers * each


def activation_bytes(config: RaddConfig, checkpointing: bool, half: bool = True) -> float:
    """Counts the bytes of activations on a GPU for each row of a micro-batch."""
    width, size = config.hidden_size, 2 if half else 4
    last = MASKED * (4 * width + size * width + size * config.vocab_size)  # inputs of last norm and of head; logits
    return config.max_position_embeddings * (kept_bytes(config, checkpointing, half) + last)


def gradient_bytes() -> int:
    """Counts the bytes of the gradient of one chunk of logits, in bf16, on a GPU."""
    return 2 * MAX_LOGITS_ELEMENTS_OF_A_CARD


def forward_bytes(config: RaddConfig, rows: int, checkpointing: bool, half: bool, on_card: bool) -> float:
    """Counts the bytes of activations and their gradients in a forward of so many rows and its backward."""
    if on_card:
        logits = MASKED * rows * config.max_position_embeddings * config.vocab_size
        return rows * activation_bytes(config, checkpointing, half) + min(gradient_bytes(), 2 * logits)
    tokens = rows * config.max_position_embeddings
    head = 2 * 4 * min(MASKED * tokens * config.vocab_size, MAX_LOGITS_ELEMENTS)  # a chunk of logits and its gradient
    # In a layer's backward the gradient inside the MLP; with checkpointing also what is computed again there.
    layer = tokens * (8 if checkpointing else 4) * cast(int, config.intermediate_size)
    return tokens * kept_bytes(config, checkpointing, half, on_card) + max(head, layer)


def free_bytes(device: torch.device) -> int | None:
    """Returns the bytes that this process may take on the device; None if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    free = psutil.virtual_memory().available
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text(encoding="utf-8").strip()).isdecimal():
        free = min(free, int(limit))  # of a container
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_memory(
    config: RaddConfig,
    *,
    batch_size: int,
    accumulation: int,
    processes: int,
    checkpointing: bool,
    half: bool,
    adapters: bool,
    device: torch.device,
) -> None:
    """Refuses a step for which there is not enough memory.

    Raises:
        ValueError: with the estimate, what is free, and what would fit.
    """
    free, on_card = free_bytes(device), device.type == "cuda"
    state = state_bytes(config, processes, half, adapters)
    gradients = 0 if adapters else 4 * count_parameters(config)[0]  # which are made while activations are given back

    def needed(accumulation: int, checkpointing: bool) -> float:
        rows = batch_size // (processes * accumulation)
        return state - gradients + max(gradients, forward_bytes(config, rows, checkpointing, half, on_card))

    if free is None or (need := needed(accumulation, checkpointing)) <= free:
        return
    rows, length = batch_size // (processes * accumulation), config.max_position_embeddings
    raise ValueError(
        f"batch_size={batch_size} with accumulation={accumulation} needs about {need / 1e9:.1f} GB of memory: "
        f"{count_parameters(config)[0]:,} parameters, and {rows} rows of {length} tokens in a forward. On {device} "
        f"{free / 1e9:.1f} GB are free. {_ways_out(needed, free, batch_size // processes, checkpointing)} "
        "force=True trains all the same."
    )


def _ways_out(needed: Callable[[int, bool], float], free: int, rows: int, checkpointing: bool) -> str:
    """Says which of the two ways to need less memory would fit."""
    found = []
    for again in (False, True):
        if again >= checkpointing:  # what was asked for is not taken back
            counts = (count for count in range(1, rows + 1) if rows % count == 0)
            fits = next((count for count in counts if needed(count, again) <= ROOM * free), None)
            if fits is not None:
                flag = " with gradient_checkpointing=True" if again and not checkpointing else ""
                found.append(f"accumulation={fits}{flag} would take {needed(fits, again) / 1e9:.1f} GB")
    if not found:
        return "Not even one row in a forward would fit: take a smaller model."
    return f"A smaller batch_size needs less, and of the same batch {', or '.join(found)}."
