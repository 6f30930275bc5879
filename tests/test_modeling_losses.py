# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Labels give the cross-entropy of the full logits, with its gradients and without its memory.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy
import math
import re

import pytest
import torch

from radd_hf import kernels_radd, modeling_radd
from support.models import (
    MASK,
    D,
    L,
    V,
    assert_same_gradients,
    draw_ids,
    draw_labels,
    gradients,
    make_model,
    masked_lm_loss,
)
from support.spies import Watch


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


@pytest.mark.parametrize("fixed", [False, True])
def test_logits_come_with_labels_when_they_are_asked_for(model, monkeypatch, fixed):
    ids = draw_ids()
    labels = draw_labels(ids)
    plain = model(ids, labels=labels)
    monkeypatch.setattr(modeling_radd, "has_fixed_shapes", lambda *_: fixed)
    output = model(ids, labels=labels, output_logits=True)
    assert torch.equal(output.logits, model(ids).logits)
    torch.testing.assert_close(output.loss, plain.loss)
    torch.testing.assert_close(output.token_nll, plain.token_nll)
    assert torch.equal(model(ids, labels=labels, output_logits=True, return_dict=False)[1], output.logits)


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

    monkeypatch.setattr(kernels_radd, "MAX_LOGITS_ELEMENTS", positions_a_chunk * V)
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


def test_a_training_step_never_holds_the_logits_of_every_position():
    batch, length, vocabulary = 4, 32, 1024
    model = make_model(vocab_size=vocabulary, hidden_size=16, num_attention_heads=2).train()
    ids = draw_ids(batch, length, vocab_size=vocabulary)
    labels = torch.full_like(ids, -100)
    labels[:, [3, 17]] = 5
    with Watch() as labelled:
        model(ids, labels=labels).loss.backward()
    with Watch() as everything:
        model(ids)
    assert everything.largest >= batch * length * vocabulary, "the watch sees what it is there to see"
    assert labelled.largest <= vocabulary * 16, "nothing larger than the embedding itself"


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (1, 4, MASK)}, "labels holds 47 at row 1, position 4, the mask, which has probability 0"),
        (
            {"labels": (0, 0, -1)},
            "labels holds -1 at row 0, position 0; it must be the id of a token, in 0 .. 47 and not",
        ),
        ({"labels": (2, 11, V)}, "labels holds 48 at row 2, position 11"),
        (
            {"labels": torch.float32},
            "labels has shape (3, 12) and dtype torch.float32; it must have one for each token",
        ),
        ({"labels": torch.bool}, "labels has shape (3, 12) and dtype torch.bool"),
        ({"labels": torch.int16}, "labels has shape (3, 12) and dtype torch.int16"),
        ({"labels": "meta"}, "labels is on the device 'meta'; it must be where the inputs are, 'cpu'"),
        ({"labels": [[3] * L] * 3}, "labels=[[3, 3, "),
        (
            {"loss_weights": torch.ones(2)},
            "loss_weights has shape (2,) and dtype torch.float32; it must hold one weight a",
        ),
        ({"loss_weights": torch.ones(3, 1)}, "loss_weights has shape (3, 1)"),
        ({"loss_weights": torch.ones(3, dtype=torch.bool)}, "loss_weights has shape (3,) and dtype torch.bool"),
        ({"loss_weights": torch.ones(3, device="meta")}, "loss_weights is on the device 'meta'"),
        ({"loss_weights": [1.0, 1.0, 1.0]}, "loss_weights=[1.0, 1.0, 1.0] is no tensor"),
        ({"max_targets": 2}, "max_targets=2 must be an integer, at least the number of labels, "),
        ({"max_targets": "all"}, "max_targets='all' must be an integer"),
        ({"max_targets": 2**64}, "max_targets=18446744073709551616 must be an integer"),
        ({"loss_weights": torch.tensor([1.0, torch.nan, 1.0])}, "loss_weights holds nan at (1,); it must hold finite"),
        ({"loss_weights": torch.tensor([1.0, 1.0, torch.inf])}, "loss_weights holds inf at (2,)"),
    ],
    ids=str,
)
def test_what_is_no_label_or_weight_is_refused_by_name_before_any_work(model, monkeypatch, change, message):
    ids = draw_ids()
    arguments, (name, value) = {"labels": draw_labels(ids)}, *change.items()
    if isinstance(value, tuple):
        arguments["labels"][value[:2]] = value[2]
    else:
        arguments[name] = (
            arguments["labels"].to(value) if isinstance(value, (str, torch.dtype)) and name == "labels" else value
        )
    monkeypatch.setattr(model.model, "forward", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match=re.escape(message)):
        model(ids, **arguments)


def test_labels_are_not_looked_at_where_the_host_would_have_to_wait():
    with torch.device("meta"):
        model, ids = make_model(), torch.zeros(3, L, dtype=torch.long)
        assert model(ids, labels=ids, max_targets=3 * L).loss.shape == ()


def test_int32_labels_and_ids_give_the_loss_and_gradients_of_int64(model):
    ids = draw_ids()
    labels, found = draw_labels(ids), []
    for dtype in (torch.int64, torch.int32):
        model.zero_grad()
        output = model(ids.to(dtype), labels=labels.to(dtype))
        output.loss.backward()
        found.append((output.loss.detach(), gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert_same_gradients(found[0][1], found[1][1])
    model.zero_grad()


def test_num_items_in_batch_divides_the_sum_over_tokens_as_in_transformers(model):
    ids = draw_ids()
    output = model(ids, labels=draw_labels(ids))
    for number in (7, torch.tensor(7)):
        loss = model(ids, labels=draw_labels(ids), num_items_in_batch=number).loss
        torch.testing.assert_close(loss, output.sequence_nll.sum() / 7)
    with pytest.raises(ValueError, match="num_items_in_batch"):
        model(ids, labels=draw_labels(ids), num_items_in_batch=7, loss_weights=torch.ones(3))
    for number in (
        0,
        -1,
        True,
        "a",
        math.inf,
        math.nan,
        10**400,
        torch.tensor(0),
        torch.tensor(math.nan),
        torch.ones(2),
    ):
        with pytest.raises(ValueError, match=r"num_items_in_batch=.* must be a positive number"):
            model(ids, labels=draw_labels(ids), num_items_in_batch=number)


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
