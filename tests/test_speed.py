# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What was made fast still says the same: a slow, obvious sampler; tensors that must not exist; hosts that do not wait.

Shapes: R rows, L length, V vocabulary with the mask.
"""

import pytest
import torch
from transformers import AutoTokenizer

from radd_hf import RaddForMaskedLM, kernels_radd
from radd_hf.state_radd import SamplerState
from support.paths import CHECKPOINT, ROOT
from support.samplers import LENGTH, MASK, METHODS, VOCABULARY, canvas, plan_and_uniforms, sample_slowly
from support.spies import Watch
from support.tapes import WAITS
from support.toys import seeded, tiny_model


def model() -> RaddForMaskedLM:
    return tiny_model(VOCABULARY, LENGTH, noise_type="geometric", seed=1)


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_the_tokens_are_those_of_a_slow_and_obvious_sampler(settings):
    network, ids = model(), canvas()
    expected = sample_slowly(network, ids, *plan_and_uniforms(network, ids, **settings))
    assert torch.equal(network.generate(ids, generator=seeded(3), **settings), expected)


WIDE = 1000  # a vocabulary so large that nothing else has as many elements as the logits of all positions


def wide_model(length: int = LENGTH) -> RaddForMaskedLM:
    return tiny_model(WIDE, length, seed=1)


@pytest.mark.parametrize("settings", [*METHODS, {"top_k": 5, "top_p": 0.9}, {"refresh_interval": 4}], ids=str)
def test_no_sampler_makes_logits_of_all_positions(settings):
    rows, length = 4, 64
    network = wide_model(length)
    reveals_few = {**settings, "steps": 32} if settings.get("steps") else settings
    with Watch() as watch:
        network.generate(length=length, num_return_sequences=rows, generator=seeded(0), **reveals_few)
    assert watch.largest < rows * length * WIDE / 4
    with Watch() as watch, torch.no_grad():
        network(input_ids=torch.full((rows, length), WIDE - 1))
    assert watch.largest == rows * length * WIDE  # so it would have been seen


def test_the_loss_keeps_one_tensor_of_logits_and_makes_one_of_gradients():
    """Torch's own cross-entropy keeps two in float32 and makes two more."""
    logits = torch.randn(50, WIDE, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        nll = kernels_radd.TokenNLL.apply(logits, torch.arange(50))
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) <= 50 * WIDE * 2 + 50 * 12
    with Watch() as watch:
        nll.sum().backward()
    assert watch.largest == 50 * WIDE
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_a_token_and_its_gradient_are_those_of_cross_entropy(dtype):
    logits = (3 * torch.randn(70, 40, generator=seeded(0))).to(dtype)
    logits[:, 7] = -torch.inf  # the mask
    target, weight = torch.randint(8, 40, (70,), generator=seeded(1)), torch.rand(70, generator=seeded(2))
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    nll = kernels_radd.TokenNLL.apply(ours, target)
    expected = torch.nn.functional.cross_entropy(theirs.float(), target, reduction="none")
    torch.testing.assert_close(nll, expected)
    (weight * nll).sum().backward()
    (weight * expected).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_loss_may_be_differentiated_twice_over_the_same_graph():
    network = model()
    loss = network(input_ids=canvas(), labels=canvas() % MASK).loss
    first, second = (torch.autograd.grad(loss, network.lm_head.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("settings", [*METHODS, {"refresh_interval": 3}], ids=str)
def test_between_the_first_evaluation_and_the_last_the_host_waits_for_nothing(monkeypatch, settings):
    """Reading a number from a device, or finding where a mask is set, makes the host wait until the device is there."""
    watch, reveal, output = Watch(), RaddForMaskedLM._reveal, SamplerState.output

    def begin(*args):
        watch.__enter__()
        return reveal(*args)

    def end(*args):
        watch.__exit__(None, None, None)
        return output(*args)

    monkeypatch.setattr(RaddForMaskedLM, "_reveal", begin)
    monkeypatch.setattr(SamplerState, "output", end)
    model().generate(canvas(), generator=seeded(0), **settings)
    assert "aten.embedding" in watch.names
    assert not WAITS & set(watch.names)


def test_bfloat16_scores_a_text_within_half_a_percent_of_float32():
    """Of the shipped checkpoint: nats of a text, half of it masked."""
    network = RaddForMaskedLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    text = (ROOT / "README.md").read_text()
    ids = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)(text, return_tensors="pt")["input_ids"]
    ids = ids[0, : 8 * 128].view(8, 128)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=seeded(1)) < 0.5, -100)
    inputs = {"input_ids": ids.masked_fill(labels != -100, network.config.mask_token_id), "labels": labels}
    with torch.no_grad():
        exact = network(**inputs).token_nll
        rounded = network.to(torch.bfloat16)(**inputs).token_nll
    assert float(rounded.sum() / exact.sum()) == pytest.approx(1, abs=0.005)
