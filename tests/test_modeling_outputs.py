# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What a forward returns, and what it takes in place of ids.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.utils import logging

from radd_hf import RaddForMaskedLM, RaddModel
from support.models import LAYERS, MASK, D, H, L, V, draw_ids, draw_labels, finite, make_model, padded_batch


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
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("atention_mask", "attention_mask"),
        ("output_position", "output_positions"),
        ("output_hiden_states", "output_hidden_states"),
        ("position_id", "position_ids"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_nearest_name(cls, name, nearest):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'. Did you mean '{nearest}'"):
        make_model(cls)(draw_ids(), **{name: None})


def test_a_misspelt_label_is_refused_with_the_nearest_name_and_another_word_without(model):
    ids = draw_ids()
    with pytest.raises(TypeError, match=r"'label'\. Did you mean 'labels'"):
        model(ids, label=ids)
    for name in ("logits_to_keep", "xyz"):
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'\.$"):
            model(ids, **{name: 1})


def test_keywords_of_tools_that_ask_for_nothing_are_taken(model):
    ids, expected = draw_ids(), model(draw_ids()).logits
    for name, value in (
        ("use_cache", False),
        ("use_cache", None),
        ("past_key_values", None),
        ("is_causal", False),
        ("head_mask", None),
        ("token_type_ids", torch.zeros_like(ids)),
        ("token_type_ids", None),
        ("return_dict", True),
        ("output_attentions", False),
    ):
        assert torch.equal(model(ids, **{name: value}).logits, expected), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_cache": True}, "use_cache=True must be None or False"),
        ({"past_key_values": ((1, 2),)}, r"past_key_values=\(\(1, 2\),\) must be None or False"),
        ({"cache_position": torch.arange(L)}, "cache_position=tensor.* must be None or False"),
        ({"is_causal": True}, "is_causal=True must be None or False: every token attends to every other"),
        ({"token_type_ids": torch.ones(3, L, dtype=torch.long)}, "token_type_ids holds 1; it must be 0"),
    ],
)
def test_keywords_that_ask_for_what_the_network_does_not_have_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(draw_ids(), **arguments)


@pytest.mark.parametrize("cls", [RaddForMaskedLM, RaddModel])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_ids": draw_ids()[0]},
            r"input_ids has shape \(12,\) and dtype torch.int64; it must hold ids, \(B, L\)",
        ),
        ({"input_ids": draw_ids().short()}, r"input_ids has shape \(3, 12\) and dtype torch.int16"),
        ({"input_ids": draw_ids().tolist()}, r"input_ids=\[\[.* is no tensor"),
        ({"input_ids": draw_ids()[:0]}, r"input_ids has shape \(0, 12\)"),
        ({"input_ids": draw_ids()[:, :0]}, r"input_ids has shape \(3, 0\)"),
        ({"inputs_embeds": torch.zeros(3, D)}, r"inputs_embeds has shape \(3, 32\)"),
        ({"inputs_embeds": torch.zeros(3, L, D).long()}, "inputs_embeds has .* dtype torch.int64"),
        ({"inputs_embeds": torch.zeros(3, L, D + 1)}, r"inputs_embeds has shape \(3, 12, 33\)"),
        ({"position_ids": torch.arange(5)[None]}, r"position_ids has shape \(1, 5\)"),
        (
            {"position_ids": torch.arange(L)},
            r"position_ids has shape \(12,\) .*; it must hold numbers, \(3, 12\) or \(1,",
        ),
        ({"position_ids": torch.ones(3, L, dtype=torch.bool)}, "position_ids has .* dtype torch.bool"),
        ({"output_positions": torch.zeros(3)}, r"output_positions has shape \(3,\) and dtype torch.float32"),
        ({"output_positions": torch.zeros(3).long()}, r"output_positions has shape \(3,\) and dtype torch.int64"),
        ({"output_positions": torch.zeros(2, 1).long()}, r"output_positions has shape \(2, 1\)"),
        ({"output_positions": torch.ones(3, 5).bool()}, r"output_positions has shape \(3, 5\) and dtype torch.bool"),
        ({"output_positions": 3}, "output_positions=3 is no tensor"),
        ({"output_positions": (0, 1)}, r"output_positions=\(0, 1\) is no tensor"),
        ({"output_positions": torch.zeros(3, 0).long()}, r"output_positions has shape \(3, 0\) .*, K at least 1"),
        (
            {"output_positions": torch.tensor([[0], [L], [1]])},
            r"output_positions holds 12 at \(1, 0\); the positions of a row are 0 \.\. 11",
        ),
        ({"output_positions": torch.tensor([[0], [1], [-1]])}, r"output_positions holds -1 at \(2, 0\)"),
        (
            {"input_ids": torch.tensor([[0, 1], [V, 2]])},
            r"input_ids holds 48 at \(1, 0\); the ids of the vocabulary are 0 \.\. 47",
        ),
        ({"input_ids": torch.tensor([[-100, 1]], dtype=torch.int32)}, r"input_ids holds -100 at \(0, 0\)"),
        ({"input_ids": torch.tensor([[2**40]])}, "input_ids holds 1099511627776"),
        ({"position_ids": torch.full((1, L), torch.nan)}, r"position_ids holds nan at \(0, 0\); .* finite numbers"),
        ({"output_hidden_states": "x"}, "output_hidden_states='x' must be True or False"),
    ],
)
def test_arguments_of_another_shape_or_dtype_are_refused_by_name(cls, arguments, message):
    given = arguments if arguments.keys() & {"input_ids", "inputs_embeds"} else arguments | {"input_ids": draw_ids()}
    with pytest.raises(ValueError, match=message):
        make_model(cls)(**given)


def test_values_are_not_looked_at_where_something_records_the_forward(model):
    """A GPU's capture, say, cannot read a number; torch then reports what is wrong, if it does."""

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(operation)
            return operation(*args, **kwargs or {})

    with Recording(), torch.no_grad():
        model.model(draw_ids(), position_ids=torch.zeros(1, L), output_positions=torch.zeros(3, 1, dtype=torch.long))


@pytest.mark.parametrize("cls", [RaddForMaskedLM, RaddModel])
def test_input_ids_is_the_first_argument_and_embeddings_have_their_accessors(cls):
    net, ids = make_model(cls), draw_ids()
    assert net.main_input_name == "input_ids"
    assert torch.equal(net(ids)[0], net(input_ids=ids)[0])
    fresh = nn.Embedding(V, D)
    net.set_input_embeddings(fresh)
    assert net.get_input_embeddings() is fresh
    assert net.base_model.embed_tokens is fresh


def test_more_tokens_than_the_model_was_trained_on_are_told_once(caplog):
    logging.warning_once.cache_clear()
    net = make_model(max_position_embeddings=L)
    net(draw_ids(length=L))
    assert not caplog.records
    for length in (L + 1, L + 2):
        net(draw_ids(length=length))
    net.generate(length=L + 1, steps=1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"more than max_position_embeddings={L} tokens" in record.message
