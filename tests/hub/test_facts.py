"""`radd_hf.hub.facts` and `benchmarks.training_cost` count what the model does: operations, bytes kept, parameters."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks import training_cost as cost
from radd_hf import RaddConfig, RaddForMaskedLM, kernels_radd, modeling_radd
from radd_hf.hub.facts import count_parameters, forward_flops, model_facts
from radd_hf.training import memory
from support.paths import CHECKPOINT, ROOT

BATCH, LENGTH = 3, 16
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}


def make_model(**settings) -> RaddForMaskedLM:
    torch.manual_seed(0)
    return RaddForMaskedLM(RaddConfig(**SIZES | {"max_position_embeddings": LENGTH} | settings)).train()


def make_batch(masked: list[int]) -> dict:
    """Rows with the given numbers of labels."""
    ids = torch.randint(0, SIZES["vocab_size"] - 1, (len(masked), LENGTH), generator=torch.Generator().manual_seed(0))
    labelled = torch.arange(LENGTH) < torch.tensor(masked)[:, None]
    return {"input_ids": ids, "labels": ids.masked_fill(~labelled, -100), "loss_weights": torch.ones(len(masked))}


@pytest.mark.parametrize("masked", [[16, 16, 16], [3, 9, 5], [1, 0, 0]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_a_counter_finds(monkeypatch, masked, checkpointing):
    """The last layer's queries are a rectangle, as many for each row as the row with the most labels has."""
    monkeypatch.setattr(kernels_radd, "MAX_LOGITS_ELEMENTS", 4 * SIZES["vocab_size"])  # 4 positions a chunk
    # Dropout, since without it recomputation stops before the last product of a layer, whose result nothing needs.
    model = make_model(attn_implementation="eager", hidden_dropout=0.1)
    if checkpointing:
        model.gradient_checkpointing_enable()
    rows = [forward_flops(model.config, count, queries=max(masked)) for count in masked]
    with FlopCounterMode(display=False) as forward:
        loss = model(**make_batch(masked)).loss
    assert forward.get_total_flops() == sum(row.layers + row.head for row in rows)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    chunked = sum(masked) > 4
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == sum(row.training(checkpointing, head_again=chunked) for row in rows)


def test_a_layer_keeps_as_many_bytes_as_said(monkeypatch):
    """With torch's attention, as on a GPU. Weights, and autocast's copies of them, do not count."""
    monkeypatch.setattr(modeling_radd, "attention_by_products", ALL_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setattr(kernels_radd, "keeps_steps", lambda hidden: False)

    def kept(layers: int, batch: int) -> int:
        model, storages = make_model(num_hidden_layers=layers, hidden_dropout=0.1), {}

        def note(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = model(**make_batch([8] * batch)).loss
        assert loss.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    a_layer = {batch: kept(4, batch) - kept(3, batch) for batch in (2, 4)}
    config = RaddConfig(**SIZES, hidden_dropout=0.1)
    assert a_layer[4] - a_layer[2] == 2 * LENGTH * memory.layer_bytes(config)


def test_parameters_are_counted_on_the_real_model():
    small, medium = (count_parameters(cost.CONFIGS[name]) for name in ("small", "medium"))
    assert small[0] == 162_265_682
    width, layers, vocabulary = 768, 12, 50258
    assert small[1] == layers * (12 * width**2 + 5 * width) + vocabulary * (width + 1)
    width, layers = 1024, 24
    assert medium[0] - medium[1] == vocabulary * width + (2 * layers + 1) * 2 * width  # embedding and norms


def test_bytes_a_parameter_are_twenty_for_training_four_for_buckets_two_for_copies():
    parameters, in_linear = count_parameters(cost.CONFIGS["small"])
    assert cost.state_bytes(cost.CONFIGS["small"], processes=1) == 20 * parameters + 2 * in_linear
    assert cost.state_bytes(cost.CONFIGS["small"], processes=8) == 24 * parameters + 2 * in_linear


def test_the_micro_batch_is_the_largest_power_of_two_that_fits():
    config = cost.CONFIGS["small"]
    row, fixed = cost.activation_bytes(config, False), cost.state_bytes(config, 8) + cost.gradient_bytes()
    for rows, expected in ((1, 1), (7.9, 4), (8, 8), (1000, 64)):
        args = cost.parse_arguments(["--memory", str((fixed + 1 + rows * row) / 1e9), "--reserve", "0"])
        micro_batch, used = cost.largest_micro_batch(config, args, checkpointing=False)
        assert (micro_batch, used) == (expected, fixed + expected * row)
    with pytest.raises(ValueError, match=r"memory=2\.0 GB must be larger: weights and one row take \d"):
        cost.largest_micro_batch(config, cost.parse_arguments(["--memory", "2"]), False)
    with pytest.raises(ValueError, match="batch_size=512 must be a multiple of processes=7"):
        cost.largest_micro_batch(config, cost.parse_arguments(["--processes", "7"]), False)


def test_the_table_has_a_column_for_each_way_and_states_what_it_assumes(capsys):
    cost.main(["--config", "small", str(CHECKPOINT), "--utilisation", "0.5"])
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {6}
    assert any("162,265,682" in line for line in table)
    assert any("50% of 9.89e+14 FLOP/s" in line for line in lines)


def test_the_table_of_the_documentation_is_what_is_printed(capsys):
    cost.main([])
    table = "".join(line for line in capsys.readouterr().out.splitlines(keepends=True) if line.startswith("|"))
    assert table in (ROOT / "docs" / "training.md").read_text()


def test_an_information_profile_is_told_by_its_ends():
    facts = model_facts(str(CHECKPOINT))
    assert facts["generation"] == {"temperature": 0.6, "top_p": 0.9}
    profile = facts["information_profile"]
    assert profile["tokens"] == 128
    assert profile["first"] > profile["last"] > 0
