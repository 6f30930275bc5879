# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpointing and compilation change neither a loss nor a gradient."""

import copy

import pytest
import torch

from support.models import assert_same_gradients, draw_ids, draw_labels, finite, gradients, make_model, padded_batch


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
