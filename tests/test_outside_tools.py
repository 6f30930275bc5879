# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Whoever changes a model, follows what it computes or shares it with others gets what plain torch would give.

"Plain" is the same model with everything left to torch.
"""

import threading

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from radd_hf import LikelihoodRounds, RaddForMaskedLM
from radd_hf.kernels_radd import PACKED, packed_weights
from support.toys import seeded, tiny_model

IDS = torch.tensor([[1, 2, 10, 3, 10, 4]])
LABELS = torch.tensor([[-100, -100, 5, -100, 6, -100]])
TEXTS = [torch.arange(6), torch.arange(5), torch.arange(6) + 2]


@pytest.fixture
def network() -> RaddForMaskedLM:
    return tiny_model(11, 6, seed=1)


def plain():
    return torch.backends.mkldnn.flags(enabled=False)


@torch.no_grad()
def logits(network: nn.Module) -> torch.Tensor:
    return network(input_ids=IDS).logits


# ---------------------------------------------------------------------------------------------------------
# Changed classes
# ---------------------------------------------------------------------------------------------------------


class Louder(nn.GELU):
    def forward(self, hidden):
        return 3 * super().forward(hidden)


def test_a_subclass_of_the_activation_is_used_without_gradients_too(network):
    before = logits(network)
    network.model.layers[0].mlp.act_fn = Louder(approximate="tanh")
    found = logits(network)
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, network(input_ids=IDS).logits.detach())


def test_a_patched_class_of_layers_is_used(network, monkeypatch):
    before, forward = logits(network), nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, hidden: 1.1 * forward(self, hidden))
    found = logits(network)
    assert not torch.allclose(found, before)
    with plain():
        torch.testing.assert_close(found, logits(network))


# ---------------------------------------------------------------------------------------------------------
# Derivatives of every kind
# ---------------------------------------------------------------------------------------------------------


def penalty(network: RaddForMaskedLM, by_labels: bool) -> list[torch.Tensor]:
    """The gradient of the squared gradient of the loss."""
    if by_labels:
        loss = network(input_ids=IDS, labels=LABELS).loss
    else:
        loss = F.cross_entropy(network(input_ids=IDS).logits.flatten(0, 1), LABELS.flatten(), ignore_index=-100)
    weights = [network.lm_head.weight, network.model.norm.weight, network.model.layers[1].mlp.up_proj.weight]
    first = torch.autograd.grad(loss, weights, create_graph=True)
    return list(torch.autograd.grad(sum((each**2).sum() for each in first), weights))


def test_gradients_of_gradients_of_the_loss_are_those_of_cross_entropy(network):
    network.set_attn_implementation("eager")  # the others have none on a CPU
    for found, expected in zip(penalty(network, True), penalty(network, False), strict=True):
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_a_transform_of_the_loss_is_that_of_plain_operations(network):
    network.set_attn_implementation("eager")
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(weights):
        return (
            torch.func.functional_call(network, weights, (), {"input_ids": IDS, "output_positions": None})
            .logits[..., :10]
            .square()
            .mean()
        )

    found = torch.func.grad(loss)(weights)
    network.zero_grad()
    network(input_ids=IDS).logits[..., :10].square().mean().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_forward_mode_derivatives_survive_without_gradients(network):
    network.set_attn_implementation("eager")
    embeds = network.get_input_embeddings()(IDS).detach()
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(embeds, torch.randn(embeds.shape, generator=seeded(0)))
        tangent = forward_ad.unpack_dual(network(inputs_embeds=dual).logits).tangent
    assert tangent is not None
    assert tangent[..., :10].abs().sum() > 0


@pytest.mark.filterwarnings("ignore")  # torch announces an end of tracing
def test_a_traced_network_has_its_logits(network):
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, ids):
            return self.network(input_ids=ids).logits

    with torch.no_grad():
        traced = torch.jit.trace(Logits().eval(), (IDS,), check_trace=False)
        torch.testing.assert_close(traced(IDS), network(input_ids=IDS).logits)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_on_the_output_layer_is_called(network, register):
    called = []
    getattr(network.lm_head, register)(lambda module, *gradients: called.append(module))
    network(input_ids=IDS).logits[..., :10].sum().backward()
    network(input_ids=IDS, labels=LABELS).loss.backward()
    assert called == [network.lm_head] * 2
    assert network(input_ids=IDS).logits[..., 10].isneginf().all()


# ---------------------------------------------------------------------------------------------------------
# Others who use the model at the same time
# ---------------------------------------------------------------------------------------------------------


def test_between_two_rounds_the_model_is_as_it_was(network):
    network.train()
    for _ in LikelihoodRounds(network, TEXTS, batch_size=4):
        assert network.training
        assert PACKED.get() is None


def test_rounds_of_two_estimates_by_turns_are_those_of_each_alone(network):
    network.train()
    alone = [[found.nats for found in LikelihoodRounds(network, TEXTS, seed=seed)] for seed in (0, 1)]
    together = list(zip(*(LikelihoodRounds(network, TEXTS, seed=seed) for seed in (0, 1)), strict=True))
    for estimate in (0, 1):
        assert [pair[estimate].nats for pair in together] == pytest.approx(alone[estimate])
    assert network.training


def test_an_optimizer_step_between_two_rounds_is_seen(network):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    rounds = iter(LikelihoodRounds(network, TEXTS * 4, passes=64, batch_size=4))
    next(rounds)
    network(input_ids=IDS, labels=LABELS).loss.backward()
    optimizer.step()
    found = logits(network)
    with plain():
        torch.testing.assert_close(found, logits(network), rtol=1e-4, atol=1e-4)


def test_threads_that_share_a_training_model_write_what_each_would_alone():
    network = tiny_model(11, 24, seed=1).train()
    network.model.layers[0].dropout.p = 0.5
    expected = [network.generate(length=24, seed=seed).tolist() for seed in range(6)]
    found: dict[int, list] = {}

    def write(seed: int) -> None:
        found[seed] = network.generate(length=24, seed=seed).tolist()

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(6)] == expected
    assert all(module.training for module in network.modules())


def test_packed_weights_end_also_where_a_generator_is_left_to_another_context():
    def hold():
        with packed_weights():
            yield

    held = hold()
    next(held)
    thread = threading.Thread(target=held.close)
    thread.start()
    thread.join()
    PACKED.set(None)


# ---------------------------------------------------------------------------------------------------------
# What is no value
# ---------------------------------------------------------------------------------------------------------


def test_a_model_without_weights_says_so(network):
    with pytest.raises(ValueError, match="on the device 'meta', where it has no weights"):
        network.to("meta").generate(length=4)


@pytest.mark.parametrize(
    ("processor", "message"),
    [(lambda ids, scores: None, "NoneType"), (lambda ids, scores: scores[:, :5], r"returned \(\d+, 5\)")],
)
def test_a_processor_that_returns_no_scores_is_named(network, processor, message):
    with pytest.raises(ValueError, match=f"logits_processor.*{message}"):
        network.generate(length=4, logits_processor=[processor], generator=seeded(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_se": 0.0}, "target_se=0.0 must be a positive"),
        ({"target_se": -1.0}, "target_se=-1.0 must be a positive"),
        ({"target_se": float("nan")}, "target_se=nan must be a positive"),
        (
            {"weights": torch.ones(3)},
            "add up to 3; they must be one for each of the 3 sequences, none negative, and add up to 1",
        ),
        ({"weights": torch.tensor([0.5, 0.5])}, r"shape \(2,\)"),
        ({"weights": torch.full((3,), float("nan"))}, "add up to nan"),
    ],
)
def test_an_estimate_that_could_not_be_one_is_refused(network, settings, message):
    with pytest.raises(ValueError, match=message):
        LikelihoodRounds(network, TEXTS, **settings)


def test_numbers_of_numpy_are_numbers(network):
    numpy = pytest.importorskip("numpy")
    settings = {"length": numpy.int64(6), "steps": numpy.int32(3), "temperature": numpy.float32(0.5)}
    expected = network.generate(length=6, steps=3, temperature=0.5, seed=1)
    assert torch.equal(network.generate(**settings, seed=numpy.int64(1)), expected)
