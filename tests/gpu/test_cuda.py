# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tests a GPU: tokens, losses and likelihoods as on the CPU, every attention, CUDA graphs, training that resumes.

`make test-gpu` runs these; `make test` hides the GPU, so that its results are those of the CPU everywhere.
"""

import copy
import itertools
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from radd_hf import DiffusionCollator, RaddConfig, RaddForMaskedLM
from radd_hf.kernels_radd import compile_trunk, is_faster_by_halves
from radd_hf.likelihood import estimate_likelihood, exact_likelihood
from radd_hf.modeling_radd import rotate
from radd_hf.state_radd import SamplerState
from radd_hf.training.averages import Ema
from support.models import rotated_states
from support.paths import CHECKPOINT, ROOT
from support.programs import assert_same_output, graphs_of, make_model, random_settings
from support.toys import random_model, seeded, tiny_model

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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_rotation_has_the_same_bits_with_gradients_and_without_by_halves(dtype, autocast):
    for states, cos, sin in rotated_states(dtype, "cuda"):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            expected = rotate(states, cos, sin)
            with torch.no_grad():
                assert is_faster_by_halves(states) == (dtype != torch.float32)
                assert torch.equal(rotate(states, cos, sin), expected), (states.shape, cos.shape)


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


# ---------------------------------------------------------------------------------------------------------
# CUDA graphs
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_replayed_and_called_events_write_the_same_tokens_for_200_random_settings(part):
    draw, graphs = random.Random(part), 0
    models = [make_model(seed=seed).cuda() for seed in range(2)]
    models[1].set_attn_implementation("eager")
    for _ in range(50):
        model, settings = draw.choice(models), random_settings(draw)
        expected, *found = (model.generate(**settings, cuda_graphs=graphs) for graphs in (False, True, True))
        for each in found:
            assert_same_output(each, expected, settings, tolerance=1e-3)
        graphs += graphs_of(model)
    assert graphs > 50


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_a_second_call_launches_graphs_and_waits_for_nothing(austen, monkeypatch, settings):
    model, reveal, output = copy.deepcopy(austen).cuda(), RaddForMaskedLM._reveal, SamplerState.output
    for _ in range(3):  # a shape that comes once is called, then captured, then replayed
        evaluations = model.generate(ids(model), seed=2, return_dict_in_generate=True, **settings)
    most = int(evaluations.num_function_evaluations.max())

    def begin(*args):
        torch.cuda.set_sync_debug_mode("error")
        return reveal(*args)

    def end(*args):
        torch.cuda.set_sync_debug_mode("default")
        return output(*args)

    monkeypatch.setattr(RaddForMaskedLM, "_reveal", begin)
    monkeypatch.setattr(SamplerState, "output", end)
    try:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as seen:
            model.generate(ids(model), seed=2, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launched = {event.key: event.count for event in seen.key_averages() if "GraphLaunch" in event.key}
    assert sum(launched.values()) == most, launched


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None], ids=["float32", "bfloat16", "autocast"])
def test_replays_see_weights_as_they_are(austen, dtype):
    model = copy.deepcopy(austen).to("cuda", dtype or torch.float32)
    for _ in range(2):
        # Anew in each round: until it ends, autocast keeps casts of weights, and called events would see old ones.
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype is None):
            called, *replayed = (model.generate(length=32, seed=0, cuda_graphs=each) for each in (False, True, True))
        assert all((each == called).float().mean() > 0.9 for each in replayed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.9)
    assert graphs_of(model)


def test_the_memory_of_graphs_is_given_back(austen):
    """Keys and values alone are 268 MB here. Workspaces that cuBLAS keeps may stay."""
    model = copy.deepcopy(austen).cuda()
    settings = {"length": 128, "steps": 8, "num_return_sequences": 256}
    model.generate(cuda_graphs=False, **settings)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    model.generate(refresh_interval=4, **settings)
    assert graphs_of(model)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() > before + 200e6
    model.free_cuda_graphs()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before + 100e6
    model.generate(length=64, method="first_hitting")
    assert graphs_of(model)
    model.cpu()
    assert graphs_of(model) == 0


def test_threads_that_share_a_model_write_their_own_texts(austen):
    model = copy.deepcopy(austen).cuda()
    settings = {"length": 48, "method": "first_hitting", "num_return_sequences": 2}
    expected = [model.generate(seed=seed, cuda_graphs=False, **settings) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: model.generate(seed=seed, **settings), range(8)))
    for one, other in zip(found, expected, strict=True):
        assert (one == other).float().mean() > 0.97


def test_an_exact_likelihood_is_replays(austen):
    model = copy.deepcopy(austen).cuda()
    texts = [torch.randint(austen.config.mask_token_id, (64,), generator=seeded(row)) for row in range(3)]
    found = exact_likelihood(model, texts, "random", batch_size=16)
    assert graphs_of(model) == 1
    torch.testing.assert_close(found, exact_likelihood(austen, texts, "random", batch_size=16), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "how",
    [{"order": "confidence"}, {"order": "margin", "steps": 2}, {"entropy_bound": 0.7}, {"order": lambda *_: [0]}],
)
def test_in_an_order_that_the_model_chooses_the_probabilities_of_all_texts_sum_to_one(how):
    texts = [torch.tensor(text) for text in itertools.product(range(3), repeat=3)]
    nats = exact_likelihood(tiny_model().cuda(), texts, **how)
    assert float(nats.neg().exp().sum()) == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


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
