# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m benchmarks`: the baseline computes what the library computes, operations and bytes are counted right.

Shapes: R rows, L length, V vocabulary with the mask.
"""

import json
import mmap
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as entry
from benchmarks import (
    attention,
    baseline,
    commands,
    draw,
    head,
    layers,
    measure,
    partial_caching,
    preparation,
    trainers,
)
from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.likelihood import exact_likelihood
from radd_hf.losses import LOSS_TYPES, draw_masks
from radd_hf.noise_radd import get_noise
from support.laws import (
    ACCEPTED,
    BY_NAME,
    FREE,
    LENGTH,
    MASK,
    REFUSED,
    goodness_of_fit,
    joint_law,
    logits_by_canvas,
    marginal,
)
from support.paths import ROOT
from support.toys import TableNetwork, seeded, tiny_model

ROWS = 20_000
TINY = (
    "--repeats 1 --timed_steps 3 --matmul_size 16 --vocab_size 20 --hidden_size 8 --layers 2 --heads 2 "
    "--evaluation 1x4x2 --cached 2x4x8 --partial 1x4x4 --refresh_interval 2 --nfe_steps 2 4 "
    "--ordered 1x4 --ordered_top_p 1x4 --ordered_partial 2x4 --infill 8x2 "
    "--sweep_batches 1 2 --sweep_length 4 --sweep_lengths 2 4 --sweep_steps 2 --training 2x4 --likelihood 2x4 "
    "--loading 4 --memory 2x4x2 --vocabularies 10 20 --preparation 8x4x1000 --preparation_repeats 2"
)


def grid_sampler(network: TableNetwork, canvas: torch.Tensor, steps: int, method: str = "tweedie", seed: int = 0):
    def logits(canvas):
        return network.compute_logits(network.logits(canvas))

    config = network.config
    noise, sizes = get_noise(config), (config.vocab_size, config.mask_token_id)
    return baseline.GridSampler(logits, canvas, *sizes, noise, steps, method, seeded(seed))


# ---------------------------------------------------------------------------------------------------------
# The baseline computes what the library computes
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [FREE, (MASK, 1, MASK)])
@pytest.mark.parametrize(
    "name", ["tweedie-loglinear-1", "tweedie-geometric-3", "euler-geometric-2", "euler-loglinear-3"]
)
def test_the_baseline_samples_the_enumerated_law(name, canvas):
    method = BY_NAME[name]
    network = TableNetwork(noise_type=method.noise)
    law = marginal(joint_law(logits_by_canvas(network), canvas, method.plans(canvas)), LENGTH)
    sampler = grid_sampler(network, torch.tensor(canvas).repeat(ROWS, 1), **method.arguments)
    assert goodness_of_fit(sampler.run(), law) > ACCEPTED


def test_a_baseline_that_keeps_what_it_should_ask_again_is_refused():
    method, network = BY_NAME["tweedie-loglinear-3"], TableNetwork()
    law = marginal(joint_law(logits_by_canvas(network), FREE, method.plans(FREE)), LENGTH)
    sampler = grid_sampler(network, torch.tensor(FREE).repeat(ROWS, 1), 3)
    sampler.ask()
    first = sampler.distribution
    for number in range(3):
        sampler.at_masks = first[sampler.canvas == MASK]
        sampler.reveal(number)
    assert goodness_of_fit(sampler.canvas, law) < REFUSED


def test_the_baseline_asks_of_a_row_at_first_and_after_it_has_changed():
    sampler = grid_sampler(TableNetwork(), torch.tensor(FREE).repeat(5, 1), steps := 12)
    plan = torch.full((5, LENGTH), -1)
    for number in range(steps):
        masked = sampler.canvas == MASK
        sampler.step(number)
        plan[masked & (sampler.canvas != MASK)] = number
    assert (plan >= 0).all()
    assert sampler.forwards == baseline.forwards_of(plan, steps)
    assert sampler.evaluations.tolist() == [baseline.forwards_of(row, steps) for row in plan]
    assert sampler.evaluations.max() < steps


def test_a_baseline_resumed_at_any_step_goes_on_as_the_run_would():
    network, steps = TableNetwork(), 6
    whole = grid_sampler(network, torch.tensor(FREE).repeat(4, 1), steps)
    states = []
    for number in range(steps):
        states.append((whole.canvas.clone(), whole.changed))
        whole.step(number)
    when = sum((canvas == MASK).long() for canvas, _ in states) - 1  # (R, L) the last step that found a mask
    for number, (canvas, changed) in enumerate(states):
        sampler = grid_sampler(network, torch.tensor(FREE).repeat(4, 1), steps)
        sampler.resume(when, whole.canvas, number)
        assert torch.equal(sampler.canvas, canvas)
        assert torch.equal(sampler.changed, changed)
        sampler.step(number)


def test_a_token_of_probability_zero_is_never_drawn():
    probabilities = torch.tensor([[0.0, 1e-30, 0.0]]).repeat(10_000, 1)
    assert (baseline.draw(probabilities, seeded(0)) == 1).all()


def test_the_plan_that_is_timed_is_the_one_that_generate_draws():
    model = tiny_model(length=16)
    plan = baseline.make_plan((3, 16), get_noise(model.config), 10, seed=5)
    canvas = torch.full((3, 16), model.config.mask_token_id)
    output = model.generate(canvas, steps=10, generator=seeded(5), return_dict_in_generate=True)
    assert torch.equal(output.reveal_step, plan)
    assert output.num_function_evaluations.tolist() == [len(row.unique()) for row in plan]


def test_the_baseline_fills_an_order_by_the_enumerated_law():
    method, network = BY_NAME["ordered-backward-None"], TableNetwork()
    law = marginal(joint_law(logits_by_canvas(network), FREE, method.plans(FREE)), LENGTH)
    sampler = grid_sampler(network, torch.tensor(FREE).repeat(ROWS, 1), 1)
    texts = baseline.fill_in_order(sampler.network, sampler.canvas, [2, 1, 0], seeded(0))
    assert goodness_of_fit(texts, law) > ACCEPTED


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_baselines_loss_and_gradient_are_the_librarys(loss_type):
    model = tiny_model(vocab_size=11, length=8)
    mask_id = model.config.mask_token_id
    x0 = torch.randint(mask_id, (4, 8), generator=seeded(0))
    masks = draw_masks(loss_type, 4, 8, get_noise(model.config), seeded(1))
    losses = (
        baseline.training_loss(baseline.full_logits(model), x0, masks, mask_id),
        model(**masks.apply(x0, mask_id)).loss,
    )
    theirs, ours = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    torch.testing.assert_close(*losses)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_baselines_likelihood_in_an_order_is_the_librarys():
    model = tiny_model(vocab_size=11, length=8)
    x0 = torch.randint(10, (2, 8), generator=seeded(0))
    scored = torch.zeros(8, dtype=torch.bool)
    scored[[1, 4, 6]] = True
    for positions, where in ((list(range(8)), torch.ones(8, dtype=torch.bool)), ([1, 4, 6], scored)):
        nats = baseline.nll_in_order(baseline.full_logits(model), x0, positions, 10)
        torch.testing.assert_close(nats.double(), exact_likelihood(model, list(x0), scored=[where] * 2))


# ---------------------------------------------------------------------------------------------------------
# What is counted
# ---------------------------------------------------------------------------------------------------------


def counted_model() -> RaddForMaskedLM:
    """The operations of attention are seen by torch's counter when they are written out."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 20}
    return RaddForMaskedLM(RaddConfig(**sizes, max_position_embeddings=12, attn_implementation="eager")).eval()


def test_operations_of_an_evaluation_are_those_that_a_counter_finds():
    model, wanted = counted_model(), torch.zeros(2, 12, dtype=torch.bool)
    wanted[:, [3, 7, 8]] = True
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 12, dtype=torch.int64), output_positions=wanted)
    assert counter.get_total_flops() == measure.evaluation_flops(model.config, 12, [3, 3])


def test_operations_of_a_sample_are_those_that_a_counter_finds():
    model = counted_model()
    canvas = torch.full((1, 12), model.config.mask_token_id)
    with FlopCounterMode(display=False) as counter:
        output = model.generate(canvas, steps=5, generator=seeded(0), return_dict_in_generate=True)
    assert counter.get_total_flops() == measure.sampling_flops(model.config, output.reveal_step)


def test_operations_of_a_training_step_are_those_that_a_counter_finds():
    model, masked = counted_model(), torch.arange(12).expand(2, -1) < 5
    x0 = torch.zeros(2, 12, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(x0, labels=x0.masked_fill(~masked, -100)).loss.backward()
    assert counter.get_total_flops() == measure.training_flops(model.config, masked)


def test_a_row_that_needs_no_law_needs_no_operations():
    config = counted_model().config
    assert measure.evaluation_flops(config, 12, [0, 2]) == measure.evaluation_flops(config, 12, [2])


def test_peak_memory_is_what_tensors_hold_at_once_above_what_was_there():
    kept = torch.ones(1_000_000)

    def run():
        for _ in range(3):
            doubled = kept * 2  # 4 MB
            both = doubled + 1  # 4 MB beside it
            del doubled, both

    assert measure.peak_bytes(run) == pytest.approx(8e6, rel=1e-3)


def test_resident_memory_is_that_above_what_was_there_on_entry():
    # Pages of its own: malloc may answer with free memory of the heap, which is resident already.
    with measure.ResidentPeak() as memory, mmap.mmap(-1, 64_000_000) as pages:  # 64 MB, gone before the end
        pages.write(bytes(64_000_000))
        time.sleep(0.1)  # on a busy machine the thread that looks may get no turn before
    assert 50e6 < memory.bytes < 150e6


def test_sides_take_turns_and_the_matrix_product_among_them():
    turns = []

    def side(name):
        return lambda: turns.append(name) or 1.0

    case = measure.compare("case", "s", 1.0, {name: side(name) for name in measure.SIDES}, 2, 8)
    assert turns == list(measure.SIDES) * 2
    assert all(len(rates) == 2 for rates in case.rates.values())


def test_ratio_and_fraction_come_from_medians():
    values = {measure.BASELINE: [9.0, 4.0, 1.0], measure.OURS: [2.0, 2.0, 50.0], measure.OURS_BF16: [1.0, 1.0, 1.0]}
    rates = {side: [10.0, 100.0, 20.0] for side in measure.SIDES}
    case = measure.Case("case", "s", values, flops=20.0, rates=rates)
    assert (case.ratio(measure.OURS), case.ratio(measure.OURS_BF16)) == (2, 4)
    assert (case.fraction(measure.BASELINE), case.fraction(measure.OURS)) == (0.25, 0.5)


@pytest.mark.parametrize(("count", "total", "places"), [(4, 8, [1, 3, 5, 7]), (2, 64, [16, 48]), (9, 3, [0, 1, 2])])
def test_timed_steps_are_the_middles_of_equal_parts(count, total, places):
    assert commands.spread(count, total) == places


def test_what_is_scaled_comes_to_the_time_of_the_whole_run(monkeypatch):
    """With a clock that charges 3 for an evaluated row and 1 for a draw at all masks."""

    def clock(function):
        if isinstance(function, partial):  # of `reveal`
            return 1.0
        rows = int(function.__self__.changed.sum())
        function()
        return 3.0 * rows

    monkeypatch.setattr(commands, "seconds", clock)
    monkeypatch.setattr(commands, "compare", lambda name, unit, flops, sides, *rest, **facts: sides)
    monkeypatch.setattr(commands, "warm_up", lambda *sizes: None)
    args = SimpleNamespace(seed=0, timed_steps=16, repeats=1, matmul_size=8)
    models = dict.fromkeys(measure.SIDES, tiny_model(length=8))
    sides = commands.sampling_case(args, models, 2, 8, 64, each_evaluation=False)
    plan = baseline.make_plan((2, 8), get_noise(models[measure.OURS].config), 64, 0)
    evaluations = sum(baseline.forwards_of(row, 64) for row in plan)
    assert sides[measure.BASELINE]() == pytest.approx(64 + 3 * evaluations)


# ---------------------------------------------------------------------------------------------------------
# The entry point
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "lines", "plots"),
    [
        ("sampling", 7, ["nfe", "time"]),
        ("training", 3, []),
        ("likelihood", 1, []),
        ("loading", 2, []),
        ("memory", 4, ["memory"]),
        ("preparation", 0, []),
    ],
)
def test_each_command_prints_its_table_and_writes_json_and_plots(tmp_path, capsys, command, lines, plots):
    report, pictures = tmp_path / "report.json", tmp_path / "pictures"
    entry.main([command, *TINY.split(), "--json", str(report), "--plots", str(pictures)])
    printed = capsys.readouterr().out
    written = json.loads(report.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(written["cases"]) == lines
    assert {"cpu", "cores", "torch", "threads"} <= set(written["machine"])
    for case in written["cases"]:
        assert f"| {case['name']} |" in printed
        assert f"* {case['name']}: how: " in printed
        assert list(case["sides"]) == list(measure.SIDES)
        assert all(side["median"] > 0 for side in case["sides"].values())
        assert all(
            (side["fraction"] is None)
            == (case["unit"] == "MB" or command == "loading" or "refresh_interval" in case["name"])
            for side in case["sides"].values()
        )
    assert sorted(path.stem for path in pictures.iterdir()) == sorted([*plots, *(f"{name}-dark" for name in plots)])
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in pictures.iterdir())


def test_what_the_host_prepares_is_timed_for_every_loss_beside_the_step(tmp_path, capsys):
    entry.main(["preparation", *TINY.split(), "--json", str(tmp_path / "report.json")])
    points = json.loads((tmp_path / "report.json").read_text())["preparation"]
    assert [point["loss_type"] for point in points] == list(LOSS_TYPES)
    printed = capsys.readouterr().out
    assert preparation.HEADER in printed
    for point in points:
        assert preparation.format_row(point) in printed
        assert point["step_ms"] == 32  # 8 rows of 4 at 1000 tokens/s
        assert point["fraction_of_the_step"] == pytest.approx(point["all_ms"] / 32)
        assert all(len(each) == 2 and min(each) > 0 for each in point["repeats"].values())


def test_every_command_runs_when_none_is_named():
    assert entry.parse_arguments([]).commands == list(commands.COMMANDS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["speed"], "'speed' must be one of sampling, training"), (["--cached", "8x128"], "must be 3 positive numbers")],
)
def test_an_argument_that_means_nothing_is_named(capsys, argv, message):
    with pytest.raises(SystemExit):
        entry.parse_arguments(argv)
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------
# On a GPU, as far as a processor can show it
# ---------------------------------------------------------------------------------------------------------

SCRIPT = "--script_step --compile --compile_backend eager --training_steps 2 --training_tiny 2x4"


@pytest.fixture
def card_sides(monkeypatch):
    """The sides of a GPU, here computed by a processor."""
    for module in (commands, entry):
        monkeypatch.setattr(module, "sides_of", lambda device: measure.GPU_SIDES)


@pytest.mark.parametrize("command", ["sampling", "training", "likelihood", "loading", "memory"])
def test_the_sides_of_a_card_are_compared(card_sides, tmp_path, capsys, command):
    files = ["--json", str(tmp_path / "report.json"), "--plots", str(tmp_path)]
    entry.main([command, *TINY.split(), *SCRIPT.split(), *files])
    assert entry.header(measure.GPU_SIDES) in capsys.readouterr().out
    cases = json.loads((tmp_path / "report.json").read_text())["cases"]
    assert all(list(case["sides"]) == ["baseline fp16", "ours fp32", "ours bf16"] for case in cases)
    assert all(side["median"] > 0 for case in cases for side in case["sides"].values())
    names = [case["name"].split(",")[0] for case in cases]
    if command == "training":
        assert names[:2] == ["first 10 training steps", "training step"]
        assert names[4:] == names[:4]  # the small model's
        step = cases[1]
        assert "ours compiled (eager)" in step["facts"]["how"]
        assert step["facts"]["tokens_per_second"]["ours bf16"] == round(2 * 4 / step["sides"]["ours bf16"]["median"])


def test_the_header_names_the_sides_of_the_device():
    page = (ROOT / "docs" / "performance.md").read_text()
    assert entry.header(measure.SIDES) in page
    assert entry.header(measure.sides_of("cuda")).startswith("| case | unit | baseline fp16 | ours fp32 | ours bf16 |")


def test_what_differs_on_a_card_can_be_said_otherwise():
    here, there = (entry.parse_arguments(["--device", device]) for device in ("cpu", "cuda"))
    assert (here.matmul_size, here.training, here.compile, here.script_step) == (4096, [(4, 256)], False, False)
    assert (there.matmul_size, there.training) == (8192, [(32, 1024)])
    assert (there.training_medium, there.training_tiny) == ([(16, 1024)], [(1024, 82)])
    assert (there.compile, there.script_step) == (True, True)
    args = entry.parse_arguments(
        ["--device", "cuda", "--no-compile", "--no-script_step", "--training", "8x16", "--training_tiny"]
    )
    assert (args.compile, args.script_step, args.training, args.training_tiny) == (False, False, [(8, 16)], [])


def test_a_card_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        entry.main(["--device", "cuda"])


def test_the_clock_waits_for_a_card_before_it_starts_and_before_it_stops(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    measure.seconds(lambda: calls.append("work"))
    assert calls == ["work"]  # where none was ever used
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    measure.seconds(lambda: calls.append("work"))
    assert calls[1:] == ["wait", "work", "wait"]


def test_peak_memory_of_a_card_is_above_what_was_there(monkeypatch):
    held = {"now": 5, "most": 100}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(most=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["most"])
    assert measure.peak_bytes(lambda: held.update(most=12), "cuda") == 7


def test_the_card_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    machine = measure.describe_machine("cuda")
    assert (machine["card"], machine["card_memory_gb"], machine["cuda"]) == ("a card", 80.0, torch.version.cuda)
    assert machine["cores"]
    assert "card" not in measure.describe_machine()


def test_products_that_are_timed_as_one_are_counted_as_many(monkeypatch):
    monkeypatch.setitem(measure.PRODUCTS, "cpu", 10)
    product, calls = measure.MatrixProduct(torch.float32, 8), []
    product.ways = [lambda: calls.append(1)]
    monkeypatch.setattr(measure, "seconds", lambda way: way() or 0.5)
    assert product.rate() == 10 * 2 * 8**3 / 0.5
    assert len(calls) == 10


def test_the_baseline_in_float16_says_what_it_says_in_float32():
    model = tiny_model(vocab_size=11, length=8)
    canvas = torch.randint(11, (3, 8), generator=seeded(0))
    half, whole = (baseline.full_logits(model, dtype)(canvas) for dtype in (torch.float16, None))
    assert (half.dtype, whole.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(half.float(), whole, rtol=1e-2, atol=1e-2)


def test_a_law_that_is_kept_in_float16_is_drawn_from_in_float32():
    method, network = BY_NAME["tweedie-loglinear-3"], TableNetwork()
    law = marginal(joint_law(logits_by_canvas(network), FREE, method.plans(FREE)), LENGTH)
    sampler = grid_sampler(network, torch.tensor(FREE).repeat(ROWS, 1), 3)
    sampler.distribution = sampler.distribution.half()
    assert goodness_of_fit(sampler.run(), law) > ACCEPTED
    assert sampler.at_masks.dtype == torch.float16


def test_ours_steps_as_the_script_does():
    """Another batch each step, the averages behind it, and the baseline on the first batch, whole steps in float16."""
    model = tiny_model(vocab_size=11, length=8)
    before = [weight.detach().clone() for weight in model.parameters()]
    with preparation.prepared(model.config, "lambda_DCE", 4, 8, 0, "cpu", 100) as batches:
        trainer = trainers.ScriptTrainer(model, measure.GPU_SIDES, batches, seed=0)
        trainer.compile("eager")
        first = trainer.masks_there.masked.clone()
        assert (trainer.x0 < 10).all()  # clean ids, no mask
        for _ in range(2):
            losses = [trainer.step(side) for side in trainer.sides]
            assert all(loss.isfinite() for loss in losses)
        assert trainer.averages.updates == 4  # of both sides that are ours
        assert batches.step == 1 + 4
        inputs = trainer.inputs()
        assert not torch.equal(inputs["labels"] != -100, first)
        assert torch.equal(trainer.masks_there.masked, first)
        weights = [weight.detach().clone() for weight in model.parameters()]
        assert any(not torch.equal(a, b) for a, b in zip(before, weights, strict=True))
        trainer.step(measure.BASELINE_FP16)
        assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        assert trainer.scalers[measure.BASELINE_FP16].get_scale() == 1.0  # no step was left out


def test_blocks_of_random_tokens_have_no_mask():
    blocks = preparation.random_blocks(11, 3, 7, seed=0)
    tokens = torch.cat([blocks.rows(step, range(3)) for step in range(preparation.EPOCH)])
    assert tokens.shape == (3 * preparation.EPOCH, 7)
    assert 0 <= tokens.min() <= tokens.max() == 9


def test_what_partial_caching_costs_is_measured_beside_the_exact_sampler(tmp_path, capsys, monkeypatch):
    tiny_model(length=6, std=1.0).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(partial_caching, "SETTINGS", [(1, 0), (3, 1)])
    files = ["--json", str(tmp_path / "report.json"), "--plot", str(tmp_path / "plot.png")]
    counts = ["--rows", "3", "--scored_rows", "2", "--passes", "2", "--repeats", "1"]
    partial_caching.main(["--model", str(tmp_path / "model"), *counts, *files])
    exact, partial = json.loads((tmp_path / "report.json").read_text())["outcomes"]
    # Events 0 and 3 of 6 are whole; the others compute a new token, its neighbours and the next place, 3 or 4 of 6.
    assert exact["cost"] == 6
    assert 2 + 4 * 2 / 6 < partial["cost"] < 2 + 4 * 5 / 6
    assert abs(exact["kl"]) < 1e-6 < abs(partial["kl"])
    assert (exact["nll_above"], exact["nll_above_error"]) == (0, 0)
    assert capsys.readouterr().out.count("\n| ") == 3
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_of_the_page_are_those_that_were_measured():
    page, figures = (ROOT / "docs" / "performance.md").read_text(), ROOT / "docs" / "figures"
    names = ("speed.json", "speed_h100.json", "sampling_h100.json")
    here, there, sampled = (json.loads((figures / name).read_text())["cases"] for name in names)
    assert min(len(here), len(sampled)) >= 10
    for case in here + there + sampled:
        sides = case["sides"].items()
        values = {side: each["all"] for side, each in sides}
        rates = {side: [each["matmul_flops_per_second"]] for side, each in sides if case["flops"]}
        row = entry.format_row(measure.Case(case["name"], case["unit"], values, case["flops"], rates))
        assert (row in page) == ("V=" not in case["name"]), row  # those against the vocabulary are a picture
        for rate in case["facts"].get("tokens_per_second", {}).values():
            said = f"{round(rate, -3):,}" in page
            assert said == (case in there and rate == case["facts"]["tokens_per_second"]["ours bf16"]), rate
    outcomes = json.loads((figures / "partial_caching.json").read_text())["outcomes"]
    outcomes = [partial_caching.Outcome(**outcome) for outcome in outcomes]
    for outcome in outcomes:
        assert partial_caching.format_row(outcome, outcomes[0]) in page


def test_attention_by_products_is_timed_beside_torchs_and_no_less_exact_than_bfloat16_allows(capsys, monkeypatch):
    monkeypatch.setattr(attention, "SIZES", [(2, 8), (1, 300)])
    attention.main(["--heads", "2", "--width", "16", "--repeats", "1"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["2", "8"], ["1", "300"]]
    assert all(float(error.rstrip("%")) < 1 for row in rows for error in row[5:])


@pytest.mark.skipif(layers.ONEDNN_LINEAR is None, reason="torch was built without oneDNN")
def test_every_product_is_timed_by_both_libraries_and_the_same_by_both(capsys):
    layers.main(["--hidden_size", "16", "--vocab_size", "40", "--rows", "3", "--repeats", "1"])
    products, packed, dropouts = capsys.readouterr().out.split("\n\n")
    rows = [line.strip("| ").split(" | ") for line in products.splitlines()[2:]]
    assert {"qkv_proj", "lm_head", "up_proj and GELU", "down_proj, gradient of its weight"} <= {row[0] for row in rows}
    assert all(float(row[2]) > 0 and float(row[3]) > 0 and float(row[5]) < 1e-5 for row in rows)
    rows = [line.strip("| ").split(" | ") for line in packed.splitlines()[2:]]
    assert [row[0] for row in rows[:2]] == ["qkv_proj, torch.float32", "o_proj, torch.float32"]
    assert len(rows) == 2 * 5
    assert all(float(row[2]) > 0 and float(row[3]) > 0 and row[5] == "yes" for row in rows)
    assert len(dropouts.splitlines()) == 4


def test_the_rate_is_that_of_the_faster_library(monkeypatch):
    product, times = measure.MatrixProduct(torch.float32, 8), iter([2.0, 0.5])
    product.ways = [lambda: None, lambda: None]
    monkeypatch.setattr(measure, "seconds", lambda way: next(times))
    assert product.rate() == 2 * 8**3 / 0.5


def test_the_head_is_compared_with_ways_that_keep_no_logits(capsys):
    head.main(["--rows", "5", "--hidden_size", "16", "--vocab_size", "22", "--repeats", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows][:3] == [
        "ours",
        "ours, rows as they are",
        "cross_entropy of all logits",
    ]
    assert float(rows[0].split("|")[3]) == 1


def test_every_way_of_the_head_computes_the_same_loss():
    layer, target = torch.nn.Linear(16, 22), torch.arange(5)
    hidden = torch.randn(5, 16, generator=measure.seeded(0))
    losses = [float(way(hidden)) for way in head.ways(layer, target, None).values()]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=2e-2)


def test_draws_are_timed_beside_an_evaluation_and_both_ways_draw_the_same(capsys):
    sizes = "--rows 1 3 --vocab_size 60 --length 8 --hidden_size 8 --layers 1 --heads 2"
    draw.main([*sizes.split(), "--repeats", "1"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["1", "3"]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows)
    logits, uniform = torch.randn(500, 60, generator=seeded(0)), torch.rand(500, generator=seeded(1)).double()
    (ours, ours_logprob), (other, logprob) = (way(logits, uniform) for way in (draw.in_parts, draw.in_one_sum))
    assert torch.equal(ours, other)
    torch.testing.assert_close(ours_logprob, logprob)
