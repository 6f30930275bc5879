# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A model is saved, loaded, cut to its trunk and given a larger vocabulary without loss.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from radd_hf import RaddForMaskedLM, RaddModel
from support.models import LAYERS, MASK, D, L, V, draw_ids, make_model
from support.paths import GOLDEN

# ---------------------------------------------------------------------------------------------------------
# Vocabulary
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"new_num_tokens": V + 8},
        {"new_num_tokens": V + 16, "pad_to_multiple_of": 32},
        {"new_num_tokens": V + 8, "mean_resizing": False},
    ],
)
def test_a_larger_vocabulary_keeps_the_old_logits_and_the_mask(model, how):
    net, ids = copy.deepcopy(model), draw_ids()
    with torch.no_grad():  # a live graph would remember the old size
        expected = net(ids).logits
    net.resize_token_embeddings(**how)
    size = net.config.vocab_size
    assert size > V
    assert net.get_input_embeddings().weight.shape == net.get_output_embeddings().weight.shape == (size, D)
    assert net.get_output_embeddings().bias.shape == (size,)
    got = net(ids).logits
    assert got.shape == (3, L, size)
    torch.testing.assert_close(got[..., :V], expected)
    assert net.config.mask_token_id == MASK
    assert got[..., MASK].isneginf().all()
    assert got[..., V:].isfinite().all()
    with_new_token = ids.where(ids != MASK, torch.tensor(V))
    labels = torch.full_like(ids, size - 1)
    loss = net(with_new_token, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    text = net.generate(length=10, generator=torch.Generator().manual_seed(0))
    assert text.shape == (1, 10)
    assert not (text == MASK).any()
    assert int(text.max()) < size


def test_a_resized_model_survives_saving(model, tmp_path):
    net, ids = copy.deepcopy(model), draw_ids()
    net.resize_token_embeddings(V + 8)
    net.save_pretrained(tmp_path)
    loaded = RaddForMaskedLM.from_pretrained(tmp_path)
    assert (loaded.config.vocab_size, loaded.config.mask_token_id) == (V + 8, MASK)
    assert torch.equal(loaded(ids).logits, net(ids).logits)


@pytest.mark.parametrize("hooked", [False, True])
def test_ids_that_pad_the_vocabulary_have_no_probability_and_no_gradient(model, hooked):
    net, ids = copy.deepcopy(model), draw_ids()
    with torch.no_grad():
        expected = net(ids).logits
    net.resize_token_embeddings(V + 3, pad_to_multiple_of=32)
    if hooked:
        net.lm_head.register_full_backward_hook(lambda *_: None)
    assert (net.config.num_tokens, net.config.vocab_size) == (V + 3, 64)
    logits = net(ids).logits
    torch.testing.assert_close(logits[..., :V], expected)
    assert logits[..., V : V + 3].isfinite().all(), "new tokens have a probability"
    assert logits[..., V + 3 :].isneginf().all()
    net(ids, labels=torch.full_like(ids, V + 2)).loss.backward()
    assert net.lm_head.weight.grad[V + 2].abs().sum() > 0
    assert net.lm_head.weight.grad[V + 3 :].count_nonzero() == 0


def test_padding_begins_where_the_tokens_end_however_often_one_resizes(model, tmp_path):
    net = copy.deepcopy(model)
    net.resize_token_embeddings(pad_to_multiple_of=32)
    assert net.config.num_tokens == V
    net.resize_token_embeddings(pad_to_multiple_of=128)
    assert (net.config.num_tokens, net.config.vocab_size) == (V, 128)
    net.save_pretrained(tmp_path)
    loaded, ids = RaddForMaskedLM.from_pretrained(tmp_path), draw_ids()
    assert torch.equal(loaded(ids).logits, net(ids).logits)
    assert loaded(ids).logits[..., V:].isneginf().all()
    text = loaded.generate(length=40, temperature=50.0, generator=torch.Generator().manual_seed(0))
    assert int(text.max()) < V
    net.resize_token_embeddings(V + 1)
    assert (net.config.num_tokens, net.config.vocab_size) == (None, V + 1)


# ---------------------------------------------------------------------------------------------------------
# Saving and loading
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
def test_save_and_load_change_no_bit(model, tmp_path, shards):
    model.save_pretrained(tmp_path, **shards)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 2) == bool(shards)
    loaded, info = RaddForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded(draw_ids()).logits, model(draw_ids()).logits)


def test_the_trunk_loads_the_checkpoint_of_the_whole_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    trunk, info = RaddModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == {"lm_head.weight", "lm_head.bias"}
    assert torch.equal(trunk(draw_ids()).last_hidden_state, model.model(draw_ids()).last_hidden_state)


def test_the_whole_model_loads_the_checkpoint_of_the_trunk(tmp_path):
    trunk = make_model(RaddModel)
    trunk.save_pretrained(tmp_path)
    model, info = RaddForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}
    assert not info["unexpected_keys"]
    assert torch.equal(trunk(draw_ids()).last_hidden_state, model.model(draw_ids()).last_hidden_state)
    assert not model.lm_head.weight.any()


def test_the_dtype_is_the_checkpoints_unless_one_is_named(model, tmp_path):
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    model.save_pretrained(tmp_path / "single")
    for folder, arguments, expected in (
        ("half", {}, torch.bfloat16),
        ("single", {}, torch.float32),
        ("single", {"dtype": torch.bfloat16}, torch.bfloat16),
        ("single", {"dtype": "bfloat16"}, torch.bfloat16),
        ("half", {"dtype": torch.float32}, torch.float32),
    ):
        loaded = RaddForMaskedLM.from_pretrained(tmp_path / folder, **arguments)
        assert loaded.dtype == expected
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        assert loaded(draw_ids()).logits.dtype == expected
    expected = copy.deepcopy(model).to(torch.bfloat16)(draw_ids()).logits
    got = RaddForMaskedLM.from_pretrained(tmp_path / "single", dtype=torch.bfloat16)(draw_ids()).logits
    assert torch.equal(got, expected)


def test_attention_can_be_chosen_when_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = RaddForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"
    assert len(loaded(draw_ids(), output_attentions=True).attentions) == LAYERS
    assert "eager" not in (tmp_path / "config.json").read_text()


def test_a_setting_may_be_changed_while_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").exists()
    loaded = RaddForMaskedLM.from_pretrained(tmp_path, hidden_dropout=0.25)
    assert loaded.config.hidden_dropout == 0.25
    assert torch.equal(loaded(draw_ids()).logits, model(draw_ids()).logits)


def test_weights_of_another_size_are_refused_or_replaced_on_request(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        RaddForMaskedLM.from_pretrained(tmp_path, vocab_size=V + 2, mask_token_id=MASK)
    loaded = RaddForMaskedLM.from_pretrained(
        tmp_path, vocab_size=V + 2, mask_token_id=MASK, ignore_mismatched_sizes=True
    )
    assert loaded(draw_ids()).logits.shape == (3, L, V + 2)
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight)


def assert_golden_logits(model):
    golden = load_file(GOLDEN / "forward.safetensors")
    with torch.no_grad():
        logits = model(golden["input_ids"]).logits
    assert logits.dtype == torch.float32
    assert logits[..., -1].isneginf().all()
    got, expected = logits[..., :-1], golden["logits"][..., :-1]
    assert (got - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_authors_repository_loads_as_it_is(attention):
    model, info = RaddForMaskedLM.from_pretrained(
        GOLDEN / "hub", attn_implementation=attention, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert_golden_logits(model)


def test_the_authors_repository_once_loaded_is_saved_under_our_names(tmp_path):
    model = RaddForMaskedLM.from_pretrained(GOLDEN / "hub")
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "radd"
    assert_golden_logits(RaddForMaskedLM.from_pretrained(tmp_path))


def test_the_trunk_loads_the_authors_repository_too(tmp_path):
    trunk, info = RaddModel.from_pretrained(GOLDEN / "hub", output_loading_info=True)
    assert not info["missing_keys"]
    whole = RaddForMaskedLM.from_pretrained(GOLDEN / "hub")
    ids = load_file(GOLDEN / "forward.safetensors")["input_ids"]
    expected = whole.model(ids).last_hidden_state
    assert torch.equal(trunk(ids).last_hidden_state, expected)
    trunk.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == trunk.state_dict().keys()
    assert torch.equal(RaddModel.from_pretrained(tmp_path)(ids).last_hidden_state, expected)
