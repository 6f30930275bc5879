# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tests that quantisers find the layers of a model, which are exactly nn.Linear, and that its outputs stay close.

`make quantised` installs bitsandbytes and torchao beside the environment and tests them. torch's own quantiser is
tested everywhere. All of them run on the CPU here.
"""

import copy
import runpy

import pytest
import torch
from torch import nn

from radd_hf import RaddForMaskedLM
from support.paths import CHECKPOINT, ROOT
from support.toys import seeded

IDS = torch.randint(4000, (2, 48), generator=seeded(0))
PROJECTIONS = ("qkv_proj", "o_proj", "up_proj", "down_proj")
# Largest mean over positions of the total variation distance from the exact probabilities. Of 8 and of 4 bits in the
# weights; torch's dynamic quantisation also rounds activations to 8 bits, and is held to the second.
EIGHT_BITS, FOUR_BITS = 0.03, 0.08


@pytest.fixture(scope="module")
def exact() -> RaddForMaskedLM:
    return RaddForMaskedLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@torch.no_grad()
def probabilities(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits.float().softmax(dim=-1)


def distance(model: nn.Module, other: nn.Module) -> float:
    return float((probabilities(model) - probabilities(other)).abs().sum(dim=-1).mean() / 2)


def projections(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(PROJECTIONS)]


def assert_it_writes(model) -> None:
    canvas = IDS.masked_fill(torch.arange(48) % 3 == 0, model.config.mask_token_id)
    written = model.generate(canvas, seed=1, steps=8)
    assert not (written == model.config.mask_token_id).any()
    assert torch.equal(written[:, 1::3], canvas[:, 1::3])


def by_bitsandbytes(bits: int) -> RaddForMaskedLM:
    pytest.importorskip("bitsandbytes", reason="make quantised installs it")
    from transformers import BitsAndBytesConfig

    settings = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    quantisation = BitsAndBytesConfig(**settings)
    return RaddForMaskedLM.from_pretrained(
        CHECKPOINT, quantization_config=quantisation, dtype=torch.float32, device_map="cpu"
    )


@pytest.mark.parametrize(("bits", "largest_distance"), [(8, EIGHT_BITS), (4, FOUR_BITS)])
def test_bitsandbytes_replaces_every_projection_and_the_model_writes_saves_and_loads(
    exact, tmp_path, bits, largest_distance
):
    model = by_bitsandbytes(bits)
    kind = {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    assert {type(module).__name__ for module in projections(model)} == {kind}
    assert type(model.lm_head) is nn.Linear  # transformers does not quantise output layers
    small, whole = (sum(p.numel() * p.element_size() for p in m.model.layers.parameters()) for m in (model, exact))
    assert small < whole * (bits + 1) / 32
    assert model.get_memory_footprint() < exact.get_memory_footprint()
    assert 0 < distance(model, exact) < largest_distance
    assert_it_writes(model)

    model.save_pretrained(tmp_path)
    again = RaddForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    assert {type(module).__name__ for module in projections(again)} == {kind}
    assert distance(again, model) < 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_on_a_quantised_model_train(bits):
    peft = pytest.importorskip("peft")
    model = peft.prepare_model_for_kbit_training(by_bitsandbytes(bits), use_gradient_checkpointing=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=list(PROJECTIONS)))
    adapted.eval()  # without dropout, so that the loss can only fall by learning
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    canvas = IDS.masked_fill(torch.arange(48) % 2 == 0, adapted.config.mask_token_id)
    losses = []
    for _ in range(5):
        loss = adapted(input_ids=canvas, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1


def test_torchao_quantises_every_linear_layer_and_the_model_writes(exact):
    quantization = pytest.importorskip("torchao.quantization", reason="make quantised installs it")
    model = copy.deepcopy(exact)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert all(type(module.weight) is not nn.Parameter for module in [*projections(model), model.lm_head])
    assert 0 < distance(model, exact) < EIGHT_BITS
    assert_it_writes(model)


def test_torchao_by_transformers_saves_and_loads(exact, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="make quantised installs it")
    from transformers import TorchAoConfig

    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = RaddForMaskedLM.from_pretrained(
        CHECKPOINT, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )
    assert all(type(module.weight) is not nn.Parameter for module in projections(model))
    assert_it_writes(model)
    model.save_pretrained(tmp_path)
    again = RaddForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    assert distance(again, model) < 1e-3


@pytest.mark.filterwarnings("ignore")  # torch warns that torchao replaces this
def test_torchs_dynamic_quantisation_replaces_every_linear_layer_and_the_model_writes(exact):
    model = torch.ao.quantization.quantize_dynamic(exact, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert 0 < distance(model, exact) < FOUR_BITS
    assert_it_writes(model)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_the_example_prints_what_is_saved_and_what_it_costs(bits, capsys):
    pytest.importorskip("bitsandbytes", reason="make quantised installs it")
    runpy.run_path(str(ROOT / "examples" / "quantised.py"))["main"](["--bits", bits, "--blocks", "2"])
    _, whole, small, text, *_ = capsys.readouterr().out.splitlines()
    (size, nats), (smaller, others) = ((line.split()[-4], float(line.split()[-3])) for line in (whole, small))
    assert int(smaller.replace(",", "")) < 0.6 * int(size.replace(",", ""))
    assert others == pytest.approx(nats, abs=0.05)
    assert text.startswith("It was a")
