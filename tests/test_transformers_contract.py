# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What a user of transformers may take for granted about a model, held against RADD.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from radd_hf import RaddConfig, RaddForMaskedLM, RaddModel, modeling_radd

GOLDEN = Path(__file__).parent / "golden"
V, D, LAYERS, H, L = 48, 32, 3, 4, 12
MASK = V - 1
DTYPE_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
EVERY_ATTENTION = ("eager", "sdpa", "flex_attention", "stand_in")


def make_config(**overrides):
    sizes = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H}
    return RaddConfig(**(sizes | {"max_position_embeddings": 32, "hidden_dropout": 0.0} | overrides))


def make_model(cls=RaddForMaskedLM, attention="sdpa", seed=0, **overrides):
    """A small model in which every parameter matters: the paper's output layer, zeros, would hide everything."""
    torch.manual_seed(seed)
    model = cls._from_config(make_config(**overrides), attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 / math.sqrt(parameter.shape[1]) if "lm_head" not in name else 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def copy_with_attention(model, attention):
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(attention)
    return twin


def draw_ids(batch=3, length=L, seed=1, vocab_size=V):
    """Ids (B, L), about 40 % of them masks."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size - 1, (batch, length), generator=generator)
    return ids.masked_fill(torch.rand(batch, length, generator=generator) < 0.4, vocab_size - 1)


def draw_labels(ids, fraction=0.4, seed=2):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(V - 1, ids.shape, generator=generator)
    return clean.masked_fill(torch.rand(ids.shape, generator=generator) >= fraction, -100)


def pad(row, side, total=L, value=7):
    """(l,) -> ids (total,) and attention mask (total,), the padding an ordinary token so that it could do harm."""
    filler = torch.full((total - len(row),), value)
    real = torch.ones(len(row), dtype=torch.long)
    parts, mask = (row, filler), (real, torch.zeros_like(filler))
    if side == "left":
        parts, mask = parts[::-1], mask[::-1]
    return torch.cat(parts), torch.cat(mask)


def padded_batch(side, lengths=(12, 7, 1)):
    rows = [draw_ids(1, length, seed=10 + length)[0] for length in lengths]
    ids, masks = zip(*(pad(row, side) for row in rows), strict=True)
    return rows, torch.stack(ids), torch.stack(masks)


def finite(logits):
    """Without the mask column, whose -inf is checked elsewhere and spoils differences."""
    return logits[..., :MASK].float()


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def masked_lm_loss(logits, labels):
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def flash_calls(monkeypatch):
    """Stands in for flash attention (which needs a GPU), and writes down how it was called.

    Like the real one it takes a 2D mask of keys, and puts fewer queries than keys at the END of the row.
    """
    calls = []

    def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        shapes = {"query": tuple(query.shape), "key": tuple(key.shape), "value": tuple(value.shape)}
        causal = module.is_causal if is_causal is None else is_causal
        calls.append(shapes | {"causal": causal, "mask": attention_mask, "dropout": dropout, "kwargs": kwargs})
        allowed = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
        return output.transpose(1, 2), None

    for name in ("flash_attention_2", "stand_in"):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, attend)
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, flash_attention_mask)
    return calls


@pytest.fixture
def uncompiled_flex():
    """flex_attention as written out in PyTorch: the same call and result without half a minute of compilation."""
    with torch.compiler.set_stance("force_eager"):
        yield


# ---------------------------------------------------------------------------------------------------------
# Attention implementations
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["eager", "stand_in"])
def test_every_attention_gives_the_logits_of_sdpa(model, flash_calls, attention, dtype, padding):
    _, ids, mask = padded_batch(padding or "right")
    mask = mask if padding else torch.ones_like(mask)
    sdpa = copy.deepcopy(model).to(dtype)
    other = copy_with_attention(sdpa, attention)
    with torch.no_grad():
        expected, got = (m(ids, attention_mask=mask).logits for m in (sdpa, other))
    assert got.dtype == dtype
    real = mask.bool()
    difference = (finite(expected) - finite(got))[real].norm() / finite(expected)[real].norm()
    assert difference < DTYPE_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
def test_half_precision_stays_near_single_precision(model, dtype):
    ids = draw_ids()
    with torch.no_grad():
        reference, rounded = model(ids).logits, copy.deepcopy(model).to(dtype)(ids).logits
    assert (finite(rounded) - finite(reference)).norm() / finite(reference).norm() < DTYPE_TOLERANCE[dtype]


def test_flex_attention_gives_the_logits_of_sdpa_with_and_without_padding(model, uncompiled_flex):
    flex = copy_with_attention(model, "flex_attention")
    _, ids, mask = padded_batch("left")
    positions = torch.tensor([[0, 11], [11, 5], [11, 11]])
    with torch.no_grad():
        for arguments in ({"attention_mask": mask}, {"attention_mask": mask, "output_positions": positions}, {}):
            expected, got = model(ids, **arguments).logits, flex(ids, **arguments).logits
            if "output_positions" not in arguments and arguments:
                expected, got = expected[mask.bool()], got[mask.bool()]
            torch.testing.assert_close(finite(got), finite(expected), rtol=1e-4, atol=1e-4)


def test_flash_attention_is_called_as_it_expects(model, flash_calls):
    flash = copy.deepcopy(model)
    flash.config._attn_implementation = "flash_attention_2"  # set_attn_implementation asks for the package
    _, ids, mask = padded_batch("left")
    flash(ids)
    flash(ids, attention_mask=torch.ones_like(mask))
    assert len(flash_calls) == 2 * LAYERS
    for call in flash_calls:
        assert call["query"] == call["key"] == call["value"] == (3, H, L, D // H)
        assert call["causal"] is False
        assert call["mask"] is None, "without padding flash attention takes its fast path"
        assert call["dropout"] == 0.0
        assert "position_ids" not in call["kwargs"], "flash attention would take them for packed sequences"
    flash_calls.clear()
    flash(ids, attention_mask=mask)
    for call in flash_calls:
        assert call["mask"].shape == (3, L)
        assert torch.equal(call["mask"].long(), mask)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("ask", ["indices", "mask", "labels"])
def test_flash_attention_always_gets_as_many_queries_as_keys(model, flash_calls, ask, padding):
    flash = copy.deepcopy(model)
    flash.config._attn_implementation = "flash_attention_2"
    _, ids, mask = padded_batch(padding or "right")
    mask = mask if padding else None
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    labels = draw_labels(ids).masked_fill(~real, -100)
    positions = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.5) & real
    if ask == "indices":
        positions = torch.stack([row.nonzero()[[0, -1], 0] for row in real])
    arguments = {"labels": labels} if ask == "labels" else {"output_positions": positions}
    got, expected = flash(ids, mask, **arguments), model(ids, mask, **arguments)
    assert all(call["query"] == call["key"] == (3, H, L, D // H) for call in flash_calls)
    if ask == "labels":
        torch.testing.assert_close(got.token_nll, expected.token_nll, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(finite(got.logits), finite(expected.logits), rtol=1e-4, atol=1e-4)


def test_an_attention_registered_by_the_user_is_found_by_name(flash_calls):
    model = make_model(attention="stand_in")
    model(draw_ids())
    assert len(flash_calls) == LAYERS


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        make_model(attention="nonsense")


def test_attention_looks_both_ways(model):
    ids = draw_ids(1)
    for attention in ("eager", "sdpa"):
        net = copy_with_attention(model, attention)
        for position in (0, L - 1):
            changed = ids.clone()
            changed[0, position] = (ids[0, position] + 1) % MASK
            moved = (finite(net(ids).logits) - finite(net(changed).logits)).abs().amax(dim=-1)[0]
            assert (moved > 1e-4).all(), f"{attention}: a change at {position} is not felt everywhere"


# ---------------------------------------------------------------------------------------------------------
# Padding and batching
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", EVERY_ATTENTION)
@pytest.mark.usefixtures("uncompiled_flex")
def test_a_padded_row_equals_the_row_alone(model, flash_calls, attention, side):
    net = copy_with_attention(model, attention)
    rows, ids, mask = padded_batch(side)
    with torch.no_grad():
        together = net(ids, attention_mask=mask).logits
        for row, alone in enumerate(rows):
            expected = model(alone[None]).logits[0]
            torch.testing.assert_close(finite(together[row][mask[row].bool()]), finite(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", EVERY_ATTENTION)
@pytest.mark.usefixtures("uncompiled_flex")
def test_a_padded_row_equals_the_row_alone_at_output_positions(model, flash_calls, attention, side):
    net = copy_with_attention(model, attention)
    rows, ids, mask = padded_batch(side)
    with torch.no_grad():
        got = net(ids, attention_mask=mask, output_positions=mask.bool()).logits
        expected = torch.cat([model(alone[None]).logits[0] for alone in rows])
        torch.testing.assert_close(finite(got), finite(expected), rtol=1e-4, atol=1e-4)
        last = torch.stack([row.nonzero()[-1] for row in mask])  # (B, 1)
        got = net(ids, attention_mask=mask, output_positions=last).logits[:, 0]
        expected = torch.stack([model(alone[None]).logits[0, -1] for alone in rows])
        torch.testing.assert_close(finite(got), finite(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", EVERY_ATTENTION)
@pytest.mark.usefixtures("uncompiled_flex")
def test_a_padded_row_has_the_likelihood_of_the_row_alone(model, flash_calls, attention, side):
    net = copy_with_attention(model, attention)
    rows, ids, mask = padded_batch(side)
    labels = draw_labels(ids, fraction=0.7).masked_fill(mask == 0, -100)
    with torch.no_grad():
        together = net(ids, attention_mask=mask, labels=labels)
        for row, alone in enumerate(rows):
            expected = model(alone[None], labels=labels[row][mask[row].bool()][None])
            torch.testing.assert_close(together.sequence_nll[row], expected.sequence_nll[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_padded_row_equals_the_row_alone_in_half_precision(model, dtype, side):
    net = copy.deepcopy(model).to(dtype)
    rows, ids, mask = padded_batch(side)
    with torch.no_grad():
        together = finite(net(ids, attention_mask=mask).logits)
        for row, alone in enumerate(rows):
            expected = finite(net(alone[None]).logits[0])
            got = together[row][mask[row].bool()]
            assert (got - expected).norm() / expected.norm() < DTYPE_TOLERANCE[dtype]


def test_a_row_does_not_depend_on_its_neighbours(model):
    ids = draw_ids(5)
    labels = draw_labels(ids)
    with torch.no_grad():
        batch, batch_loss = model(ids).logits, model(ids, labels=labels).sequence_nll
        for row in range(5):
            one = slice(row, row + 1)
            torch.testing.assert_close(finite(batch[one]), finite(model(ids[one]).logits), rtol=1e-4, atol=1e-5)
            alone = model(ids[one], labels=labels[one]).sequence_nll
            torch.testing.assert_close(batch_loss[one], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_the_attention_mask_may_have_any_usual_dtype(model, dtype):
    _, ids, mask = padded_batch("left")
    with torch.no_grad():
        expected, got = model(ids, attention_mask=mask).logits, model(ids, attention_mask=mask.to(dtype)).logits
    assert torch.equal(got, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_nothing_but_padding_spoils_nothing(model, attention):
    net = copy_with_attention(model, attention)
    ids = draw_ids(2)
    mask = torch.ones_like(ids)
    mask[1] = 0
    logits = net(ids, attention_mask=mask).logits
    torch.testing.assert_close(finite(logits[:1]), finite(model(ids[:1]).logits), rtol=1e-4, atol=1e-4)
    assert finite(logits).isfinite().all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_ready_made_4d_mask_is_respected_also_at_output_positions(model, attention):
    """Two rows packed in one: each attends to itself only, and counts from its own start."""
    net = copy_with_attention(model, attention)
    one, two = draw_ids(1, 5, seed=21), draw_ids(1, 7, seed=22)
    same = torch.block_diag(torch.ones(5, 5), torch.ones(7, 7)).bool()[None, None]  # (1, 1, L, L)
    additive = torch.zeros(same.shape).masked_fill(~same, torch.finfo(torch.float32).min)
    packed = {
        "input_ids": torch.cat((one, two), dim=1),
        "attention_mask": additive,
        "position_ids": torch.cat((torch.arange(5), torch.arange(7)))[None],
    }
    expected = torch.cat((model(one).logits, model(two).logits), dim=1)
    torch.testing.assert_close(finite(net(**packed).logits), finite(expected), rtol=1e-4, atol=1e-4)
    got = net(**packed, output_positions=torch.tensor([[1, 9]])).logits
    torch.testing.assert_close(finite(got), finite(expected[:, [1, 9]]), rtol=1e-4, atol=1e-4)


def test_only_differences_of_position_ids_matter(model):
    ids, positions = draw_ids(), torch.arange(L)[None]
    shifted = model(ids, position_ids=positions + 9).logits
    torch.testing.assert_close(finite(shifted), finite(model(ids).logits), rtol=1e-3, atol=1e-3)
    stretched = model(ids, position_ids=positions * 3).logits
    assert (finite(stretched) - finite(model(ids).logits)).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------------------------
# Output positions
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [{}, {"output_hidden_states": True}, {"output_attentions": True}], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_output_positions_are_rows_of_the_full_logits(model, attention, record):
    net = copy_with_attention(model, attention)
    ids = draw_ids()
    full = net(ids).logits
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(4)) < 0.3
    wanted[1] = False  # a row may want nothing
    wanted[2, 0] = True
    for positions, expected in (
        (wanted, full[wanted]),
        (torch.ones_like(wanted), full.flatten(0, 1)),
        (torch.tensor([[0], [5], [11]]), full[torch.arange(3), [0, 5, 11]][:, None]),
        (torch.tensor([[3, 1, 3], [11, 0, 2], [0, 0, 1]]), None),  # in any order, also twice
    ):
        if expected is None:
            expected = torch.stack([row[index] for row, index in zip(full, positions, strict=True)])
        got = net(ids, output_positions=positions, **record).logits
        assert got.shape == expected.shape
        torch.testing.assert_close(finite(got), finite(expected), rtol=1e-5, atol=1e-5)


def test_the_trunk_takes_output_positions_too():
    trunk = make_model(RaddModel)
    ids = draw_ids()
    full = trunk(ids).last_hidden_state
    wanted = ids == MASK
    torch.testing.assert_close(trunk(ids, output_positions=wanted).last_hidden_state, full[wanted])
    index = torch.tensor([[0, 4], [1, 1], [11, 3]])
    expected = full.take_along_dim(index[..., None], dim=1)
    torch.testing.assert_close(trunk(ids, output_positions=index).last_hidden_state, expected)


def test_the_last_layer_computes_the_output_positions_only(model):
    sizes = []
    handle = model.model.layers[-1].mlp.up_proj.register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].numel() // D)
    )
    ids = draw_ids()
    wanted = ids == MASK
    model(ids, output_positions=wanted)
    model(ids, output_positions=torch.tensor([[0], [1], [2]]))
    model(ids, labels=ids.masked_fill(~wanted, -100).where(~wanted, 3))
    handle.remove()
    assert sizes == [int(wanted.sum()), 3, int(wanted.sum())]


def test_a_model_of_one_layer_has_output_positions():
    model, ids = make_model(num_hidden_layers=1), draw_ids()
    wanted = ids == MASK
    torch.testing.assert_close(finite(model(ids, output_positions=wanted).logits), finite(model(ids).logits[wanted]))


def test_the_mask_column_is_minus_infinity_and_no_other(model):
    for arguments in ({}, {"output_positions": torch.zeros(3, 1, dtype=torch.long)}):
        infinite = model(draw_ids(), **arguments).logits.isneginf()
        assert infinite[..., MASK].all()
        assert not infinite[..., :MASK].any()


def test_the_mask_may_be_any_token():
    model = make_model(mask_token_id=5)
    infinite = model(torch.full((1, 4), 5)).logits.isneginf()
    assert infinite.sum() == infinite[..., 5].sum() == 4


# ---------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa", "stand_in"])
def test_labels_give_the_cross_entropy_of_the_full_logits_and_its_gradients(flash_calls, attention):
    model = make_model(attention=attention)
    ids = draw_ids()
    labels = draw_labels(ids)
    expected = masked_lm_loss(model(ids).logits, labels)
    expected.backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    output = model(ids, labels=labels)
    output.loss.backward()
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(model), expected_gradients)


def test_sequence_nll_and_token_nll_are_the_sums_they_say(model):
    ids = draw_ids()
    labels = draw_labels(ids)
    labels[1] = -100
    output = model(ids, labels=labels)
    law = model(ids).logits.log_softmax(dim=-1)
    labelled = labels != -100
    expected = -law.gather(2, labels.clamp(min=0)[..., None])[..., 0].where(labelled, torch.zeros(()))
    torch.testing.assert_close(output.token_nll, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.sequence_nll, expected.sum(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.sum() / labelled.sum(), rtol=1e-5, atol=1e-5)
    assert output.sequence_nll[1] == 0


def test_loss_weights_give_the_mean_of_weighted_sequences(model):
    ids = draw_ids()
    labels, weights = draw_labels(ids), torch.tensor([0.5, 0.0, 7.0])
    output = model(ids, labels=labels, loss_weights=weights)
    torch.testing.assert_close(output.loss, (weights * output.sequence_nll).mean())
    plain = model(ids, labels=labels)
    torch.testing.assert_close(output.sequence_nll, plain.sequence_nll)
    assert plain.loss != output.loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_are_float32_and_finite_in_half_precision(model, dtype):
    net, ids = copy.deepcopy(model).to(dtype), draw_ids()
    output = net(ids, labels=draw_labels(ids))
    output.loss.backward()
    assert output.loss.dtype == output.sequence_nll.dtype == output.token_nll.dtype == torch.float32
    assert output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(net).values())
    torch.testing.assert_close(output.loss, model(ids, labels=draw_labels(ids)).loss, rtol=5e-2, atol=5e-2)


def test_autocast_trains_in_bfloat16(model):
    net, ids = copy.deepcopy(model), draw_ids()
    labels = draw_labels(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(ids, labels=labels)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients(net).values())
    torch.testing.assert_close(output.loss, net(ids, labels=labels).loss, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("positions_a_chunk", [1, 3])
def test_the_loss_in_chunks_is_the_loss_in_one_piece(monkeypatch, positions_a_chunk):
    model, ids = make_model(), draw_ids()
    arguments = {"labels": draw_labels(ids), "loss_weights": torch.tensor([0.3, 2.0, 1.0])}
    whole = model(ids, **arguments)
    whole.loss.backward()
    whole_gradients = gradients(model)
    model.zero_grad()

    monkeypatch.setattr(modeling_radd, "MAX_LOGITS_ELEMENTS", positions_a_chunk * V)
    sizes, compute = [], model.compute_logits
    monkeypatch.setattr(model, "compute_logits", lambda hidden: sizes.append(len(hidden)) or compute(hidden))
    chunked = model(ids, **arguments)
    chunked.loss.backward()
    assert max(sizes) == positions_a_chunk
    torch.testing.assert_close(chunked.token_nll, whole.token_nll)
    torch.testing.assert_close(chunked.loss, whole.loss)
    assert_same_gradients(gradients(model), whole_gradients)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, **arguments).loss, whole.loss.detach())


class LargestTensor(TorchDispatchMode):
    """Watches every operation, of the backward pass too, for the largest tensor that it makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return output


def test_a_training_step_never_holds_the_logits_of_every_position():
    batch, length, vocabulary = 4, 32, 1024
    model = make_model(vocab_size=vocabulary, hidden_size=16, num_attention_heads=2).train()
    ids = draw_ids(batch, length, vocab_size=vocabulary)
    labels = torch.full_like(ids, -100)
    labels[:, [3, 17]] = 5
    with LargestTensor() as labelled:
        model(ids, labels=labels).loss.backward()
    with LargestTensor() as everything:
        model(ids)
    assert everything.numel >= batch * length * vocabulary, "the watch sees what it is there to see"
    assert labelled.numel <= vocabulary * 16, "nothing larger than the embedding itself"


@pytest.mark.parametrize("attention", ["eager", "sdpa", "stand_in"])
def test_a_batch_without_labels_has_loss_zero_and_zero_gradients(flash_calls, attention):
    model, ids = make_model(attention=attention).train(), draw_ids()
    labels = torch.full_like(ids, -100)
    for arguments in ({}, {"loss_weights": torch.ones(3)}):
        model.zero_grad()
        output = model(ids, labels=labels, **arguments)
        output.loss.backward()
        assert output.loss == 0
        assert output.sequence_nll.tolist() == [0, 0, 0]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient: distributed training would hang"
            assert not parameter.grad.any()


def test_contradictory_arguments_are_refused(model):
    ids = draw_ids()
    with pytest.raises(ValueError, match="labels"):
        model(ids, loss_weights=torch.ones(3))
    with pytest.raises(ValueError, match="output_positions"):
        model(ids, labels=ids, output_positions=ids == MASK)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(3, L, D))
    with pytest.raises(ValueError, match="input_ids"):
        model()


# ---------------------------------------------------------------------------------------------------------
# Outputs
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [RaddForMaskedLM, RaddModel])
def test_hidden_states_and_attentions_come_on_request(cls):
    net = make_model(cls, attention="eager")
    _, ids, mask = padded_batch("left")
    plain = net(ids, attention_mask=mask)
    assert plain.hidden_states is None
    assert plain.attentions is None
    output = net(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, L, D)] * (LAYERS + 1)
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, H, L, L)] * LAYERS
    assert torch.equal(output.hidden_states[0], net.get_input_embeddings()(ids))
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, H, L))
        assert not weights.masked_select(mask[:, None, None, :] == 0).any(), "nobody attends to padding"
    last = output.hidden_states[-1]
    if cls is RaddModel:
        assert torch.equal(last, output.last_hidden_state)
    else:
        torch.testing.assert_close(finite(net.lm_head(last)), finite(plain.logits))


def test_the_configuration_may_ask_for_hidden_states(model):
    net = copy.deepcopy(model)
    net.config.output_hidden_states = True
    output = net(draw_ids(), output_positions=torch.zeros(3, 1, dtype=torch.long))
    assert len(output.hidden_states) == LAYERS + 1


@pytest.mark.parametrize("ask", ["labels", "mask", "indices"])
def test_recorded_hidden_states_are_those_of_every_position(ask):
    net = make_model(attention="eager")
    ids = draw_ids()
    arguments = {
        "labels": {"labels": draw_labels(ids)},
        "mask": {"output_positions": ids == MASK},
        "indices": {"output_positions": torch.tensor([[0, 1], [2, 3], [4, 5]])},
    }[ask]
    record = {"output_hidden_states": True, "output_attentions": True}
    expected, got = net(ids, **record), net(ids, **arguments, **record)
    for name in ("attentions", "hidden_states"):
        for layer, (want, have) in enumerate(zip(expected[name], got[name], strict=True)):
            assert have.shape == want.shape, f"{name}[{layer}]"
            torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [RaddForMaskedLM, RaddModel])
def test_the_tuple_holds_what_the_dictionary_holds(cls):
    net, ids = make_model(cls, attention="eager"), draw_ids()
    calls = [{}, {"output_hidden_states": True}, {"output_hidden_states": True, "output_attentions": True}]
    if cls is RaddForMaskedLM:
        calls += [{"labels": draw_labels(ids)}, {"labels": draw_labels(ids), "output_hidden_states": True}]
    for arguments in calls:
        named, plain = net(ids, **arguments), net(ids, return_dict=False, **arguments)
        assert isinstance(plain, tuple)
        expected, got = tree_leaves(tuple(named.to_tuple())), tree_leaves(plain)
        assert len(got) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
        first = named.loss if "labels" in arguments else named[0]
        assert torch.equal(plain[0], first)


def test_inputs_embeds_stand_in_for_input_ids(model):
    _, ids, mask = padded_batch("left")
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, model(ids, mask).logits)
    labels = draw_labels(ids)
    assert torch.equal(model(inputs_embeds=embeds, labels=labels).loss, model(ids, labels=labels).loss)


def test_evaluation_is_deterministic_and_training_has_dropout():
    model, ids = make_model(hidden_dropout=0.3), draw_ids()
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    torch.manual_seed(5)
    one = model(ids).logits
    torch.manual_seed(5)
    assert torch.equal(one, model(ids).logits)


@pytest.mark.parametrize("cls", [RaddForMaskedLM, RaddModel])
def test_input_ids_is_the_first_argument_and_embeddings_have_their_accessors(cls):
    net, ids = make_model(cls), draw_ids()
    assert net.main_input_name == "input_ids"
    assert torch.equal(net(ids)[0], net(input_ids=ids)[0])
    fresh = nn.Embedding(V, D)
    net.set_input_embeddings(fresh)
    assert net.get_input_embeddings() is fresh
    assert net.base_model.embed_tokens is fresh


# ---------------------------------------------------------------------------------------------------------
# Training machinery
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, ids = make_model(hidden_dropout=0.2).train(), draw_ids()
    labels = draw_labels(ids)
    torch.manual_seed(6)
    loss = model(ids, labels=labels).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()

    runs = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    torch.manual_seed(6)
    checkpointed = model(ids, labels=labels).loss
    checkpointed.backward()
    assert len(runs) == 2, "the layer is computed again in the backward pass"
    torch.testing.assert_close(checkpointed, loss)
    assert_same_gradients(gradients(model), expected)
    model.gradient_checkpointing_disable()
    model(ids)
    assert len(runs) == 3


def test_the_forward_compiles_into_one_graph(model):
    ids, index = draw_ids(), torch.tensor([[0, 3], [4, 4], [11, 1]])
    _, _, mask = padded_batch("left")
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for arguments in ({}, {"attention_mask": mask}, {"output_positions": index}):
            got, expected = compiled(ids, **arguments).logits, model(ids, **arguments).logits
            torch.testing.assert_close(finite(got), finite(expected), rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def test_a_training_step_compiles_with_graph_breaks():
    model, ids = make_model(), draw_ids()
    labels = draw_labels(ids)
    loss = model(ids, labels=labels).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    torch._dynamo.reset()
    compiled_loss = torch.compile(model, backend="eager")(ids, labels=labels).loss
    compiled_loss.backward()
    torch._dynamo.reset()
    torch.testing.assert_close(compiled_loss, loss)
    assert_same_gradients(gradients(model), expected)


# ---------------------------------------------------------------------------------------------------------
# Initialisation
# ---------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------
# Vocabulary
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{"new_num_tokens": V + 8}, {"pad_to_multiple_of": 32}, {"new_num_tokens": V + 8, "mean_resizing": False}]
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


# ---------------------------------------------------------------------------------------------------------
# Numbers: rotary embedding and LayerNorm
# ---------------------------------------------------------------------------------------------------------


def test_rotary_frequencies_survive_bfloat16(model):
    positions = torch.arange(5000)[None]
    half = copy.deepcopy(model).to(torch.bfloat16).to(torch.float32)
    for one, other in zip(model.model.rotary_emb(positions), half.model.rotary_emb(positions), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    exponent = torch.arange(0, D // H, 2, dtype=torch.float64) / (D // H)
    angles = positions[0, :, None].double() / 10000**exponent
    torch.testing.assert_close(one[0], torch.cat((angles, angles), dim=-1).sin().float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_other_kinds_of_rotary_embedding_run(model, rope, tmp_path):
    rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 32} | rope
    other = make_model(rope_parameters=rope)
    other.load_state_dict(model.state_dict())
    ids = draw_ids(2, 60)  # beyond max_position_embeddings
    logits = other(ids).logits
    assert logits[..., :MASK].isfinite().all()
    assert (finite(logits) - finite(model(ids).logits)).abs().max() > 1e-3, "it makes a difference"
    other.save_pretrained(tmp_path)
    assert torch.equal(RaddForMaskedLM.from_pretrained(tmp_path)(ids).logits, logits)
    if rope["rope_type"] == "linear":
        halved = model(ids, position_ids=torch.arange(60)[None] / 2).logits
        torch.testing.assert_close(finite(logits), finite(halved), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layer_norm_takes_its_statistics_in_float32(model, dtype):
    net = copy.deepcopy(model).to(dtype)
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * LAYERS + 1
    states = (300 + 4 * torch.randn(64, D, generator=torch.Generator().manual_seed(0))).to(dtype)
    for norm in norms:
        weight, bias = norm.weight.float(), norm.bias.float()
        expected = nn.functional.layer_norm(states.float(), (D,), weight, bias, norm.eps).to(dtype)
        torch.testing.assert_close(norm(states).float(), expected.float(), rtol=torch.finfo(dtype).eps, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------
# The libraries around: PEFT, Trainer, pipeline, accelerate
# ---------------------------------------------------------------------------------------------------------


def test_lora_on_all_linear_layers_trains_saves_and_merges(tmp_path):
    peft = pytest.importorskip("peft")
    base, ids = make_model(), draw_ids()
    original = copy.deepcopy(base)
    labels = draw_labels(ids)
    lora = peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear", r=4))
    assert torch.equal(lora(input_ids=ids).logits, original(ids).logits)
    adapted = {name.split(".lora_A")[0].split("base_model.model.")[-1] for name, _ in lora.named_parameters()}
    for layer in range(LAYERS):
        for linear in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            assert f"model.layers.{layer}.{linear}" in adapted
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = lora(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    lora.eval()
    expected = lora(input_ids=ids).logits
    positions = ids == MASK
    pruned = lora(input_ids=ids, output_positions=positions).logits
    torch.testing.assert_close(finite(pruned), finite(expected[positions]), rtol=1e-4, atol=1e-4)
    lora.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(original), tmp_path)
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
    assert not (loaded.generate(input_ids=ids, method="ordered") == MASK).any()
    merged = loaded.merge_and_unload()
    assert isinstance(merged, RaddForMaskedLM)
    torch.testing.assert_close(finite(merged(ids).logits), finite(expected), rtol=1e-3, atol=1e-4)


def test_lora_on_the_output_layer_still_rules_out_the_mask():
    peft = pytest.importorskip("peft")
    base, ids = make_model(), draw_ids()
    lora = peft.get_peft_model(base, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    logits = lora(input_ids=ids).logits
    assert logits[..., MASK].isneginf().all()
    assert logits[..., :MASK].isfinite().all()
    loss = lora(input_ids=ids, labels=draw_labels(ids)).loss
    torch.testing.assert_close(loss, masked_lm_loss(logits, draw_labels(ids)))


SENTENCES = ["the cat sat on the mat.", "a dog ran to the big red house.", "we read old books at night."]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stock Trainer, the ordinary masked-LM loss, a stock collator: trainer, tokenizer, losses, evaluation."""
    transformers = pytest.importorskip("transformers")
    from radd_hf.data.documents import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(SENTENCES * 50, vocab_size=300)
    tokenizer.pad_token = tokenizer.eos_token
    config = make_config(vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, num_hidden_layers=2)
    model = RaddForMaskedLM(config)
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in SENTENCES] * 64
    folder = tmp_path_factory.mktemp("trainer")
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=120,
        per_device_train_batch_size=12,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.3)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:6], data_collator=collator)
    trainer.train()
    evaluation = trainer.evaluate()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, tokenizer, losses, evaluation


def test_the_stock_trainer_lowers_the_loss(trained):
    trainer, _, losses, evaluation = trained
    assert losses[0] == pytest.approx(math.log(trainer.model.config.vocab_size - 1), rel=1e-3), "a uniform law at first"
    assert sum(losses[-20:]) / 20 < 0.5 * losses[0]
    assert evaluation["eval_loss"] < 0.5 * losses[0]


def test_the_stock_trainer_saves_what_it_trained(trained):
    trainer, ids = trained[0], draw_ids()
    loaded = RaddForMaskedLM.from_pretrained(trainer.args.output_dir)
    assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


def test_the_fill_mask_pipeline_fills_the_mask(trained):
    from transformers import pipeline

    trainer, tokenizer, *_ = trained
    model = trainer.model.eval()
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    whole = tokenizer(SENTENCES[0])["input_ids"]
    for position in range(len(whole)):
        ids = list(whole)
        ids[position] = tokenizer.mask_token_id
        law = model(torch.tensor([ids])).logits[0, position].softmax(dim=-1)
        answers = fill(tokenizer.decode(ids), top_k=3)
        assert [answer["token"] for answer in answers] == law.topk(3).indices.tolist()
        assert answers[0]["score"] == pytest.approx(law.max().item(), rel=1e-4)
    everything = fill(f"the cat {tokenizer.mask_token} on the mat.", top_k=len(tokenizer))
    assert sum(answer["score"] for answer in everything) == pytest.approx(1, abs=1e-4)
    assert next(answer["score"] for answer in everything if answer["token"] == tokenizer.mask_token_id) == 0


def test_a_device_map_never_splits_a_layer():
    accelerate = pytest.importorskip("accelerate")
    model = make_model(num_hidden_layers=6)
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    device_map = accelerate.infer_auto_device_map(
        model, max_memory={"cpu": 3 * layer, "disk": 100 * layer}, no_split_module_classes=model._no_split_modules
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    assert not [name for name in device_map if name.startswith("model.layers.") and name.count(".") > 2]


@pytest.mark.parametrize("offloaded", ["model.embed_tokens", "model.layers", "lm_head"])
def test_offloaded_weights_give_equal_logits(model, tmp_path, offloaded):
    accelerate = pytest.importorskip("accelerate")
    ids = draw_ids()
    labels = draw_labels(ids)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers": "cpu", "model.norm": "cpu"}
    places |= {"lm_head": "cpu", offloaded: "disk"}
    net = accelerate.dispatch_model(
        copy.deepcopy(model), places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu", "meta"}
    with torch.no_grad():
        assert torch.equal(net(ids).logits, model(ids).logits)
        positions = ids == MASK
        assert torch.equal(net(ids, output_positions=positions).logits, model(ids, output_positions=positions).logits)
        assert torch.equal(net(ids, labels=labels).loss, model(ids, labels=labels).loss)
    draws = [m.generate(ids, generator=torch.Generator().manual_seed(0)) for m in (net, model)]
    assert torch.equal(*draws)


def test_from_pretrained_takes_a_device_map(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = RaddForMaskedLM.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(loaded(draw_ids()).logits, model(draw_ids()).logits)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    places |= {"model.norm": "cpu", "lm_head": "cpu"}
    loaded = RaddForMaskedLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    with torch.no_grad():
        assert torch.equal(loaded(draw_ids()).logits, model(draw_ids()).logits)


@pytest.mark.parametrize("record", [{}, {"output_hidden_states": True}], ids=str)
@pytest.mark.parametrize("ask", ["everything", "output_positions"])
def test_layers_may_live_on_two_devices(ask, record):
    """As under device_map="auto" with two GPUs: accelerate moves what each module is given to its device.

    The tensors are fake, without values, and refuse to meet across devices. "meta" plays the second GPU.
    """
    hooks = pytest.importorskip("accelerate.hooks")
    with torch.device("meta"):
        model = RaddForMaskedLM._from_config(make_config(), attn_implementation="eager").eval()
    first = [model.model.embed_tokens, *model.model.layers[:-1]]
    second = [model.model.layers[-1], model.model.norm, model.lm_head]
    with torch.no_grad(), FakeTensorMode():
        for device, modules in (("cpu", first), ("meta", second)):
            for module in modules:
                for part in module.modules():
                    for name, parameter in part.named_parameters(recurse=False):
                        values = torch.empty(parameter.shape, device=device)
                        setattr(part, name, nn.Parameter(values, requires_grad=False))
                hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device=device))
        hooks.add_hook_to_module(model, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
        ids = torch.zeros(3, L, dtype=torch.long)
        positions = {"output_positions": ids[:, :2]} if ask == "output_positions" else {}
        logits = model(ids, **positions, **record).logits
    assert logits.shape == (3, 2 if positions else L, V)
    assert logits.device.type == "cpu"
