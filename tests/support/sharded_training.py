# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Trains with two processes, each with half of every parameter. `multiprocessing` must be able to import it."""

import gc
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from radd_hf import RaddForMaskedLM, kernels_radd
from radd_hf.losses import draw_masks
from radd_hf.noise_radd import get_noise
from support.spies import Communications
from support.toys import random_model

PROCESSES, BATCH, LENGTH, VOCABULARY, STEPS = 2, 4, 12, 40, 3
HEAD_CHUNK = 5  # positions; so small that the halves of a batch need different numbers of chunks


def make_model() -> RaddForMaskedLM:
    return random_model(hidden_size=32, num_hidden_layers=3, vocab_size=VOCABULARY, max_position_embeddings=LENGTH)


def batches(model) -> list[dict]:
    """Makes the batch of every step with its masks and weights, the same in all processes."""
    generator = torch.Generator().manual_seed(1)
    steps = []
    for _ in range(STEPS):
        x0 = torch.randint(0, VOCABULARY - 1, (BATCH, LENGTH), generator=generator)
        masks = draw_masks("lambda_DCE", BATCH, LENGTH, get_noise(model.config), generator)
        steps.append(masks.apply(x0, model.config.mask_token_id))
    return steps


def train(model, rows: slice) -> torch.Tensor:
    """Takes steps of AdamW on some rows of every batch, and returns the losses (STEPS,)."""
    # With the usual eps, a gradient of rounding errors would move its weight as far as any other gradient.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=0.1)
    losses = []
    for batch in batches(model):
        loss = model(**{name: value[rows] for name, value in batch.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def shard_layers(model) -> None:
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)


def shard_as_accelerate_does(model) -> None:
    """Shards like Accelerate 1.15, which also makes units of the embedding, and of the last norm with the head."""
    fully_shard(model.model.embed_tokens)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    fully_shard(model)


def shard_head_alone(model) -> None:
    fully_shard(model.lm_head)
    fully_shard(model)


def communications(model, batch: dict) -> int:
    """Counts the communications of processes in one training step."""
    with Communications() as counted:
        model(**batch).loss.backward()
    return counted.number


def work(rank: int, folder: Path, shard) -> None:
    """Runs in each process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    train_and_leave_outcome(rank, folder, shard)
    gc.collect()  # the model holds the group, and gloo may abort a process that exits without leaving its group
    dist.destroy_process_group()


def train_and_leave_outcome(rank: int, folder: Path, shard) -> None:
    kernels_radd.MAX_LOGITS_ELEMENTS = HEAD_CHUNK * VOCABULARY
    model = make_model()
    shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    share = BATCH // PROCESSES
    rows = slice(rank * share, (rank + 1) * share)
    losses = train(model, rows)
    dist.all_reduce(losses)
    batch = {name: value[rows] for name, value in batches(model)[0].items()}
    in_chunks = communications(model, batch)
    kernels_radd.MAX_LOGITS_ELEMENTS = BATCH * LENGTH * VOCABULARY
    assert in_chunks == communications(model, batch) > 0
    with torch.no_grad():
        logits = model(batches(model)[0]["input_ids"]).logits
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save({"losses": losses / PROCESSES, "logits": logits, "weights": weights}, folder / "outcome.pt")
        model.save_pretrained(folder / "model", state_dict=weights)
        assert weights.keys() == model.state_dict().keys(), "the caller's dictionary is as it was"


def outcome_of(folder: Path, shard) -> dict:
    mp.spawn(work, args=(folder, shard), nprocs=PROCESSES)
    return torch.load(folder / "outcome.pt") | {"folder": folder / "model"}


def assert_same_as_one_process(outcome: dict) -> None:
    whole = make_model()
    losses = train(whole, slice(None))
    torch.testing.assert_close(outcome["losses"], losses)
    torch.testing.assert_close(outcome["weights"], whole.state_dict(), atol=1e-5, rtol=0)
    assert (losses[-1] < losses[0]).item()
