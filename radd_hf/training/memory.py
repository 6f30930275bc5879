# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Estimates the memory of a training step from its configuration, and refuses a step that cannot fit.

A GPU and a CPU keep different tensors for the backward pass. On a CPU the estimate is within 15 % of the counted
tensors, over sizes, dtypes and kinds of attention (tests/training/test_memory.py). On a GPU it is the memory of a
compiled step in 16 bits. Other steps need more there, so a step that fits is never refused.
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

MASKED = 0.5  # mean fraction of masked tokens, for lambda ~ U(0, 1] and, up to 1 / 2L, for k ~ U{1..L}
ROOM = 0.8  # fraction of the free memory that advice may use; some is needed for other things than tensors
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def state_bytes(config: RaddConfig, processes: int = 1, half: bool = True, adapters: bool = False) -> int:
    """Counts the bytes on a device that do not depend on the rows: weights, gradients, AdamW's moments, the average.

    Several processes add DDP's buckets. Autocast adds copies of the Linear weights in 16 bits. With adapters only the
    frozen weights are counted, since adapters are small.
    """
    parameters, in_linear = count_parameters(config)
    weights, gradients, moments, average, buckets, copies = 4, 4, 2 * 4, 4, 4, 2
    trained = gradients + moments + average + (buckets if processes > 1 else 0)
    return (weights + (0 if adapters else trained)) * parameters + (copies * in_linear if half else 0)


def layer_bytes(config: RaddConfig, half: bool = True, on_gpu: bool = True) -> int:
    """Counts the bytes that a layer keeps for its backward pass, for each token. `half`: autocast to 16 bits."""
    width, inner, heads = config.hidden_size, cast(int, config.intermediate_size), config.num_attention_heads
    size = 2 if half else 4
    norms = 2 * 4 * width  # the inputs of both, in float32; the outputs are recomputed
    attention = 3 * size * width + size * width + 4 * heads  # rotated q and k, v, the output (input of o_proj), log-sum
    if config._attn_implementation == "eager":
        attention += 4 * heads * config.max_position_embeddings  # the softmax, in float32
    mlp = size * inner  # the input of GELU; its output is recomputed
    if half and not on_gpu:  # the outputs are kept, see `keeps_steps`
        norms, mlp = norms + 2 * size * width, 2 * mlp
    dropout = 2 * width if config.hidden_dropout else 0  # two masks of one byte
    return norms + attention + mlp + dropout


def kept_bytes(config: RaddConfig, checkpointing: bool, half: bool = True, on_gpu: bool = True) -> int:
    """Counts the bytes that all layers keep for each token; with gradient checkpointing, their inputs and one layer."""
    each, layers = layer_bytes(config, half, on_gpu), config.num_hidden_layers
    return layers * 4 * config.hidden_size + each if checkpointing else layers * each


def activation_bytes(config: RaddConfig, checkpointing: bool, half: bool = True) -> float:
    """Counts the bytes of activations on a GPU for each row of a micro-batch."""
    width, size = config.hidden_size, 2 if half else 4
    last = MASKED * (
        4 * width + size * width + size * config.vocab_size
    )  # inputs of the last norm and of the head; logits
    return config.max_position_embeddings * (kept_bytes(config, checkpointing, half) + last)


def gradient_bytes() -> int:
    """Counts the bytes of the gradient of one chunk of logits, in bf16, on a GPU."""
    return 2 * MAX_LOGITS_ELEMENTS_OF_A_CARD


def forward_bytes(config: RaddConfig, rows: int, checkpointing: bool, half: bool, on_gpu: bool) -> float:
    """Counts the bytes of activations and their gradients in a forward and backward pass of `rows` rows."""
    if on_gpu:
        logits = MASKED * rows * config.max_position_embeddings * config.vocab_size
        return rows * activation_bytes(config, checkpointing, half) + min(gradient_bytes(), 2 * logits)
    tokens = rows * config.max_position_embeddings
    head = 2 * 4 * min(MASKED * tokens * config.vocab_size, MAX_LOGITS_ELEMENTS)  # a chunk of logits and its gradient
    # In a layer's backward pass: the gradient inside the MLP, and with gradient checkpointing what is recomputed there.
    layer = tokens * (8 if checkpointing else 4) * cast(int, config.intermediate_size)
    return tokens * kept_bytes(config, checkpointing, half, on_gpu) + max(head, layer)


def free_bytes(device: torch.device) -> int | None:
    """Returns the bytes that this process may use on the device, or None if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    free = psutil.virtual_memory().available
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text(encoding="utf-8").strip()).isdecimal():
        free = min(free, int(limit))  # the limit of a container
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
    """Refuses a step that needs more memory than is free.

    Raises:
        ValueError: with the estimate, the free memory, and what would fit.
    """
    free, on_gpu = free_bytes(device), device.type == "cuda"
    state = state_bytes(config, processes, half, adapters)
    gradients = 0 if adapters else 4 * count_parameters(config)[0]  # they appear while activations are freed

    def needed(accumulation: int, checkpointing: bool) -> float:
        rows = batch_size // (processes * accumulation)
        return state - gradients + max(gradients, forward_bytes(config, rows, checkpointing, half, on_gpu))

    if free is None or (need := needed(accumulation, checkpointing)) <= free:
        return
    rows, length = batch_size // (processes * accumulation), config.max_position_embeddings
    raise ValueError(
        f"batch_size={batch_size} with accumulation={accumulation} needs about {need / 1e9:.1f} GB of memory: "
        f"{count_parameters(config)[0]:,} parameters, and {rows} rows of {length} tokens in a forward pass. "
        f"On {device} {free / 1e9:.1f} GB are free. {_ways_out(needed, free, batch_size // processes, checkpointing)} "
        "force=True trains anyway."
    )


def _ways_out(needed: Callable[[int, bool], float], free: int, rows: int, checkpointing: bool) -> str:
    """Says which settings would fit: a larger accumulation, without or with gradient checkpointing."""
    found = []
    for again in (False, True):
        if again >= checkpointing:  # gradient checkpointing that was asked for stays
            counts = (count for count in range(1, rows + 1) if rows % count == 0)
            fits = next((count for count in counts if needed(count, again) <= ROOM * free), None)
            if fits is not None:
                flag = " with gradient_checkpointing=True" if again and not checkpointing else ""
                found.append(f"accumulation={fits}{flag} would take {needed(fits, again) / 1e9:.1f} GB")
    if not found:
        return "Not even one row in a forward pass would fit: train a smaller model."
    return f"A smaller batch_size needs less; with the same batch_size, {', or '.join(found)}."
