"""Torch's fully_shard (FSDP version 2): two processes with half of every parameter each train the same model as one."""

import json

import pytest
import torch

from radd_hf import RaddForMaskedLM
from support.paths import SHIPPED
from support.sharded_training import (
    assert_same_as_one_process,
    batches,
    outcome_of,
    shard_as_accelerate_does,
    shard_head_alone,
    shard_layers,
)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict:
    return outcome_of(tmp_path_factory.mktemp("sharded"), shard_layers)


def test_two_processes_with_halves_of_the_parameters_and_of_the_batch_train_as_one(sharded):
    assert_same_as_one_process(sharded)


def test_the_gathered_weights_are_a_model_with_the_logits_of_the_sharded_one(sharded):
    loaded = RaddForMaskedLM.from_pretrained(sharded["folder"])
    logits = loaded(batches(loaded)[0]["input_ids"]).logits
    torch.testing.assert_close(logits, sharded["logits"])


def test_a_sharded_model_saves_its_own_code_too(sharded):
    assert {path.name for path in sharded["folder"].glob("*.py")} == set(SHIPPED)
    auto_map = json.loads((sharded["folder"] / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForMaskedLM"] == "modeling_radd.RaddForMaskedLM"


@pytest.mark.parametrize("shard", [shard_as_accelerate_does, shard_head_alone])
def test_the_head_may_be_a_unit_of_its_own_and_run_in_chunks(tmp_path, shard):
    assert_same_as_one_process(outcome_of(tmp_path, shard))
