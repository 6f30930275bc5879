# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What was made fast still says the same: a slow, obvious sampler; tensors that must not exist; hosts that do not wait.

Shapes: R rows, L length, V vocabulary with the mask.
"""

import pytest
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from toys import seeded, tiny_model
from transformers import AutoTokenizer

from radd_hf import RaddForMaskedLM, generation_radd, modeling_radd
from radd_hf.generation_radd import plan_grid, plan_sequence
from radd_hf.noise_radd import get_noise, reveal_probabilities

ROWS, LENGTH, VOCABULARY = 3, 12, 11
MASK = VOCABULARY - 1
METHODS = [
    {"method": "tweedie", "steps": 5},
    {"method": "tweedie"},
    {"method": "euler", "steps": 8},
    {"method": "first_hitting"},
    {"method": "ordered", "order": "random"},
    {"method": "ordered", "order": "backward", "steps": 3},
]


def model() -> RaddForMaskedLM:
    return tiny_model(VOCABULARY, LENGTH, noise_type="geometric", seed=1)


def canvas() -> torch.Tensor:
    """Three rows with different numbers of masks."""
    ids = torch.randint(MASK, (ROWS, LENGTH), generator=seeded(0))
    masked = torch.rand(ROWS, LENGTH, generator=seeded(1)) < torch.tensor([[0.3], [0.6], [1.0]])
    return ids.masked_fill(masked, MASK)


@torch.no_grad()
def sample_slowly(network, ids: torch.Tensor, plan: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Row by row, step by step, token by token; logits of all positions, sums of probabilities by hand."""
    ids = ids.clone()
    for row in range(len(ids)):
        for step in sorted(set(plan[row].tolist()) - {-1}):
            law = network(input_ids=ids[row : row + 1]).logits[0].double().softmax(dim=-1)  # (L, V)
            for position in (plan[row] == step).nonzero().flatten().tolist():
                token, left = 0, float(uniform[row, position])
                while left >= (probability := float(law[position, token])):
                    token, left = token + 1, left - probability
                ids[row, position] = token
    return ids


def plan_and_uniforms(network, ids: torch.Tensor, method: str, steps: int | None = None, order: str | None = None):
    """With the random numbers that `generate` draws from the same generator."""
    generator = seeded(3)
    masked, draw = ids == MASK, lambda: torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    if method in ("tweedie", "euler"):
        plan = plan_grid(masked, reveal_probabilities(get_noise(network.config), method, steps or LENGTH), draw())
    elif order == "backward":
        plan = plan_sequence(masked, torch.arange(LENGTH).flip(0).expand(ids.shape), steps)
    else:
        plan = plan_sequence(masked, draw())
    return plan, draw()


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_the_tokens_are_those_of_a_slow_and_obvious_sampler(settings):
    network, ids = model(), canvas()
    expected = sample_slowly(network, ids, *plan_and_uniforms(network, ids, **settings))
    assert torch.equal(network.generate(ids, generator=seeded(3), **settings), expected)


class Watch(TorchDispatchMode):
    """Every operation, and the most elements of a tensor that one of them returned."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.names.append(str(operation.overloadpacket))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor):
                # What an expanded view shows is not there: count what its memory holds (oneDNN's does not show it).
                held = each.numel() if each.is_mkldnn else each.untyped_storage().nbytes() // each.element_size()
                self.largest = max(self.largest, held)
        return result


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
        nll = modeling_radd.TokenNLL.apply(logits, torch.arange(50))
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
    nll = modeling_radd.TokenNLL.apply(ours, target)
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
    watch, make_schedule, check = Watch(), generation_radd.make_schedule, generation_radd._Scores.check

    def begin(*args):
        schedule = make_schedule(*args)
        watch.__enter__()
        return schedule

    def end(scores):
        watch.__exit__(None, None, None)
        check(scores)

    monkeypatch.setattr(generation_radd, "make_schedule", begin)
    monkeypatch.setattr(generation_radd._Scores, "check", end)
    model().generate(canvas(), generator=seeded(0), **settings)
    waits = {"aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.masked_select"}
    assert "aten.embedding" in watch.names
    assert not waits & set(watch.names)


def test_bfloat16_scores_a_text_within_half_a_percent_of_float32():
    """Of the shipped checkpoint: nats of a text, half of it masked."""
    folder = ROOT / "checkpoints" / "radd-austen"
    network = RaddForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    text = (ROOT / "README.md").read_text()
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(text, return_tensors="pt")["input_ids"]
    ids = ids[0, : 8 * 128].view(8, 128)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=seeded(1)) < 0.5, -100)
    inputs = {"input_ids": ids.masked_fill(labels != -100, network.config.mask_token_id), "labels": labels}
    with torch.no_grad():
        exact = network(**inputs).token_nll
        rounded = network.to(torch.bfloat16)(**inputs).token_nll
    assert float(rounded.sum() / exact.sum()) == pytest.approx(1, abs=0.005)
