# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Training in fixed shapes, as on a card: compiled once, equal to the plain step, and without a question to the device.

A processor shows most of it: dynamo counts graphs and breaks whatever runs them, and tensors on the device "meta" have
no values, so that whoever asks for one is refused.
"""

import copy
from threading import Event, Thread

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor.decomposition import select_decomp_table
from transformers import Trainer, TrainingArguments

from radd_hf import DiffusionCollator, RaddConfig, RaddForMaskedLM, inputs_radd, kernels_radd, modeling_radd
from radd_hf.kernels_radd import aligned, compile_backend, compile_trunk, label_places, padded, token_nll
from radd_hf.likelihood import estimate_likelihood
from radd_hf.losses import LOSS_TYPES
from radd_hf.modeling_radd import RaddModel
from radd_hf.training.memory import layer_bytes
from support.spies import Watch
from support.toys import random_model, seeded

ROWS, LENGTH, VOCABULARY = 4, 16, 40


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    kernels_radd.compiled_once.cache_clear()
    counters.clear()
    yield
    torch.compiler.reset()


def model() -> RaddForMaskedLM:
    return random_model(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=32).train()


def compiled_model(backend: str = "eager") -> RaddForMaskedLM:
    network = model()
    compile_trunk(network.model, backend)
    return network


def batches(network: RaddForMaskedLM, count: int, loss_type: str = "lambda_DCE", **settings):
    collator = DiffusionCollator(network.config, loss_type, seed=0, **settings)
    x0 = torch.randint(VOCABULARY - 1, (count, ROWS, LENGTH), generator=seeded(1))
    for step in range(count):
        inputs = collator.rows(x0[step], step, range(ROWS), ROWS)
        yield inputs | {"max_targets": int((inputs["labels"] != -100).sum())}


def gradients(network: RaddForMaskedLM, inputs: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
    network.zero_grad()
    loss = network(**inputs).loss
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in network.parameters()]


def graphs() -> int:
    assert not counters["graph_break"], dict(counters["graph_break"])
    return counters["stats"]["unique_graphs"]


OF_THE_LOSS = 2  # log_sum_exp, fill_scaled_softmax


@pytest.mark.parametrize("settings", [{}, {"random_length_fraction": 0.5}], ids=["whole rows", "random lengths"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_twenty_batches_of_different_masks_take_one_compilation(settings, checkpointing):
    network = compiled_model()
    if checkpointing:
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    numbers = set()
    for inputs in batches(network, 20, **settings):
        numbers.add(inputs["max_targets"])
        network(**inputs).loss.backward()
    assert len(numbers) > 5
    assert graphs() == 1 + OF_THE_LOSS


@pytest.mark.parametrize("settings", [{}, {"random_length_fraction": 0.5}], ids=["whole rows", "random lengths"])
def test_the_graph_has_a_mask_where_there_is_padding_and_computes_no_rotary_tables(monkeypatch, settings):
    """A mask that excludes nothing sends torch's attention from its flash kernel to one six times as slow."""
    network, attention, others = model(), [], []

    def look(graph, example):
        for node in graph.graph.nodes:
            if node.target is torch.nn.functional.scaled_dot_product_attention:
                attention.append(node.kwargs.get("attn_mask"))
            else:
                others.append(str(node.target))
        return graph.forward

    compile_trunk(network.model, look)
    (inputs,) = batches(network, 1, **settings)
    network(**inputs)
    assert [mask is not None for mask in attention] == [bool(settings)] * network.config.num_hidden_layers
    assert not [name for name in others if name in ("cos", "sin", "pow", "arange")]


def test_a_compiled_layer_keeps_what_the_table_of_costs_counts(monkeypatch):
    """In bf16 and with torch's attention, as on a card: aot_autograd splits what is kept from what is recomputed."""
    monkeypatch.setattr(modeling_radd, "is_faster_by_products", lambda *_: False)
    kept = {}

    def forward_graph(graph, example):
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        made = [node for node in outputs if getattr(node, "op", None) == "call_function"]
        values = [node.meta["val"] for node in made if "alias" not in node.name]  # which are other tensors once more
        rows = [value for value in values if isinstance(value, torch.Tensor) and ROWS in value.shape[:1]]
        rows += [value for value in values if isinstance(value, torch.Tensor) and ROWS * LENGTH in value.shape[:1]]
        kept[layers] = sum(value.numel() * value.element_size() for value in rows) / (ROWS * LENGTH)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=forward_graph,
        bw_compiler=lambda graph, example: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    for layers in (2, 3):
        config = RaddConfig(vocab_size=VOCABULARY, hidden_size=96, num_hidden_layers=layers, num_attention_heads=3)
        network = RaddForMaskedLM(config).train()
        compile_trunk(network.model, backend)
        ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16):
            network.model(input_ids=ids)
        torch.compiler.reset()
    assert kept[3] - kept[2] == pytest.approx(layer_bytes(config), rel=0.02)


def test_another_shape_of_the_last_batch_takes_one_more():
    network = compiled_model()
    for inputs in batches(network, 3):
        network(**inputs).loss.backward()
    rest = {name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    network(**rest).loss.backward()
    assert graphs() <= 2 * (1 + OF_THE_LOSS)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("settings", [{}, {"random_length_fraction": 0.5}], ids=["whole rows", "random lengths"])
def test_loss_and_gradients_are_those_of_the_plain_step(loss_type, settings):
    network, plain = compiled_model("aot_eager"), model()
    for inputs in batches(network, 3, loss_type, **settings):
        loss, found = gradients(network, inputs)
        expected_loss, expected = gradients(plain, inputs)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm() + 1e-6


@pytest.mark.parametrize("positions_a_chunk", [1, 4, 7, 1000])
def test_chunks_padded_with_labels_that_count_nothing_change_nothing(monkeypatch, positions_a_chunk):
    monkeypatch.setattr(kernels_radd, "chunk_size", lambda *_: positions_a_chunk)
    network, plain = compiled_model(), model()
    for inputs in batches(network, 2):
        found = gradients(network, inputs)
        monkeypatch.setattr(kernels_radd, "chunk_size", lambda *_: 10**6)
        expected = gradients(plain, inputs)
        monkeypatch.setattr(kernels_radd, "chunk_size", lambda *_: positions_a_chunk)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_upper_bound_of_the_labels_is_enough_and_too_small_a_one_is_refused_or_nan_on_a_card(monkeypatch):
    network = compiled_model()
    (inputs,) = batches(network, 1)
    exact = network(**inputs).loss
    assert torch.equal(network(**inputs | {"max_targets": ROWS * LENGTH}).loss, exact)
    assert torch.equal(network(**inputs | {"max_targets": None}).loss, exact)
    too_small = inputs | {"max_targets": inputs["max_targets"] - 1}
    for each in (network, model()):
        with pytest.raises(ValueError, match=r"max_targets=\d+ must be an integer, at least the number of labels, \d+"):
            each(**too_small)
        with monkeypatch.context() as patch:
            patch.setattr(inputs_radd, "has_values", lambda tensor: False)  # as on a GPU, where nobody waits for values
            assert each(**too_small).loss.isnan()


def test_places_of_labels_come_first_and_whole_chunks_of_them():
    labels = torch.tensor([[-100, 3, -100], [4, -100, 5]])
    assert label_places(labels, 3, 10)[:3].tolist() == [1, 3, 5]
    assert len(label_places(labels, 3, 10)) == 6, "never more than there are positions"
    assert label_places(torch.full((2, 3), -100), 0, 10).numel() > 0, "a batch without labels has a gradient, zero"


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_that_align_the_rows_change_neither_loss_nor_gradients(monkeypatch, bias):
    head, target = torch.nn.Linear(8, 11, bias=bias), torch.tensor([3, -100, 0, 9, 10])
    hidden = torch.randn(5, 8, generator=seeded(0))

    def results() -> list[torch.Tensor]:
        given = hidden.clone().requires_grad_()
        nll = token_nll(lambda hidden, layer=head: layer(hidden), head, given, target, 11)
        wanted = [given, *head.parameters()]
        first = torch.autograd.grad(nll.sum(), wanted, create_graph=True)
        return [nll, *first, *torch.autograd.grad(first[0].square().sum(), wanted[:2])]

    plain = results()
    monkeypatch.setattr(kernels_radd, "aligned", lambda layer, _: (padded(layer, 5, torch.float32),))
    for one, other in zip(results(), plain, strict=True):
        torch.testing.assert_close(one, other)


def test_only_a_card_aligns_rows_and_only_those_of_a_layer_as_it_was_made():
    with torch.device("meta"):
        head, whole, hidden = torch.nn.Linear(8, 11), torch.nn.Linear(8, 16), torch.zeros(5, 8)
    (layer,) = aligned(head, hidden)
    assert layer(hidden).shape == (5, 16)
    assert not aligned(whole, hidden)
    assert not aligned(torch.nn.Linear(8, 11), torch.zeros(5, 8))
    head.register_forward_hook(lambda *_: None)
    assert not aligned(head, hidden)


def test_a_target_of_minus_100_costs_nothing_and_gets_no_gradient():
    hidden = torch.randn(5, 8, generator=seeded(0), requires_grad=True)
    head, target = torch.nn.Linear(8, 11), torch.tensor([3, -100, 0, -100, 10])
    nll = token_nll(head, head, hidden, target, 11)
    assert nll[target < 0].tolist() == [0, 0]
    nll.sum().backward()
    assert not hidden.grad[target < 0].any()
    expected = torch.nn.functional.cross_entropy(head(hidden), target, reduction="none")
    torch.testing.assert_close(nll, expected)


def test_a_copy_is_not_compiled_nor_is_a_model_that_does_not_train():
    network = compiled_model()
    assert compile_backend(network.model) == "eager"
    assert compile_backend(copy.deepcopy(network).model) is None
    assert compile_backend(network.eval().model) is None


def test_what_is_no_step_of_training_runs_uncompiled_and_is_right():
    network, plain = compiled_model(), model()
    (inputs,) = batches(network, 1)
    network(**inputs).loss.backward()
    before = graphs()
    ids, masked = inputs["input_ids"], inputs["labels"] != -100
    torch.testing.assert_close(network(ids, output_positions=masked).logits, plain(ids, output_positions=masked).logits)
    assert len(network(**inputs, output_hidden_states=True).hidden_states) == network.config.num_hidden_layers + 1
    texts = [torch.arange(length) for length in range(3, 14)]
    assert estimate_likelihood(network, texts, passes=2) == estimate_likelihood(plain, texts, passes=2)
    for net in (network.eval(), plain.eval()):
        net.requires_grad_(True)
    torch.testing.assert_close(network(**inputs).loss, plain(**inputs).loss)
    for length in range(3, 14):
        assert torch.equal(network.generate(length=length, seed=0), plain.generate(length=length, seed=0))
    assert graphs() == before


def test_hooks_inside_run_whenever_they_are_added():
    """A compiler does not look for hooks that are added to what it has compiled."""
    networks = compiled_model(), model()
    (inputs,) = batches(networks[1], 1)
    for network in networks:
        network(**inputs)
        network.model.layers[0].register_forward_hook(lambda module, given, output: 1.5 * output)
    (loss, found), (expected, wanted) = (gradients(network, inputs) for network in networks)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_who_evaluates_in_another_thread_does_not_stop_the_compiled_training():
    network = compiled_model()
    (inputs,) = batches(network, 1)
    network(**inputs)
    begun, done = Event(), Event()

    def look(module, given):
        if not torch.is_grad_enabled():
            begun.set()
            done.wait(20)

    def evaluate() -> None:
        with torch.no_grad():
            network(input_ids=inputs["input_ids"])

    network.lm_head.register_forward_pre_hook(look)  # in which an evaluation waits, half done
    thread = Thread(target=evaluate)
    thread.start()
    assert begun.wait(20)
    before = graphs()
    rest = {name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    network(**rest).loss.backward()
    done.set()
    thread.join()
    assert graphs() > before, "another shape is compiled meanwhile"


def test_within_what_somebody_else_compiles_a_compiled_trunk_is_part_of_it_and_breaks_are_survived():
    network, plain = compiled_model(), model()
    (inputs,) = batches(network, 1)
    whole = torch.compile(network, backend="eager")
    torch.testing.assert_close(whole(**inputs).loss, plain(**inputs).loss, rtol=1e-5, atol=1e-5)
    states = whole(input_ids=inputs["input_ids"], output_hidden_states=True).hidden_states
    expected = plain(input_ids=inputs["input_ids"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch says that it compiles no more
def test_more_shapes_than_torch_compiles_are_trained_all_the_same(monkeypatch):
    monkeypatch.setattr(kernels_radd, "rows_at_once", len)  # as on a card: the loss has as many shapes as the trunk
    network, plain = compiled_model(), model()
    (inputs,) = batches(network, 1)
    for length in range(2, LENGTH):
        part = {name: inputs[name][:, :length] for name in ("input_ids", "labels")}
        (loss, found), (expected, wanted) = gradients(network, part), gradients(plain, part)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [model, compiled_model])
def test_labels_that_are_not_those_of_the_tokens_are_refused(make):
    network = make()
    (inputs,) = batches(network, 1)
    for labels in (inputs["labels"][:1], inputs["labels"][:, :5]):
        with pytest.raises(ValueError, match=r"labels has shape .* one for each token"):
            network(inputs["input_ids"], labels=labels)
    with pytest.raises(
        ValueError, match=r"labels holds -1 at row 0, position 0; it must be the id of a token, in 0 \.\. 39"
    ):
        network(inputs["input_ids"], labels=torch.full_like(inputs["labels"], -1))


def test_the_stock_compilation_of_the_whole_model_is_one_graph_for_all_masks():
    network, plain = model(), model()
    whole = torch.compile(network, backend="eager", fullgraph=True)
    for inputs in batches(network, 8):
        torch.testing.assert_close(whole(**inputs).loss, plain(**inputs).loss, rtol=1e-5, atol=1e-5)
    assert graphs() == 1


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # of the Trainer, where there is no GPU
def test_transformers_trainer_compiles_the_whole_model_once_for_training(tmp_path):
    network, x0 = model(), torch.randint(VOCABULARY - 1, (10 * ROWS, LENGTH), generator=seeded(2))
    settings = {"torch_compile": True, "torch_compile_backend": "aot_eager", "use_cpu": True, "report_to": "none"}
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=ROWS, max_steps=10, disable_tqdm=True, save_strategy="no", **settings
    )
    Trainer(network, arguments, train_dataset=list(x0), data_collator=DiffusionCollator(network.config)).train()
    assert graphs() == 1


# ---------------------------------------------------------------------------------------------------------
# What a GPU is asked to do
# ---------------------------------------------------------------------------------------------------------


def a_step_without_values(config: RaddConfig, rows: int, labels: int) -> Watch:
    """The operations of a forward and a backward pass on tensors that have no values."""
    with torch.device("meta"):
        network = RaddForMaskedLM(config).train()
        ids = torch.zeros(rows, config.max_position_embeddings, dtype=torch.int64)
        weights = torch.ones(rows)
    with Watch() as watch:
        network(input_ids=ids, labels=ids, loss_weights=weights, max_targets=labels).loss.backward()
    return watch


def test_a_step_asks_the_device_for_nothing():
    config = RaddConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    watch = a_step_without_values(config, 2, 100)  # a number of a tensor without values cannot be had
    assert not {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"} & set(watch.names)


def test_without_max_targets_the_host_has_to_ask():
    config = RaddConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    with torch.device("meta"):
        network, ids = RaddForMaskedLM(config), torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="meta"):
        network(input_ids=ids, labels=ids)


def test_the_papers_small_model_takes_few_launches_a_step():
    """Views launch nothing. 8,256 launches were counted before, optimizer and clipping included, which are ten now."""
    watch = a_step_without_values(RaddConfig(), 16, 8192)
    assert len(watch.launches) < 1200


def test_the_head_runs_once_and_the_trunk_once():
    config = RaddConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    watch = a_step_without_values(config, 16, 8192)
    chunks = 8192 // kernels_radd.chunk_size(config.vocab_size, torch.device("cuda"))
    assert watch.names.count("aten.logsumexp") == chunks == 2
    assert watch.names.count("aten.native_layer_norm") == 2 * 2 + 1
    assert watch.names.count("aten.gelu") == 2


def test_the_last_layer_computes_all_positions_where_shapes_are_fixed():
    sizes = []
    network = compiled_model()
    network.model.layers[-1].mlp.up_proj.register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].shape[:-1])
    )
    (inputs,) = batches(network, 1)
    network(**inputs)
    assert sizes == [(ROWS, LENGTH)]


def test_the_trunk_alone_compiles_too():
    trunk = RaddModel(model().config).train()
    compile_trunk(trunk, "eager")
    for seed in range(3):
        trunk(input_ids=torch.randint(VOCABULARY, (ROWS, LENGTH), generator=seeded(seed)))
    assert graphs() == 1
