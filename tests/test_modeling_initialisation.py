# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""New weights are drawn as in the paper, however the model is made."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from radd_hf import RaddConfig, RaddForMaskedLM, RaddModel
from support.models import MASK, draw_ids, make_config


def assert_initialised_as_in_the_paper(model):
    """LayerNorm ones AND ones, output layer zeros, everything else uniform with bound 1 / sqrt(fan in)."""

    def assert_uniform(name, values, fan_in):
        bound = 1 / math.sqrt(fan_in)
        assert values.abs().max() <= bound * (1 + 1e-6), name
        assert values.abs().max() > 0.8 * bound, name
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), name

    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 1).all(), name
        elif name == "lm_head":
            assert not module.weight.any()
            assert not module.bias.any()
        elif isinstance(module, nn.Embedding):
            assert_uniform(name, module.weight, fan_in=module.weight.shape[1])  # kaiming_uniform(a=sqrt(5))
        elif isinstance(module, nn.Linear):
            assert_uniform(name, module.weight, module.in_features)
            if module.bias is not None:
                assert_uniform(name, module.bias, module.in_features)


@pytest.mark.parametrize("construct", [RaddForMaskedLM, RaddForMaskedLM._from_config, RaddModel], ids=str)
def test_a_new_model_is_initialised_as_in_the_paper(construct):
    torch.manual_seed(0)
    assert_initialised_as_in_the_paper(construct(make_config()))


def test_a_model_made_on_the_meta_device_is_initialised_as_in_the_paper():
    with torch.device("meta"):
        model = RaddForMaskedLM(make_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not list(model.buffers()), "a buffer would have to be filled by hand"
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(0)
    model.init_weights()
    assert_initialised_as_in_the_paper(model)
    assert model(draw_ids()).logits[..., :MASK].isfinite().all()


@pytest.mark.parametrize("missing", ["", "norm", "embed_tokens", "proj", "lm_head"], ids=lambda name: name or "all")
def test_weights_that_a_checkpoint_lacks_are_initialised_as_in_the_paper(tmp_path, missing):
    torch.manual_seed(0)
    RaddForMaskedLM(make_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if missing not in name} or {"other": torch.zeros(1)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    model, info = RaddForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == weights.keys() - kept.keys()
    assert_initialised_as_in_the_paper(model)
    for name, tensor in model.state_dict().items():
        if name in kept:
            assert torch.equal(tensor, kept[name])


@pytest.mark.parametrize("zero", [False, True])
def test_residual_branches_start_at_zero_when_asked(zero):
    torch.manual_seed(0)
    for layer in RaddForMaskedLM(make_config(zero_init_residual=zero)).model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert linear.weight.any() != zero
        if zero:
            assert not layer.mlp.down_proj.bias.any()
        assert layer.mlp.up_proj.weight.any()


def test_the_small_model_has_as_many_parameters_as_the_papers():
    with torch.device("meta"):
        model = RaddForMaskedLM(RaddConfig())
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters()) == 162_265_682
