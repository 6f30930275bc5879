# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""An event is a program on fixed memory: what a GPU replays is what a processor is told to do.

Nothing here needs a GPU. Either every operation of an event is watched, or a tape (`support.tapes`) stands in for a
CUDA graph.
"""

import copy
import gc
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached, register_parametrization
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig, LogitsProcessorList

from radd_hf import RaddForMaskedLM, programs_radd
from radd_hf.likelihood import exact_likelihood
from radd_hf.plan_radd import FEW_EVENTS, Schedule, Shape, merge_rare, plan_sequence, recomputed_in
from radd_hf.programs_radd import GRAPHS_KEPT, KEPT, LAYOUTS_KEPT, Programs
from support.programs import (
    EOS,
    assert_same_output,
    graphs_of,
    make_model,
    padded_batch,
    random_settings,
)
from support.programs import LENGTH as L
from support.programs import MASK as M
from support.programs import VOCABULARY as V
from support.tapes import memory_of, waits
from support.toys import FlatNetwork, seeded


@pytest.fixture
def model() -> RaddForMaskedLM:
    return make_model()


# ---------------------------------------------------------------------------------------------------------
# An event could be captured
# ---------------------------------------------------------------------------------------------------------


class Footprint(TorchDispatchMode):
    """Writes down each operation: its name, all numbers, all shapes, and where the tensors lie that were there before.

    Tensors that the event made itself may lie elsewhere each time.
    """

    def __init__(self):
        super().__init__()
        self.steps: list[tuple] = []
        self.made: dict[int, Tensor] = {}
        self.waits: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(operation.overloadpacket)
        if waits(name, args):
            self.waits.append(name)
        result = operation(*args, **kwargs)
        literal = name == "aten.lift_fresh"  # a number in Python, which the host fills in
        inputs = [] if literal else [self.describe(each) for each in tree_leaves((args, kwargs))]
        before = {memory_of(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and (literal or memory_of(each) not in before):
                self.made[memory_of(each)] = each
        self.steps.append((name, *inputs))
        return result

    def describe(self, value):
        if not isinstance(value, Tensor):
            return value
        if memory_of(value) in self.made:
            return "made", tuple(value.shape), value.dtype
        return memory_of(value), value.storage_offset(), tuple(value.shape), value.stride(), value.dtype


CASES = {
    "tweedie": {"num_return_sequences": 3},
    "euler": {"method": "euler", "steps": 9, "num_return_sequences": 2},
    "first_hitting": {"method": "first_hitting", "num_return_sequences": 2},
    "ordered": {"method": "ordered", "order": "random", "num_return_sequences": 2},
    "every step": {"use_cache": False, "steps": 20, "num_return_sequences": 2},
    "padding": padded_batch(),
    "prefix and suffix": {"prefix": [[1, 2], [3]], "suffix": [4]},
    "refresh": {"refresh_interval": 4, "refresh_window": 1, "num_return_sequences": 2, "method": "first_hitting"},
    "refresh and padding": {"refresh_interval": 3, "method": "first_hitting", **padded_batch()},
    "warpers": {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "method": "first_hitting"},
    "likeliest": {"temperature": 0, "method": "first_hitting"},
    "end of text": {"stop_on_eos": True, "method": "first_hitting", "num_return_sequences": 2},
    "confidence": {"method": "ordered", "order": "confidence", "num_return_sequences": 2},
    "margin and padding": {"method": "ordered", "order": "margin", **padded_batch()},
    "entropy bound": {"method": "ordered", "entropy_bound": 0.5, "num_return_sequences": 2},
    "confidence threshold": {"method": "ordered", "confidence_threshold": 0.9, "num_return_sequences": 2},
    "speculation": {"speculate": 3, "method": "first_hitting", "num_return_sequences": 2},
    "speculation, padding and warpers": {"speculate": 2, "method": "ordered", "top_p": 0.8, **padded_batch()},
    "speculation and end of text": {"speculate": 2, "method": "first_hitting", "stop_on_eos": True},
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CASES)
def test_two_events_of_one_shape_do_the_same_on_the_same_memory_and_wait_for_nothing(monkeypatch, name, attention):
    """That is all that a CUDA graph asks for."""
    model, run, seen = make_model(), Programs.run, {}
    model.set_attn_implementation(attention)

    def watched(programs, key, function):
        with Footprint() as footprint:
            run(programs, key, function)
        seen.setdefault(key, []).append(footprint)

    monkeypatch.setitem(programs_radd.CAPTURERS, "cpu", lambda device: lambda function: function)
    monkeypatch.setattr(Programs, "run", watched)
    for seed in range(2):
        model.generate(generator=seeded(seed), **CASES[name])
    # The first event of all makes the memory of keys and values, or of drafts.
    repeated = {key: events[1:] if key[2] or key[0].sequences == 1 else events for key, events in seen.items()}
    assert max(map(len, repeated.values())) >= 5
    for events in repeated.values():
        assert not any(footprint.waits for footprint in events)
        for footprint in events[1:]:
            assert footprint.steps == events[0].steps
    if "refresh" in name:
        assert {bool(shape.recomputed) for shape, *_ in repeated} == {False, True}


def test_without_padding_attention_gets_no_mask(model):
    canvas = torch.full((2, L), M)
    assert model.model.fixed_inputs(canvas, None)["attention_mask"] is None
    assert model.model.fixed_inputs(canvas, torch.ones_like(canvas))["attention_mask"] is None
    padded = padded_batch()["attention_mask"][:2]
    assert model.model.fixed_inputs(canvas, padded)["attention_mask"].shape == (2, 1, L, L)


# ---------------------------------------------------------------------------------------------------------
# Replayed events write what called ones do
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
@pytest.mark.usefixtures("replayed")
def test_replayed_and_called_events_write_the_same_tokens_for_200_random_settings(part):
    draw, graphs = random.Random(part), 0
    models = [make_model(seed=seed) for seed in range(2)]
    models[1].set_attn_implementation("eager")
    for _ in range(50):
        model, settings = draw.choice(models), random_settings(draw)
        expected, found = (model.generate(**settings, cuda_graphs=graphs) for graphs in (False, True))
        assert_same_output(found, expected, settings, tolerance=1e-4)
        graphs += graphs_of(model)
    assert graphs > 50


@pytest.mark.usefixtures("replayed")
def test_a_caller_who_looks_in_between_sees_the_same(model):
    class Keeper:
        def __init__(self):
            self.seen = []

        def put_draft(self, value):
            self.seen.append(value)

        put = put_draft

        def end(self):
            pass

    keepers = [Keeper(), Keeper()]
    for keeper, graphs in zip(keepers, (False, True), strict=True):
        for seed in range(2):
            model.generate(
                num_return_sequences=3, stop_on_eos=True, streamer=keeper, seed=seed, cuda_graphs=graphs, steps=8
            )
    assert len(keepers[0].seen) == len(keepers[1].seen)
    assert all(map(torch.equal, keepers[0].seen, keepers[1].seen))


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_end_long_before_the_host_asks_are_the_same(model, rows):
    """The host asks the GPU after every 16th event which rows have ended."""
    with torch.no_grad():
        model.lm_head.bias[EOS] += 4  # a model that likes to end
    settings = {"method": "ordered", "length": 50, "stop_on_eos": True, "num_return_sequences": rows}
    ended = []
    for seed in range(6):
        expected, found = (
            model.generate(seed=seed, cuda_graphs=graphs, return_dict_in_generate=True, **settings)
            for graphs in (False, True)
        )
        for name in ("sequences", "reveal_step", "num_function_evaluations"):
            assert torch.equal(found[name], expected[name]), name
        ended += expected.num_function_evaluations.tolist()
    assert min(ended) < 8
    assert max(ended) > 4


@pytest.mark.parametrize("name", CASES)
def test_other_defaults_of_torch_change_nothing(name):
    """A default device would be a GPU's; on "meta" nothing could be read."""
    model = make_model()
    expected = model.generate(seed=0, **CASES[name])
    with torch.device("meta"):
        assert torch.equal(model.generate(seed=0, **CASES[name]), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(model.generate(seed=0, **CASES[name]), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("replayed")
def test_time_that_runs_out_is_noticed_between_replays(model, monkeypatch):
    def sample(**settings):
        clock = iter([0.0] * 6 + [10.0])
        monkeypatch.setattr("radd_hf.generation_radd.time.monotonic", lambda: next(clock))
        return model.generate(method="first_hitting", max_time=5.0, seed=1, return_dict_in_generate=True, **settings)

    expected = sample(cuda_graphs=False)
    for _ in range(2):
        found = sample()
        assert torch.equal(found.sequences, expected.sequences)
        assert found.num_function_evaluations == expected.num_function_evaluations == 6


# ---------------------------------------------------------------------------------------------------------
# A changed model is captured anew
# ---------------------------------------------------------------------------------------------------------


def check_replays(model, wrap=nullcontext, **settings) -> int:
    """Compares three replayed calls with called ones; returns the number of graphs."""
    for seed in range(3):
        with wrap():
            expected, found = (
                model.generate(seed=seed, num_return_sequences=2, steps=8, cuda_graphs=graphs, **settings)
                for graphs in (False, True)
            )
        assert torch.equal(expected, found)
    return graphs_of(model)


def update_in_place(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=seeded(3)))


def replace_a_weight(model):
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.randn(64, 16, generator=seeded(3)))


def replace_the_data(model):
    model.lm_head.weight.data = torch.randn(V, 16, generator=seeded(3))


def load_other_weights(model):
    state = {name: -value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def patch_a_class(model):
    up, forward = model.model.layers[0].mlp.up_proj, nn.Linear.forward
    other = type("Other", (nn.Linear,), {"forward": lambda self, hidden: -forward(self, hidden)})
    up.__class__ = other


def transpose_a_weight(model):
    weight = model.model.layers[0].self_attn.o_proj.weight
    weight.data = weight.data.t()


def replace_a_module(model):
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def replace_a_module_by_one_at_its_address(model):
    for activation in (nn.Tanh, nn.Sigmoid):
        model.model.layers[1].mlp.act_fn = None
        model.model.layers[1].mlp.act_fn = activation()


CHANGES = {
    "updated in place": update_in_place,
    "a new parameter": replace_a_weight,
    "new data": replace_the_data,
    "assigned state": load_other_weights,
    "another class": patch_a_class,
    "a transposed weight": transpose_a_weight,
    "another activation": replace_a_module,
    "another activation at the same address": replace_a_module_by_one_at_its_address,
    "cast": lambda model: model.double(),
    "another attention": lambda model: model.set_attn_implementation("eager"),
    "other rotary angles": lambda model: model.config.rope_parameters.update(rope_theta=10.0),
    "another epsilon": lambda model: setattr(model.model.norm, "eps", 100.0),
    "training mode": lambda model: model.train(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.usefixtures("replayed")
def test_a_changed_model_is_not_replayed_as_it_was(model, change):
    assert check_replays(model) > 0
    before = model.generate(seed=0, num_return_sequences=2, steps=8)
    CHANGES[change](model)
    assert check_replays(model) > 0
    if change not in ("cast", "another attention", "training mode"):
        assert not torch.equal(model.generate(seed=0, num_return_sequences=2, steps=8), before)


@pytest.mark.usefixtures("replayed")
def test_an_address_that_another_module_gets_is_not_taken_for_the_old_one(model):
    """Python gives the memory of a module that is gone to the next one of its size."""
    mlp = model.model.layers[0].mlp
    for activation in (nn.Tanh, nn.Sigmoid) * 5:
        mlp.act_fn = None
        mlp.act_fn = activation()
        assert check_replays(model) > 0


@pytest.mark.usefixtures("replayed")
def test_adapters_may_be_added_changed_switched_off_and_merged(model):
    check_replays(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["qkv_proj", "up_proj"], init_lora_weights=False))
    texts = []

    def check():
        assert check_replays(model) > 0
        texts.append(model.generate(seed=0))

    check()
    with adapted.disable_adapter():
        check()
    check()
    for module in model.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling["default"] *= 20
    check()
    adapted.add_adapter("other", LoraConfig(r=4, target_modules=["o_proj"], init_lora_weights=False))
    adapted.set_adapter("other")
    check()
    assert len({tuple(text[0].tolist()) for text in texts}) == 4, "the third is the first again"


@pytest.mark.usefixtures("replayed")
def test_hooks_run_at_every_event(model):
    check_replays(model)
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.generate(method="first_hitting", seed=0)
    assert len(calls) == L
    handle.remove()
    assert check_replays(model) > 0


@pytest.mark.usefixtures("replayed")
def test_parametrized_weights_are_computed_at_every_event(model):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    register_parametrization(model.model.layers[0].mlp.up_proj, "weight", Twice())
    assert check_replays(model, cached) == 0
    update_in_place(model)
    check_replays(model, cached)


@pytest.mark.usefixtures("replayed")
def test_the_precision_of_products_may_be_set_either_way(model):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert check_replays(model) > 0
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("replayed")
def test_a_callers_processor_runs_at_every_event(model):
    seen = []

    def processor(canvases, scores):
        seen.append(scores.shape)
        return scores

    for _ in range(2):
        model.generate(method="first_hitting", seed=0, logits_processor=LogitsProcessorList([processor]))
    assert seen == [(1, V)] * 2 * L


@pytest.mark.usefixtures("replayed")
def test_autocast_in_replays_sees_weights_as_they_are(model):
    """Autocast keeps casts of weights until it ends; a graph that used them would see old weights."""

    def cast():
        return torch.autocast("cpu", torch.bfloat16)

    assert check_replays(model, cast) > 0
    update_in_place(model)
    assert check_replays(model, cast) > 0
    assert check_replays(model) > 0, "and without autocast the memory of keys has another dtype"
    check_replays(model, cast, refresh_interval=3)
    check_replays(model, refresh_interval=3)


@pytest.mark.usefixtures("replayed")
def test_calls_with_and_without_inference_mode_share_memory(model):
    for wrap in (torch.inference_mode, nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad):
        assert check_replays(model, wrap) > 0
        check_replays(model, wrap, refresh_interval=3)


# ---------------------------------------------------------------------------------------------------------
# The programs of a model
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("replayed")
def test_an_exact_likelihood_is_replays_that_see_weights_as_they_are(model, monkeypatch):
    texts = [torch.randint(M, (length,), generator=seeded(length)) for length in (L, L, 5, L)]
    forwards = []
    for settings in ({"order": "random", "batch_size": 5}, {"batch_size": 64}):
        for change in (lambda model: None, update_in_place, replace_a_weight):
            change(model)
            model.generation_config.cuda_graphs = False
            expected = exact_likelihood(model, texts, **settings)
            model.generation_config.cuda_graphs = True
            for _ in range(2):
                found = exact_likelihood(model, texts, **settings)
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr("radd_hf.likelihood._evaluate_one_token", lambda *_: forwards.append(1))
    exact_likelihood(model, texts, batch_size=64)
    assert not forwards, "all of it was captured before"


@pytest.mark.usefixtures("replayed")
def test_programs_serve_later_calls_and_can_be_switched_off_and_freed(model):
    def graphs() -> set[int]:
        return {id(replay) for programs in KEPT[model].layouts.values() for replay in programs.replays.values()}

    model.generate(method="first_hitting", cuda_graphs=False)
    assert model not in KEPT
    model.generate(method="first_hitting", seed=0)
    first = graphs()
    model.generate(method="first_hitting", seed=1)
    assert graphs() == first
    model.free_cuda_graphs()
    assert model not in KEPT
    model.generation_config.cuda_graphs = False
    model.generate(method="first_hitting")
    assert model not in KEPT


@pytest.mark.usefixtures("replayed")
def test_many_settings_do_not_fill_the_memory(model):
    for step in range(200):
        model.generate(method="first_hitting", length=4, temperature=1 + step / 100)
    (programs,) = KEPT[model].layouts.values()
    assert len(programs.replays) == GRAPHS_KEPT
    assert len(programs.calls) <= GRAPHS_KEPT


@pytest.mark.usefixtures("replayed")
def test_odd_attributes_of_a_model_do_no_harm(model):
    itself: dict = {}
    itself["itself"] = itself
    model.registry, model.seen, model.table = itself, [1, {2}], torch.eye(3).to_sparse()
    assert check_replays(model) > 0
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.free_cuda_graphs()
    assert check_replays(model) == 0


@pytest.mark.parametrize("config", [None, GenerationConfig()])
def test_a_likelihood_needs_no_generation_config_of_ours(model, config):
    expected = exact_likelihood(model, [torch.tensor([1, 2, 3])])
    model.generation_config = config
    assert torch.equal(exact_likelihood(model, [torch.tensor([1, 2, 3])]), expected)


@pytest.mark.usefixtures("replayed")
def test_a_model_keeps_few_memories_and_a_copy_or_a_dead_model_none(model):
    for length in range(3, 12):
        model.generate(length=length, seed=0)
    assert len(KEPT[model].layouts) == LAYOUTS_KEPT
    assert copy.deepcopy(model) not in KEPT
    gc.collect()
    before = len(KEPT)
    other = make_model()
    other.generate(seed=0)
    assert len(KEPT) == before + 1
    del other
    gc.collect()
    assert len(KEPT) == before


@pytest.mark.usefixtures("replayed")
def test_a_model_that_is_moved_gives_its_memory_back_at_once(model):
    model.generate(seed=0)
    model.to("cpu")
    assert model not in KEPT


@pytest.mark.usefixtures("replayed")
def test_several_threads_may_generate_with_one_model(model):
    expected = [model.generate(seed=seed, num_return_sequences=2, cuda_graphs=False) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: model.generate(seed=seed, num_return_sequences=2), range(12)))
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("replayed")
def test_after_an_error_in_between_the_next_call_is_right(model):
    class Broken:
        def put_draft(self, value):
            raise KeyError("out of paper")

        put = end = put_draft

    check_replays(model)
    with pytest.raises(KeyError):
        model.generate(streamer=Broken(), seed=0, num_return_sequences=2, steps=8)
    check_replays(model)


def test_a_thread_calls_a_program_before_it_captures_it():
    """A thread has its own handles of CUDA's libraries, which cannot be made during a capture."""
    done: list[str] = []

    def capture(function):
        done.append("captured")
        return lambda: done.append("replayed")

    programs = Programs(torch.device("cpu"), capture)

    def run():
        programs.run("program", lambda: done.append("called"))

    run()
    with ThreadPoolExecutor(1) as other:
        for _ in range(3):
            other.submit(run).result()
    run()
    assert done == ["called", "called", "captured", "replayed", "replayed", "replayed"]


def test_what_cannot_be_captured_is_called_with_a_warning(model, monkeypatch):
    def refuse(function):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise AssertionError("the error that torch raises on the way out")

    expected = model.generate(seed=0)
    monkeypatch.setitem(programs_radd.CAPTURERS, "cpu", lambda device: refuse)
    with pytest.warns(UserWarning, match="CUDA graphs are off .*stream is capturing"):
        assert torch.equal(model.generate(seed=0), expected)
    assert torch.equal(model.generate(seed=0), expected), "and without another warning"
    model.generate(length=5), "nor in another shape"


@pytest.mark.usefixtures("replayed")
def test_the_network_runs_once_a_capture():
    network = FlatNetwork(5, 64)
    for seed in range(5):
        network.generate(seed=seed, num_return_sequences=4)
    assert 2 <= len(network.rows_evaluated) == graphs_of(network) <= 8


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


def test_shapes_are_rounded_up_and_the_rare_take_larger_ones():
    assert Shape(3, 5, 11, 10).rounded(8, 12) == Shape(4, 8, 16, 12)
    assert Shape(3, 1, 3, 0).rounded(3, 12) == Shape(3, 1, 3, 0)
    often, rare, wide = Shape(4, 2, 4, 0), Shape(2, 1, 2, 0), Shape(4, 8, 8, 0)
    shapes = [*[often] * FEW_EVENTS, rare, wide]
    assert merge_rare(shapes) == [*[often] * FEW_EVENTS, often, wide]
    partial = Shape(4, 2, 4, 8)
    assert merge_rare([*[often] * FEW_EVENTS, partial]) == [*[often] * FEW_EVENTS, partial], "of another kind"


def test_a_schedule_counts_what_its_events_choose():
    masked = torch.rand(5, 20, generator=seeded(0)) < torch.linspace(0, 1, 5)[:, None]
    plan = plan_sequence(masked, torch.rand(5, 20, generator=seeded(1)), steps=7)
    for interval, window in ((1, 0), (3, 0), (3, 1), (3, 2), (4, 5), (50, 3), (50, 30)):
        schedule = Schedule(plan, None, interval, window)
        event = schedule.event_of
        for number, shape in enumerate(schedule.shapes):
            now = event == number
            assert shape.rows == int((event.amax(dim=1) >= number).sum())
            assert not now[shape.rows :].any(), "rows that still have events are the first"
            assert (shape.per_row, shape.total) == (int(now.sum(dim=1).max()), int(now.sum()))
            computed = recomputed_in(event, torch.tensor(number), window)[: shape.rows]
            assert shape.recomputed == (int(computed.sum(dim=1).max()) if number % interval else 0)


def test_a_batch_costs_no_more_rows_than_it_has_events():
    network = FlatNetwork(5, 16)
    canvas = torch.full((4, 16), 4)
    for row, given in enumerate((0, 10, 14, 16)):
        canvas[row, :given] = 1
    nfe = network.generate(canvas, method="first_hitting", return_dict_in_generate=True).num_function_evaluations
    assert nfe.tolist() == [16, 6, 2, 0]
    assert sum(network.rows_evaluated) == 24
