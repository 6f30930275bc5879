"""Torch's fully_shard (FSDP version 2): two processes with half of every parameter each train the same model as one."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import random_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from radd_hf import RaddForMaskedLM, modeling_radd
from radd_hf.losses import draw_masks
from radd_hf.noise_radd import get_noise

PROCESSES, BATCH, LENGTH, VOCABULARY, STEPS = 2, 4, 12, 40, 3
HEAD_CHUNK = 5  # positions; so that the halves of a batch, with masks as they fall, need different numbers of chunks


def make_model() -> RaddForMaskedLM:
    return random_model(hidden_size=32, num_hidden_layers=3, vocab_size=VOCABULARY, max_position_embeddings=LENGTH)


def batches(model) -> list[dict]:
    """The batch of every step, with its masks and weights: the same in all processes."""
    generator = torch.Generator().manual_seed(1)
    steps = []
    for _ in range(STEPS):
        x0 = torch.randint(0, VOCABULARY - 1, (BATCH, LENGTH), generator=generator)
        masks = draw_masks("lambda_DCE", BATCH, LENGTH, get_noise(model.config), generator)
        steps.append(masks.apply(x0, model.config.mask_token_id))
    return steps


def train(model, rows: slice) -> torch.Tensor:
    """Steps of AdamW on some rows of every batch; the losses (STEPS,)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
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
    """Accelerate 1.15 makes units of the embedding and of the last norm with the head, too."""
    fully_shard(model.model.embed_tokens)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    fully_shard(model)


def work(rank: int, folder: Path, shard) -> None:
    """What each process does; the first leaves in the folder what came out."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    modeling_radd.MAX_LOGITS_ELEMENTS = HEAD_CHUNK * VOCABULARY
    model = make_model()
    shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    share = BATCH // PROCESSES
    losses = train(model, slice(rank * share, (rank + 1) * share))
    dist.all_reduce(losses)
    with torch.no_grad():
        logits = model(batches(model)[0]["input_ids"]).logits
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save({"losses": losses / PROCESSES, "logits": logits, "weights": weights}, folder / "outcome.pt")
        model.save_pretrained(folder / "model", state_dict=weights)  # empties the dictionary
    dist.destroy_process_group()


def outcome_of(folder: Path, shard) -> dict:
    mp.spawn(work, args=(folder, shard), nprocs=PROCESSES)
    return torch.load(folder / "outcome.pt") | {"folder": folder / "model"}


def assert_same_as_one_process(outcome: dict) -> None:
    whole = make_model()
    losses = train(whole, slice(None))
    torch.testing.assert_close(outcome["losses"], losses)
    torch.testing.assert_close(outcome["weights"], whole.state_dict(), atol=3e-5, rtol=0)
    assert (losses[-1] < losses[0]).item()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict:
    return outcome_of(tmp_path_factory.mktemp("sharded"), shard_layers)


def test_two_processes_with_halves_of_the_parameters_and_of_the_batch_train_as_one(sharded):
    assert_same_as_one_process(sharded)


def test_the_gathered_weights_are_a_model_with_the_logits_of_the_sharded_one(sharded):
    loaded = RaddForMaskedLM.from_pretrained(sharded["folder"])
    logits = loaded(batches(loaded)[0]["input_ids"]).logits
    torch.testing.assert_close(logits, sharded["logits"])


@pytest.mark.xfail(
    strict=True, reason="fully_shard changes the class of the model, and torch's files are saved as its code"
)
def test_a_sharded_model_saves_its_own_code_too(sharded):
    assert {path.name for path in sharded["folder"].glob("*.py")} == {
        f"{name}_radd.py" for name in ("configuration", "noise", "generation", "modeling")
    }
    auto_map = json.loads((sharded["folder"] / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForMaskedLM"] == "modeling_radd.RaddForMaskedLM"


@pytest.mark.xfail(
    strict=True, reason="the head is a unit that communicates once a chunk, and processes differ in chunks"
)
def test_the_head_may_be_a_unit_of_its_own_and_run_in_chunks(tmp_path):
    assert_same_as_one_process(outcome_of(tmp_path, shard_as_accelerate_does))
