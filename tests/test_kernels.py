# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Layers that multiply by oneDNN, weights in its layout and dropout with fewer random bits are torch's but for speed.

Where oneDNN is not chosen (no AVX-512, another device), most of these compare torch with itself and hold all the same.
Shapes: M rows, D_in and D_out the widths of a layer.
"""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from radd_hf import RaddForMaskedLM, kernels_radd
from radd_hf.kernels_radd import (
    EVALUATIONS_TO_PACK,
    PACKED,
    Dropout,
    evaluation_mode,
    linear,
    packed_weights,
    recomputed,
)
from radd_hf.likelihood import LikelihoodRounds, estimate_likelihood, exact_likelihood
from radd_hf.modeling_radd import RaddMLP
from support.spies import Watch
from support.toys import random_model, seeded, tiny_model

TANH_GELU = nn.GELU(approximate="tanh")
D_IN, D_OUT = 24, 1100  # more outputs than are taken at once in the gradient of a weight
needs_onednn = pytest.mark.skipif(
    kernels_radd.onednn_dtype(nn.Linear(4, 4), torch.ones(1, 4)) is None,
    reason="torch multiplies float32 its own way here",
)


class Ours(nn.Module):
    """A plain layer that is called by `linear`."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, activation: nn.Module | None = None) -> torch.Tensor:
        return linear(self.layer, hidden, activation)

    def named_parameters(self, *args, **kwargs):
        return self.layer.named_parameters()


def layers(bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Ours, nn.Linear]:
    """Ours and torch's, of the same weights."""
    torch.manual_seed(0)
    layer = nn.Linear(D_IN, D_OUT, bias=bias, dtype=dtype)
    return Ours(layer), copy.deepcopy(layer)


def hidden_states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D_IN, generator=seeded(1))


SHAPES = [(), (1,), (5,), (2, 3), (2, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_the_product_is_that_of_torch(shape, bias, dtype):
    ours, theirs = layers(bias, dtype)
    hidden = hidden_states(*shape).to(dtype)
    torch.testing.assert_close(ours(hidden), theirs(hidden))
    assert ours(hidden).shape == (*shape, D_OUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_gelu_in_the_same_pass_is_no_worse_than_one_behind_it(dtype):
    ours, theirs = layers(dtype=dtype)
    hidden = 3 * hidden_states(50).to(dtype)
    exact = F.gelu(copy_of(theirs, torch.float64)(hidden.double()), approximate="tanh")
    error = (ours(hidden, TANH_GELU) - exact).norm()
    assert error <= 1.1 * (F.gelu(theirs(hidden), approximate="tanh") - exact).norm() + 1e-6


def copy_of(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    copy = nn.Linear(D_IN, D_OUT, dtype=dtype)
    copy.load_state_dict(layer.state_dict())
    return copy


def gradients(layer: nn.Linear, hidden: torch.Tensor, autocast: bool = False) -> dict[str, torch.Tensor]:
    hidden = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(hidden)
    (output.float() ** 2).sum().backward()
    return {"hidden": hidden.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_torch(shape, bias):
    ours, theirs = (gradients(layer, hidden_states(*shape)) for layer in layers(bias))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-4, msg=name)
        assert ours[name].is_contiguous()


def test_gradients_under_autocast_are_those_of_torch_in_float32():
    ours, theirs = (gradients(layer, hidden_states(7), autocast=True) for layer in layers())
    for name in ours:
        assert ours[name].dtype == torch.float32
        assert (ours[name] - theirs[name]).norm() < 0.01 * theirs[name].norm(), name


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias", "weight and hidden"])
def test_what_needs_no_gradient_gets_none_and_the_rest_the_same(frozen):
    def run(layer: nn.Module) -> list[torch.Tensor | None]:
        hidden = hidden_states(4).requires_grad_("hidden" not in frozen)
        weight, bias = layer.parameters()
        weight.requires_grad_("weight" not in frozen)
        bias.requires_grad_("bias" not in frozen)
        (layer(hidden) ** 2).sum().backward()
        return [hidden.grad, weight.grad, bias.grad]

    ours, theirs = (run(layer) for layer in layers())
    for mine, torchs in zip(ours, theirs, strict=True):
        assert (mine is None) == (torchs is None)
        if mine is not None:
            torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-4)


def test_gradients_of_gradients_are_those_of_torch():
    def penalty(layer: nn.Linear) -> list[torch.Tensor]:
        hidden = hidden_states(4).requires_grad_()
        inputs = [hidden, *layer.parameters()]
        first = torch.autograd.grad((layer(hidden) ** 3).sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum((each**2).sum() for each in first), inputs))

    for ours, theirs in zip(*(penalty(layer) for layer in layers()), strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_a_hook_on_the_product_survives_that_its_memory_is_written_to(shape):
    """As `compute_logits` does, and `fully_shard` relies on such hooks."""
    ours, _ = layers()
    output, called = ours(hidden_states(*shape)), []
    output.register_hook(lambda grad: called.append(grad.shape))
    output.detach().select(-1, 3).fill_(0.0)
    (output * 2).sum().backward()
    assert called == [output.shape]


def test_transforms_of_functions_see_torchs_layer():
    ours, _ = layers()
    hidden = hidden_states(3)

    def loss(weight: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return (torch.func.functional_call(ours, {"layer.weight": weight}, (row,)) ** 2).sum()

    weight = ours.layer.weight.detach()
    of_each_row = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, hidden)
    torch.testing.assert_close(of_each_row.sum(dim=0), torch.func.grad(loss)(weight, hidden))
    _, slope = torch.func.jvp(lambda row: loss(weight, row), (hidden,), (torch.ones_like(hidden),))
    torch.testing.assert_close(slope, torch.func.grad(loss, argnums=1)(weight, hidden).sum())


@torch.no_grad()
def test_it_can_be_turned_off():
    ours, theirs = layers()
    with torch.backends.mkldnn.flags(enabled=False), Watch() as watch:
        assert torch.equal(ours(hidden_states(6)), theirs(hidden_states(6)))
    assert not any("mkldnn" in name for name in watch.names)


@needs_onednn
def test_float32_is_multiplied_by_onednn_forward_and_backward():
    ours, _ = layers()
    with Watch() as watch:
        (ours(hidden_states(6).requires_grad_()) ** 2).sum().backward()
    assert watch.names.count("mkldnn._linear_pointwise") == 4  # the product, its input's gradient, two parts of one
    assert not {"aten.mm", "aten.addmm", "aten.linear"} & set(watch.names)


@needs_onednn
def test_what_is_computed_again_ends_before_the_product():
    ours, _ = layers()
    norm = nn.LayerNorm(D_IN)
    with Watch() as watch:
        recomputed(lambda hidden: ours(norm(hidden)), hidden_states(6).requires_grad_()).sum().backward()
    assert watch.names.count("aten.native_layer_norm") == 2
    assert watch.names.count("mkldnn._linear_pointwise") == 4  # as without


@needs_onednn
def test_autocast_keeps_no_rounded_copy_of_the_weights():
    ours, _ = layers()
    kept: list[torch.Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        output = ours(hidden_states(6).requires_grad_())
    assert output.dtype == torch.bfloat16
    own = {parameter.data_ptr() for parameter in ours.parameters()}
    assert [tensor.shape for tensor in kept if tensor.data_ptr() not in own] == [(6, D_IN)]


# ---------------------------------------------------------------------------------------------------------
# An activation that is not computed by itself, and those who want to see it
# ---------------------------------------------------------------------------------------------------------


def mlp() -> RaddMLP:
    return tiny_model(11, 8, seed=1).model.layers[0].mlp


def norm(hidden: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:])


def apply(layer: RaddMLP) -> torch.Tensor:
    return layer(torch.randn(3, layer.up_proj.in_features, generator=seeded(0)), norm)


def test_without_gradients_the_mlp_is_the_same():
    layer = mlp()
    with torch.no_grad():
        got = apply(layer)
    torch.testing.assert_close(got, apply(layer).detach())


@pytest.mark.parametrize("where", ["up_proj", "act_fn"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_sees_what_it_would_see_with_gradients(where, register):
    layer, seen = mlp(), []
    getattr(getattr(layer, where), register)(lambda module, inputs, *output: seen.append((*inputs, *output)))
    with torch.no_grad():
        apply(layer)
    apply(layer)
    for got, expected in zip(*seen[:2], strict=True):
        torch.testing.assert_close(got, expected.detach())


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()], ids=str)
def test_another_activation_is_used(activation):
    layer = mlp()
    before = apply(layer).detach()
    layer.act_fn = activation
    with torch.no_grad():
        got = apply(layer)
    assert not torch.allclose(got, before, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got, apply(layer).detach(), rtol=1e-6, atol=1e-7)


def test_an_adapter_adds_before_the_activation():
    network = tiny_model(11, 8, seed=1)
    settings = peft.LoraConfig(target_modules=["up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(network, settings)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        got = adapted(input_ids=ids).logits
    torch.testing.assert_close(got, adapted(input_ids=ids).logits.detach())
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(got, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_a_build_without_onednn_has_torchs_layer(monkeypatch):
    monkeypatch.setattr(kernels_radd, "ONEDNN_LINEAR", None)
    ours, theirs = layers()
    assert torch.equal(ours(hidden_states(6)), theirs(hidden_states(6)))


# ---------------------------------------------------------------------------------------------------------
# Weights in oneDNN's layout
# ---------------------------------------------------------------------------------------------------------

PACK = "mkldnn._reorder_linear_weight"


@pytest.fixture
def network() -> RaddForMaskedLM:
    return tiny_model(11, 8, seed=1)


def packs() -> dict:
    """The packed weights of the context that is open."""
    return PACKED.get() or {}


def number_of_layers(network: RaddForMaskedLM) -> int:
    return 4 * network.config.num_hidden_layers + 1


@torch.no_grad()
def logits(network: nn.Module) -> torch.Tensor:
    return network(input_ids=torch.arange(8)[None]).logits


@pytest.mark.parametrize("activation", [None, TANH_GELU], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_a_packed_weight_gives_the_same(dtype, bias, activation):
    ours, _ = layers(bias, dtype)
    hidden = hidden_states(2, 3).to(dtype)
    before = ours(hidden, activation)
    with packed_weights():
        torch.testing.assert_close(ours(hidden, activation), before)
        by_columns = hidden[0].t().contiguous().t()
        torch.testing.assert_close(ours(by_columns, activation), before[0])


@needs_onednn
@torch.no_grad()
def test_a_weight_is_packed_in_the_dtype_of_the_product():
    ours, _ = layers()
    hidden = hidden_states(5)
    with packed_weights():
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(hidden).dtype == torch.bfloat16
        assert packs()[ours.layer].weight.dtype == torch.bfloat16
        assert ours(hidden).dtype == packs()[ours.layer].weight.dtype == torch.float32


def write(layer: nn.Linear) -> None:
    layer.weight.mul_(2)


def load(layer: nn.Linear) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def replace(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(2 * layer.weight)


def replace_data(layer: nn.Linear) -> None:
    layer.weight.data = 2 * layer.weight


def replace_in_inference_mode(layer: nn.Linear) -> None:
    with torch.inference_mode():
        layer.weight = nn.Parameter(2 * layer.weight, requires_grad=False)


@pytest.mark.parametrize("change", [write, load, replace, replace_data, replace_in_inference_mode])
@torch.no_grad()
def test_a_weight_that_changed_is_used_as_it_is(change):
    ours, theirs = layers()
    with packed_weights():
        ours(hidden_states(4))
        for _ in range(4):  # the memory of one that is gone may become that of the next
            change(ours.layer)
            theirs.load_state_dict(ours.layer.state_dict())
            torch.testing.assert_close(ours(hidden_states(4)), theirs(hidden_states(4)))


@torch.no_grad()
def test_a_weight_of_inference_mode_is_not_packed():
    ours, theirs = layers()
    replace_in_inference_mode(ours.layer)
    replace_in_inference_mode(theirs)
    with packed_weights():
        torch.testing.assert_close(ours(hidden_states(4)), theirs(hidden_states(4)))
        assert not packs()


def test_gradients_are_those_of_the_parameter_though_it_is_packed():
    ours, theirs = layers()
    with packed_weights():
        with torch.no_grad():
            ours(hidden_states(4))
        got, expected = (gradients(layer, hidden_states(4)) for layer in (ours, theirs))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-4)


@needs_onednn
def test_weights_are_packed_while_it_lasts_and_no_longer(network):
    before = logits(network)
    with packed_weights():
        torch.testing.assert_close(logits(network), before)
        assert len(packs()) == number_of_layers(network)
        with packed_weights():
            pass
        assert len(packs()) == number_of_layers(network)  # they belong to the outer one
    assert PACKED.get() is None
    with pytest.raises(ValueError, match="attention_mask has shape"), packed_weights():
        network(input_ids=torch.tensor([[1, 2]]), attention_mask=torch.ones(2, 3))
    assert PACKED.get() is None
    with packed_weights(EVALUATIONS_TO_PACK - 1):
        logits(network)
        assert not packs()


@needs_onednn
def test_every_thread_packs_its_own_and_they_do_not_disturb_each_other(network):
    expected, found = logits(network), []

    def other() -> None:
        with packed_weights():
            found.append(logits(network))
            found.append(len(packs()))

    thread = threading.Thread(target=other)
    with packed_weights():
        thread.start()
        thread.join()
        assert not packs()
        torch.testing.assert_close(logits(network), expected)
    torch.testing.assert_close(found[0], expected)
    assert found[1] == number_of_layers(network)


def test_a_copy_made_meanwhile_is_a_model_like_any_other(network, tmp_path):
    with packed_weights():
        expected = logits(network)
        copied = copy.deepcopy(network)
        network.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(copied), expected)
    assert copied.state_dict().keys() == network.state_dict().keys()


def use_generate(network: RaddForMaskedLM, evaluations: int) -> torch.Tensor:
    return network.generate(length=evaluations, method="ordered", order="random", generator=seeded(3))


def use_every_step(network: RaddForMaskedLM, evaluations: int) -> torch.Tensor:
    return network.generate(length=4, steps=evaluations, use_cache=False, generator=seeded(3))


def use_exact_likelihood(network: RaddForMaskedLM, evaluations: int) -> torch.Tensor:
    return exact_likelihood(network, [torch.arange(evaluations) % 10], "random", batch_size=1)


def use_estimate(network: RaddForMaskedLM, evaluations: int) -> torch.Tensor:
    texts = [torch.arange(8)] * (evaluations // 2)
    return torch.tensor(estimate_likelihood(network, texts, passes=2, batch_size=1).nats_per_token)


def use_texts_of_all_lengths(network: RaddForMaskedLM, evaluations: int) -> torch.Tensor:
    texts = [torch.arange(length + 1) % 10 for length in range(evaluations)]
    return torch.tensor(estimate_likelihood(network, texts, passes=2, batch_size=2).nats_per_token)


@needs_onednn
@pytest.mark.parametrize(
    "use", [use_generate, use_every_step, use_exact_likelihood, use_estimate, use_texts_of_all_lengths]
)
def test_many_evaluations_pack_the_weights_once_few_do_not_and_nothing_else_changes(network, use, monkeypatch):
    with Watch() as watch:
        result = use(network, EVALUATIONS_TO_PACK)
    assert watch.names.count(PACK) == number_of_layers(network)
    with Watch() as watch:
        use(network, EVALUATIONS_TO_PACK - 2)
    assert PACK not in watch.names
    monkeypatch.setattr(kernels_radd, "packed_weights", lambda *args: nullcontext())
    torch.testing.assert_close(result, use(network, EVALUATIONS_TO_PACK), rtol=1e-6, atol=0)


def test_layers_below_an_adapter_are_not_packed_since_it_writes_to_them_unnoticed(network):
    base = logits(network)
    settings = peft.LoraConfig(target_modules=["up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(network, settings).eval()
    adapted.merge_adapter()
    merged = logits(adapted)
    with packed_weights():
        torch.testing.assert_close(logits(adapted), merged)
        assert not any("base_layer" in name for name, module in adapted.named_modules() if module in packs())
        with adapted.disable_adapter():
            torch.testing.assert_close(logits(adapted), base)
    assert not torch.allclose(merged, base)


# ---------------------------------------------------------------------------------------------------------
# Layers that somebody has changed
# ---------------------------------------------------------------------------------------------------------


def forward_hook(layer: nn.Module, seen: list):
    return layer.register_forward_hook(lambda module, inputs, output: seen.append(module))


def pre_hook(layer: nn.Module, seen: list):
    return layer.register_forward_pre_hook(lambda module, inputs: seen.append(module))


def hook_of_all_modules(layer: nn.Module, seen: list):
    return register_module_forward_hook(lambda module, inputs, output: seen.append(module))


@pytest.mark.parametrize("register", [forward_hook, pre_hook, hook_of_all_modules])
def test_a_hook_is_called_with_every_product(register):
    layer, seen = nn.Linear(D_IN, D_OUT), []
    handle = register(layer, seen)
    with torch.no_grad():
        linear(layer, hidden_states(3))
    linear(layer, hidden_states(3))
    handle.remove()
    assert seen.count(layer) == 2
    linear(layer, hidden_states(3))
    assert seen.count(layer) == 2


def test_a_forward_that_was_replaced_is_called_as_offloading_needs_it():
    layer = nn.Linear(D_IN, D_OUT)
    layer.forward = lambda hidden: torch.zeros(len(hidden), 2)
    assert linear(layer, hidden_states(3)).shape == (3, 2)


def test_a_subclass_is_called_since_nobody_knows_what_it_does():
    class Doubled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    layer = Doubled(D_IN, 5)
    torch.testing.assert_close(linear(layer, hidden_states(3)), layer(hidden_states(3)))


def test_every_product_of_the_network_is_a_plain_linear_layer(network):
    names = ("qkv_proj", "o_proj", "up_proj", "down_proj", "lm_head")
    found = [module for name, module in network.named_modules() if name.endswith(names)]
    assert len(found) == number_of_layers(network)
    assert all(type(module) is nn.Linear for module in found)


# ---------------------------------------------------------------------------------------------------------
# Evaluation mode
# ---------------------------------------------------------------------------------------------------------


def modes(network: nn.Module) -> list[bool]:
    return [module.training for module in network.modules()]


def test_afterwards_every_module_is_in_the_mode_it_was_in_before(network):
    network.train()
    network.model.layers[0].eval()  # frozen by somebody
    before = modes(network)
    with evaluation_mode(network):
        assert not any(modes(network))
    assert modes(network) == before
    with pytest.raises(KeyError), evaluation_mode(network):
        raise KeyError
    assert modes(network) == before


def test_whoever_leaves_first_changes_no_mode_for_the_others_whatever_part_each_evaluates(network):
    wrapper = nn.ModuleDict({"network": network})
    wrapper.train()
    network.model.layers[0].eval()
    before = modes(wrapper)
    contexts = [evaluation_mode(part) for part in (wrapper, network, network.model, network)]
    for context in contexts:
        context.__enter__()
    for context in contexts:
        assert not any(modes(network.model))
        context.__exit__(None, None, None)
    assert modes(wrapper) == before


def test_a_compiled_wrapper_has_the_mode_of_what_it_wraps_afterwards(network):
    network.train()
    with evaluation_mode(torch.compile(network, backend="eager")):
        assert not any(modes(network))
    assert all(modes(network))


def test_threads_that_write_with_a_training_model_do_so_without_dropout(network):
    """Eight at a time, beside one that meets an error and one that leaves its rounds half-way."""
    model = random_model(vocab_size=30, max_position_embeddings=16, hidden_dropout=0.5)
    expected = [model.eval().generate(seed=seed) for seed in range(8)]
    model.train()
    model.model.layers[0].eval()
    before = modes(model)

    def write(seed: int) -> None:
        for _ in range(4):
            assert torch.equal(model.generate(seed=seed), expected[seed])

    def fail() -> None:
        for _ in range(4):
            with pytest.raises(ZeroDivisionError):
                model.generate(seed=0, logits_processor=[lambda ids, scores: 1 / 0])

    def leave() -> None:
        for _ in range(4):
            next(iter(LikelihoodRounds(model, [torch.arange(9)], passes=4)))

    with ThreadPoolExecutor(10) as threads:
        work = [threads.submit(write, seed) for seed in range(8)] + [threads.submit(fail), threads.submit(leave)]
        for each in work:
            each.result()
    assert modes(model) == before


def failing(*args, **kwargs):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    "use",
    [
        lambda network: estimate_likelihood(network, [torch.arange(6)], passes=2),
        lambda network: exact_likelihood(network, [torch.arange(6)]),
        lambda network: network.generate(length=6, seed=0),
    ],
)
def test_a_training_model_is_still_training_after_an_error(network, use, monkeypatch):
    network.train()
    monkeypatch.setattr(network.model, "_run_layers", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        use(network)
    assert all(modes(network))


# ---------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------


def dropped(p: float, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return Dropout(p)(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_as_often_as_said_and_keeps_the_mean(p):
    output = dropped(p, 400, 1000)
    standard_error = (p * (1 - p) / output.numel()) ** 0.5
    assert abs(float((output == 0).double().mean()) - p) < 4 * standard_error
    assert output.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)
    assert abs(float(output.double().mean()) - 1) < 4 * standard_error / (1 - p)


def test_what_dropout_draws_at_once_is_independent():
    """Four values come from one random number: all patterns of four are as frequent as if they did not."""
    p, groups = 0.3, 200_000
    kept = (dropped(p, groups, 4) != 0).long()
    frequency = (kept @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16).double() / groups
    ones = torch.tensor([bin(pattern).count("1") for pattern in range(16)]).double()
    expected = (1 - p) ** ones * p ** (4 - ones)
    assert ((frequency - expected).abs() < 4.5 * (expected * (1 - expected) / groups).sqrt()).all()


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 5), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_takes_every_shape(shape, dtype):
    output = dropped(0.5, *shape, dtype=dtype)
    assert (output.shape, output.dtype) == (shape, dtype)
    assert set(output.flatten().tolist()) <= {0.0, 2.0}


def test_dropout_lets_gradients_through_where_it_kept_and_all_or_nothing_at_the_ends():
    hidden = torch.randn(50, 10, requires_grad=True)
    output = Dropout(0.25)(hidden)
    output.sum().backward()
    torch.testing.assert_close(hidden.grad, (output != 0) / 0.75)
    assert torch.equal(dropped(0.0, 9, 9), torch.ones(9, 9))
    assert torch.equal(dropped(1.0, 9, 9), torch.zeros(9, 9))
    assert torch.equal(Dropout(0.5).eval()(hidden), hidden)


def test_dropout_is_repeated_by_torchs_seed_and_by_recomputation():
    assert torch.equal(dropped(0.5, 30, 30), dropped(0.5, 30, 30))
    masks: list[torch.Tensor] = []

    def drop(hidden: torch.Tensor) -> torch.Tensor:
        output = Dropout(0.5)(hidden)
        masks.append((output != 0).detach())
        return output.exp()

    recomputed(drop, torch.ones(30, 30, requires_grad=True)).sum().backward()
    assert torch.equal(*masks)
