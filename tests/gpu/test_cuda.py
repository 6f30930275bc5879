# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tests a GPU: tokens, losses and likelihoods as on the CPU, every attention, training that resumes.

`make test-gpu` runs these; `make test` hides the GPU, so that its results are those of the CPU everywhere.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from radd_hf import DiffusionCollator, RaddConfig, RaddForMaskedLM
from radd_hf.kernels_radd import compile_trunk
from radd_hf.likelihood import estimate_likelihood
from radd_hf.training.averages import Ema
from support.paths import CHECKPOINT, ROOT
from support.toys import random_model, seeded

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, and make test-gpu, which does not hide it"
)
METHODS = [
    {"method": "tweedie", "steps": 32},
    {"method": "euler", "steps": 16},
    {"method": "first_hitting"},
    {"method": "ordered", "order": "random"},
    {"method": "tweedie", "refresh_interval": 4},
]
# Largest relative error of the logits, against float32 with eager attention on the GPU.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@pytest.fixture(scope="module")
def austen() -> RaddForMaskedLM:
    return RaddForMaskedLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def ids(model: RaddForMaskedLM, rows: int = 4, length: int = 64) -> torch.Tensor:
    mask = model.config.mask_token_id
    clean = torch.randint(mask, (rows, length), generator=seeded(0))
    return clean.masked_fill(torch.rand(rows, length, generator=seeded(1)) < 0.5, mask)


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_the_card_writes_the_tokens_of_the_processor(austen, settings):
    """Compares tokens in float32, drawn by CPU generators; rounding of the logits may change a few."""
    there = copy.deepcopy(austen).cuda().generate(ids(austen), seed=3, **settings).cpu()
    here = austen.generate(ids(austen), seed=3, **settings)
    assert (there == here).float().mean() > 0.99


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
def test_every_attention_gives_the_logits_of_the_written_out_one(austen, attention, dtype):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
        if dtype == torch.float32:
            pytest.skip("flash-attn has no float32")
    canvas = ids(austen).cuda()
    padding = torch.ones_like(canvas)
    padding[1, :20] = 0
    reference, other = (copy.deepcopy(austen).cuda() for _ in range(2))
    reference.set_attn_implementation("eager")
    other.to(dtype).set_attn_implementation(attention)
    with torch.no_grad():
        expected, found = (net(canvas, attention_mask=padding).logits.float() for net in (reference, other))
    text, real = padding.bool(), austen.config.mask_token_id
    error = (found[text][:, :real] - expected[text][:, :real]).norm() / expected[text][:, :real].norm()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_are_those_of_the_processor(dtype):
    model = random_model(vocab_size=64, max_position_embeddings=32, hidden_size=64)
    canvas = ids(model, length=32)
    labels = (canvas * 7 % 63).masked_fill(canvas != model.config.mask_token_id, -100)
    there = copy.deepcopy(model).cuda()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = there(canvas.cuda(), labels=labels.cuda()).loss
    loss.backward()
    expected = model(canvas, labels=labels).loss
    expected.backward()
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(loss.cpu(), expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(there.parameters(), model.parameters(), strict=True):
        assert (one.grad.cpu() - other.grad).norm() < 2 * tolerance * other.grad.norm() + 1e-4


def test_a_likelihood_is_that_of_the_processor(austen):
    texts = [torch.randint(austen.config.mask_token_id, (40,), generator=seeded(row)) for row in range(3)]
    there, here = (estimate_likelihood(net, texts, passes=4) for net in (copy.deepcopy(austen).cuda(), austen))
    assert there.nats_per_token == pytest.approx(here.nats_per_token, rel=1e-3)


def train(folder, text, *flags: str) -> dict[str, torch.Tensor]:
    """Trains to step 8, unless the flags stop it before; returns the weights of step 8."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "vocab_size": 320, "length": 256}
    rest = {"batch_size": 8, "warmup_steps": 2, "save_steps": 4, "eval_steps": 8, "n_samples": 0, "max_steps": 8}
    settings = sizes | rest | {"dataset": text, "output_dir": folder}
    settings |= {"mixed_precision": "bf16", "deterministic": "true"}
    command = [sys.executable, str(ROOT / "train_accelerate.py"), *flags]
    command += [
        part for name, value in settings.items() if f"--{name}" not in flags for part in (f"--{name}", str(value))
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert not done.returncode, done.stderr[-1500:]
    return load_file(folder / "checkpoints" / "step_8" / "state" / "model.safetensors")


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, tiny_text):
    """Compiled, in rows that attention takes in several parts."""
    whole = train(tmp_path / "whole", tiny_text)
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "parts", tiny_text, "--max_steps", "4")
    parts = train(tmp_path / "parts", tiny_text)
    assert [name for name in whole if not torch.equal(parts[name], whole[name])] == []


def a_batch(config: RaddConfig, rows: int) -> dict:
    length = config.max_position_embeddings
    x0 = torch.randint(config.vocab_size - 1, (rows, length), generator=seeded(5))
    inputs = DiffusionCollator(config).rows(x0, 0, range(rows), rows)
    there = {name: value.cuda() for name, value in inputs.items()}
    return there | {"max_targets": int((inputs["labels"] != -100).sum())}


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_step_gives_the_gradients_of_the_plain_one(fresh_compiler, dtype):
    plain = random_model(vocab_size=66, max_position_embeddings=32, hidden_size=64).train().cuda()
    network, inputs, results = copy.deepcopy(plain), a_batch(plain.config, 8), []
    compile_trunk(network.model)
    for model in (network, plain):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = model(**inputs).loss
        loss.backward()
        results.append((loss.detach(), [weight.grad for weight in model.parameters()]))
    (loss, found), (expected_loss, expected) = results
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm() + 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_of_training_waits_for_nothing_and_its_attention_is_a_flash_kernel(fresh_compiler):
    config = RaddConfig(vocab_size=66, hidden_size=128, num_hidden_layers=2, num_attention_heads=2)
    config.max_position_embeddings = 256
    model, inputs = RaddForMaskedLM(config).train().cuda(), a_batch(config, 8)
    optimizer, averages = torch.optim.AdamW(model.parameters(), fused=True), Ema(model, 0.999)
    compile_trunk(model.model)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        averages.update(model)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    names = [event.key for event in seen.key_averages()]
    assert sum("flash" in name or "fmha" in name for name in names) >= 2, names
