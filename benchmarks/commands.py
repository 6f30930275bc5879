# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The commands of the benchmarks: sampling, training, likelihood, loading, memory and preparation.

Every command is a function of the arguments. It returns cases (lines of the table) and the points of its plot. Models
have random weights and texts are random tokens, since the cost of a step does not depend on them. The bf16 side
samples, scores and loads bf16 weights, and trains float32 weights under autocast, as the scripts do. The first side is
the baseline. On a GPU it has float32 weights and runs in float16 by autocast.

Shapes: B rows, L length, V vocabulary, n steps of the grid.
"""

import copy
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.likelihood import exact_likelihood
from radd_hf.losses import draw_masks
from radd_hf.noise_radd import expected_evaluations, get_noise

from . import preparation as prepare
from .baseline import (
    GridSampler,
    Network,
    fill_in_order,
    forwards_of,
    full_logits,
    make_plan,
    nll_in_order,
)
from .loading import WEIGHTS
from .measure import (
    DTYPES,
    EXACT,
    OURS,
    OURS_BF16,
    PEAKS,
    Case,
    alternate,
    compare,
    evaluation_flops,
    peak_bytes,
    repeated,
    sampling_flops,
    seconds,
    seeded,
    sides_of,
    training_flops,
)
from .trainers import ScriptTrainer, Trainer
from .training_cost import CONFIGS

ROOT = Path(__file__).parents[1]
WARM_UP = 3  # training steps of every side before timing
FIRST_STEPS = 10  # steps timed together with compilation
CHECKPOINT = ROOT / "checkpoints" / "radd-austen"
TINY = RaddConfig(vocab_size=11, hidden_size=256, num_hidden_layers=8, num_attention_heads=8)

Models = dict[str, RaddForMaskedLM]  # the model of each side; the baseline's is first


@dataclass
class Result:
    """The result of a command: lines of the table, points of each plot by its name, lines of a separate table."""

    cases: list[Case] = field(default_factory=list)
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def make_config(args: Namespace, vocab_size: int | None = None) -> RaddConfig:
    """Makes a configuration of the sizes in the arguments."""
    return RaddConfig(
        vocab_size=vocab_size or args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
    )


def make_model(config: RaddConfig, seed: int, device: str) -> RaddForMaskedLM:
    """Makes a model with random weights, also in the output layer, which would start at zero."""
    torch.manual_seed(seed)
    model = RaddForMaskedLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    return model.eval().to(device)  # type: ignore[arg-type]


def make_models(args: Namespace, vocab_size: int | None = None) -> Models:
    model = make_model(make_config(args, vocab_size), args.seed, args.device)
    rounded = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]
    return {side: rounded if side == OURS_BF16 else model for side in sides_of(args.device)}


def sides_to_measure(
    baseline: Callable[[], float], ours: Callable[[str], float], models: Models
) -> dict[str, Callable[[], float]]:
    """Returns the function that measures each side. `ours` gets the name of the side."""
    first, *others = models
    return {first: baseline} | {side: partial(ours, side) for side in others}


def baseline_network(models: Models) -> Network:
    side, model = next(iter(models.items()))
    return full_logits(model, torch.float16 if DTYPES[side] == torch.float16 else None)


def random_tokens(config: PreTrainedConfig, rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(
        config.vocab_size - 1, (rows, length), generator=seeded(seed)
    )  # all ids but the last, the mask


def spread(count: int, total: int) -> list[int]:
    """Returns at most `count` of the numbers 0 .. total - 1: the middles of equal parts."""
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def masked_at(x0: Tensor, positions: list[int], mask_token_id: int) -> Tensor:
    canvas = x0.clone()
    canvas[:, positions] = mask_token_id
    return canvas


def warm_up(models: Models, rows: int, length: int) -> None:
    """Runs once, without timing, at the sizes that will be measured."""
    model = models[OURS]
    canvas = masked_at(random_tokens(model.config, rows, length, 0), [0], model.config.mask_token_id).to(model.device)
    for side in (OURS, OURS_BF16):
        models[side].generate(canvas, steps=1, generation_config=EXACT)
    make_sampler(models, canvas, 1, 0).step(0)


# ---------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------


def sampling(args: Namespace) -> Result:
    models = make_models(args)
    cases = [sampling_case(args, models, *size, each_evaluation=True) for size in args.evaluation]
    cases += [sampling_case(args, models, *size) for size in args.cached]
    cases += [sampling_case(args, models, *size, refresh_interval=args.refresh_interval) for size in args.partial]
    cases += [ordered_case(args, models, *size) for size in args.ordered]
    cases += [ordered_case(args, models, *size, top_p=0.8) for size in args.ordered_top_p]
    refresh = args.refresh_interval
    cases += [ordered_case(args, models, *size, refresh_interval=refresh) for size in args.ordered_partial]
    cases += [infill_case(args, *size) for size in args.infill]
    sizes = [(rows, args.sweep_length) for rows in args.sweep_batches] + [(1, length) for length in args.sweep_lengths]
    times = [step_point(args, models, *size) for size in dict.fromkeys(sizes)]
    return Result(cases, {"nfe": nfe_points(args, models[OURS].config), "time": times})


def make_sampler(models: Models, canvas: Tensor, steps: int, seed: int) -> GridSampler:
    """Makes the baseline's sampler. It draws on the device of the canvas."""
    side, model = next(iter(models.items()))
    config = model.config
    return GridSampler(
        baseline_network(models),
        canvas.clone(),
        config.vocab_size,
        config.mask_token_id,
        get_noise(config),
        steps,
        generator=seeded(seed, canvas.device),
        dtype=DTYPES[side],
    )


def sampling_case(
    args: Namespace,
    models: Models,
    rows: int,
    length: int,
    steps: int,
    *,
    each_evaluation: bool = False,
    refresh_interval: int = 1,
) -> Case:
    """Times Tweedie sampling of a fully masked batch, in seconds for a sample or for a network evaluation.

    Ours runs whole. The baseline runs whole, too, if it has at most `args.timed_steps` steps. Otherwise evenly spaced
    steps of the same plan are timed, each in the state that the run would reach. The time of their draws is scaled to
    all steps, and the time of their evaluations to those of the whole plan, since their number varies by chance.

    Ours draws with a generator on the CPU, so its plan is the same on every device.
    """
    model = models[OURS]
    config, mask, device = model.config, model.config.mask_token_id, model.device
    canvas = torch.full((rows, length), mask, device=device)
    plan = make_plan((rows, length), get_noise(config), steps, args.seed)  # `generate` draws the same plan
    plan_there, tokens = plan.to(device), random_tokens(config, rows, length, args.seed).to(device)
    timed = spread(args.timed_steps, steps)
    ours = int(
        max(len(row.unique()) for row in plan)
    )  # forward passes: all rows advance together, each to its next event
    theirs = forwards_of(plan, steps)

    def baseline() -> float:
        sampler = make_sampler(models, canvas, steps, args.seed)
        asking = drawing = 0.0
        for number in timed:
            if len(timed) < steps:
                sampler.resume(plan_there, tokens, number)
            asking += seconds(sampler.ask)
            drawing += seconds(partial(sampler.reveal, number))
        if len(timed) == steps:
            return (asking + drawing) / (sampler.forwards if each_evaluation else 1)
        evaluations = sum(forwards_of(row, steps) for row in plan)  # evaluations of rows
        total = asking * evaluations / max(int(sampler.evaluations.sum()), 1) + drawing * steps / len(timed)
        return total / (theirs if each_evaluation else 1)

    def generate(side: str) -> float:
        settings: dict[str, Any] = {
            "steps": steps,
            "refresh_interval": refresh_interval,
            "generator": seeded(args.seed),
        }
        run = partial(models[side].generate, canvas, generation_config=EXACT, **settings)
        return seconds(run) / (ours if each_evaluation else 1)

    warm_up(models, rows, length)
    what = "evaluation + draw" if each_evaluation else "sample"
    if exact := refresh_interval == 1:
        flops = sampling_flops(config, plan) / (ours if each_evaluation else 1)
    else:
        what += f" (refresh_interval {refresh_interval})"
    return compare(
        f"{what}, Tweedie, B={rows}, L={length}, {steps} steps",
        "s",
        flops if exact else 0.0,  # the limit applies to exact sampling only
        sides_to_measure(baseline, generate, models),
        args.repeats,
        args.matmul_size,
        device.type,
        how=f"ours: {how_timed(steps, steps)}; baseline: {how_timed(len(timed), steps)}",
        averaged=f"over the {ours} events of a run" if each_evaluation else "a whole run",
        forwards_ours=ours,  # the largest number of evaluations of a row
        forwards_baseline=theirs,  # steps before which some row changed
        steps=steps,
        evaluations_of_each_row=[len(row.unique()) for row in plan],
    )


def how_timed(timed: int, steps: int) -> str:
    return "the whole run" if timed == steps else f"{timed} evenly spaced steps of {steps}, scaled to all"


def ordered_case(
    args: Namespace, models: Models, rows: int, length: int, *, top_p: float = 1.0, refresh_interval: int = 1
) -> Case:
    """Times one token of every row. Both sides fill evenly spaced masks from left to right, one forward pass each."""
    config = models[OURS].config
    positions = spread(args.timed_steps, length)
    canvas = masked_at(random_tokens(config, rows, length, args.seed), positions, config.mask_token_id).to(args.device)
    network = baseline_network(models)

    def baseline() -> float:
        generator = seeded(args.seed, args.device)
        return seconds(lambda: fill_in_order(network, canvas.clone(), positions, generator, top_p)) / len(positions)

    def generate(side: str) -> float:
        settings: dict[str, Any] = {"top_p": top_p, "refresh_interval": refresh_interval}
        run = partial(
            models[side].generate,
            canvas,
            generation_config=EXACT,
            method="ordered",
            generator=seeded(args.seed),
            **settings,
        )
        return seconds(run) / len(positions)

    warm_up(models, rows, length)
    what = "token in an order"
    what += f" (refresh_interval {refresh_interval})" if refresh_interval > 1 else ""
    what += f", top-p {top_p}" if top_p < 1 else ""
    return compare(
        f"{what}, B={rows}, L={length}",
        "s",
        evaluation_flops(config, length, [1] * rows) if refresh_interval == 1 else 0.0,
        sides_to_measure(baseline, generate, models),
        args.repeats,
        args.matmul_size,
        args.device,
        how=f"mean over {len(positions)} masks spread evenly over a row of {length}",
    )


def infill_case(args: Namespace, length: int, masks: int) -> Case:
    """Times filling a few masks of a text with the shipped checkpoint, one at a time, as an editor would."""
    model = RaddForMaskedLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval().to(args.device)
    rounded = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]
    models = {side: rounded if side == OURS_BF16 else model for side in sides_of(args.device)}
    config, positions = model.config, list(range(length // 2, length // 2 + masks))
    canvas = masked_at(random_tokens(config, 1, length, args.seed), positions, config.mask_token_id).to(args.device)
    network = baseline_network(models)
    first: dict[str, float] = {}

    def baseline() -> float:
        generator = seeded(args.seed, args.device)
        return seconds(lambda: fill_in_order(network, canvas.clone(), positions, generator))

    def generate(side: str) -> float:
        settings: dict[str, Any] = {"method": "first_hitting", "generator": seeded(args.seed)}
        run = partial(models[side].generate, canvas, generation_config=EXACT, **settings)
        time = seconds(run)
        first.setdefault(side, time)
        return time

    warm_up(models, 1, length // 2)
    case = compare(
        f"{masks} tokens filled in {length}, shipped checkpoint",
        "s",
        masks * evaluation_flops(config, length, [1]),
        sides_to_measure(baseline, generate, models),
        args.repeats,
        args.matmul_size,
        args.device,
        how="a whole call of generate, one token an event",
    )
    case.facts["first_call"] = first  # of this shape, with the captures of CUDA graphs
    return case


def step_point(args: Namespace, models: Models, rows: int, length: int) -> dict[str, Any]:
    """Times a step in the middle of a run: half of the tokens are masked, and some of every row are revealed."""
    config, steps = models[OURS].config, args.sweep_steps
    revealed = max(length // steps, 1)
    tokens = random_tokens(config, rows, length, args.seed).to(args.device)
    # In ours a row takes as much work if only the tokens of this step are masked, and `generate` accepts such a row.
    canvas = masked_at(tokens, spread(revealed, length), config.mask_token_id)
    even = torch.arange(length, device=args.device) % 2 == 0
    plan = torch.where(even, steps // 2 - 1, steps - 1).expand(rows, -1)

    def baseline() -> float:
        sampler = make_sampler(models, tokens, steps, args.seed)
        sampler.resume(plan, tokens, steps // 2)
        return seconds(lambda: sampler.step(steps // 2))

    def generate(side: str) -> float:
        settings: dict[str, Any] = {"steps": 1, "generator": seeded(args.seed)}
        return seconds(lambda: models[side].generate(canvas, generation_config=EXACT, **settings))

    warm_up(models, rows, length)
    for side in (OURS, OURS_BF16):
        repeated(partial(generate, side), 2)()  # on a GPU the second call captures a CUDA graph for this shape
    case = compare(
        f"step, B={rows}, L={length}",
        "s",
        evaluation_flops(config, length, [revealed] * rows),
        sides_to_measure(baseline, generate, models),
        args.repeats,
        args.matmul_size,
        args.device,
    )
    return {"batch": rows, "length": length, "revealed": revealed, **case.as_dict()}


def nfe_points(args: Namespace, config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Returns forward passes against steps for each batch of `cached`: counted in plans, and expected for a row."""
    noise, points = get_noise(config), []
    for rows, length, _ in args.cached:
        for steps in args.nfe_steps:
            plan = make_plan((rows, length), noise, steps, args.seed)
            counts = [len(row.unique()) for row in plan]
            points.append(
                {
                    "batch": rows,
                    "length": length,
                    "steps": steps,
                    "expected_of_a_row": expected_evaluations(noise, "tweedie", steps, length),
                    "mean_of_a_row": sum(counts) / rows,
                    "forwards_ours": max(counts),
                    "forwards_baseline": forwards_of(plan, steps),
                }
            )
    return points


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


def training(args: Namespace) -> Result:
    """Times a training step, and measures its memory above weights and moments, with and without the gradients."""
    sizes = [(make_config(args), size, "") for size in args.training]
    sizes += [(CONFIGS["medium"], size, ", the paper's medium model") for size in args.training_medium]
    sizes += [(TINY, size, ", 6.3 M parameters") for size in args.training_tiny]
    cases = []
    for config, (rows, length), which in sizes:
        with make_trainer(args, config, rows, length) as trainer:
            cases += training_cases(args, trainer, f"lambda_DCE, B={rows}, L={length}{which}")
    return Result(cases)


@contextmanager
def make_trainer(args: Namespace, config: RaddConfig, rows: int, length: int) -> Iterator[Trainer]:
    model, sides = make_model(config, args.seed, args.device), sides_of(args.device)
    if args.script_step:
        # More steps than will ever be taken.
        with prepare.prepared(config, "lambda_DCE", rows, length, args.seed, args.device, steps=2**40) as batches:
            trainer: Trainer = ScriptTrainer(model, sides, batches, args.seed)
            if args.compile:
                trainer.compile(args.compile_backend)
            yield trainer
        return
    x0 = random_tokens(config, rows, length, args.seed)
    trainer = Trainer(model, sides, x0, draw_masks("lambda_DCE", rows, length, get_noise(config), seeded(args.seed)))
    if args.compile:
        trainer.compile(args.compile_backend)
    yield trainer


def training_cases(args: Namespace, trainer: Trainer, name: str) -> list[Case]:
    cases, config, tokens = [], trainer.model.config, trainer.x0.numel()
    notes = ["bf16 by autocast"]
    if DTYPES[trainer.baseline] == torch.float16:
        notes += ["the baseline's fp16 by autocast, gradients scaled"]
    notes += [f"ours compiled ({args.compile_backend})"] if args.compile else []
    notes += ["ours: batches prepared ahead, weights averaged"] if args.script_step else []
    first_steps = {
        side: [seconds(repeated(partial(trainer.step, side), FIRST_STEPS if args.script_step else WARM_UP))]
        for side in trainer.sides
    }  # afterwards AdamW's moments exist
    if args.script_step:
        how = "once, of each side after the other, from the first call to the end of the last step"
        how += f"; compilation with what {args.compile_backend} finds in its caches" if args.compile else ""
        cases.append(Case(f"first {FIRST_STEPS} training steps, {name}", "s", first_steps, facts={"how": how}))

    def step(side: str) -> float:
        return seconds(repeated(partial(trainer.step, side), args.training_steps)) / args.training_steps

    average = "" if args.script_step else ", no average of the weights"
    how = f"forward, backward, clipping, AdamW{average}; {'; '.join(notes)}"
    how += f"; mean of {args.training_steps} steps in a row" if args.training_steps > 1 else ""
    case = compare(
        f"training step, {name}",
        "s",
        training_flops(config, trainer.masks.masked),
        {side: partial(step, side) for side in trainer.sides},
        args.repeats,
        args.matmul_size,
        args.device,
        how=how,
        masked_tokens=int(trainer.masks.masked.sum()),
    )
    scaler = trainer.scalers[trainer.baseline]
    if scaler.is_enabled():
        case.facts["scale_of_the_baselines_gradients"] = scaler.get_scale()  # below 1: a step was skipped
    case.facts["tokens_per_second"] = {side: round(tokens / case.median(side)) for side in case.values}
    cases.append(case)
    how = f"most that tensors hold at once, less what they hold between; gradients counted in; {PEAKS[args.device]}"
    memory = {side: [peak_bytes(partial(trainer.step, side), args.device) / 1e6] for side in trainer.sides}
    cases.append(Case(f"memory of a training step, {name}", "MB", memory, facts={"how": how}))
    trainer.backward(OURS)  # from here on gradients exist
    how = how.replace("counted in", "being there already, as with accumulation")
    memory = {side: [peak_bytes(partial(trainer.backward, side), args.device) / 1e6] for side in trainer.sides}
    cases.append(Case(f"memory of an accumulated gradient, {name}", "MB", memory, facts={"how": how}))
    return cases


# ---------------------------------------------------------------------------------------------------------
# Likelihood
# ---------------------------------------------------------------------------------------------------------


def likelihood(args: Namespace) -> Result:
    """Times the exact likelihood from left to right, in seconds per pass, which is the evaluation of one row."""
    models, cases = make_models(args), []
    config = models[OURS].config
    network = baseline_network(models)
    for rows, length in args.likelihood:
        x0 = random_tokens(config, rows, length, args.seed)
        x0_there = x0.to(args.device)
        positions = spread(args.timed_steps, length)
        scored = [masked_at(row[None], positions, -1)[0] == -1 for row in x0]
        passes = rows * len(positions)

        def baseline(x0=x0_there, positions=positions, passes=passes) -> float:
            return seconds(lambda: nll_in_order(network, x0, positions, config.mask_token_id)) / passes

        def score(side: str, x0=x0, scored=scored, passes=passes) -> float:
            run = partial(exact_likelihood, models[side], list(x0), scored=scored, batch_size=len(x0))
            return seconds(run) / passes

        warm_up(models, rows, length)
        cases.append(
            compare(
                f"pass of an exact likelihood, {rows} rows a forward, L={length}",
                "s",
                evaluation_flops(config, length, [1]),
                sides_to_measure(baseline, score, models),
                args.repeats,
                args.matmul_size,
                args.device,
                how=f"{rows} sequences, {len(positions)} evenly spaced tokens of each scored given the others",
            )
        )
    return Result(cases)


# ---------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------


def loading(args: Namespace) -> Result:
    """Times loading from files up to the first output, and measures its memory, each in a separate process."""
    disable_progress_bar()
    models = make_models(args)
    first, *ours = models
    ways = {first: "naive"} | dict.fromkeys(ours, "ours")
    peaks: dict[str, list[float]] = {side: [] for side in models}
    with tempfile.TemporaryDirectory() as place:
        folders = {first: Path(place, "fp32"), OURS: Path(place, "fp32"), OURS_BF16: Path(place, "bf16")}
        for side in ours:
            models[side].save_pretrained(folders[side])
        weights = {name: weight.cpu() for name, weight in models[first].state_dict().items()}
        torch.save(weights, folders[first] / WEIGHTS)
        del models, weights

        def load(side: str) -> float:
            dtype = str(DTYPES[side]).removeprefix("torch.")
            command = [sys.executable, "-m", "benchmarks.loading", ways[side]]
            command += [str(folders[side]), dtype, str(args.loading), "--device", args.device]
            printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured = json.loads(printed.splitlines()[-1])
            peaks[side].append(measured["peak_bytes"] / 1e6)
            return measured["seconds"]

        times = alternate({side: partial(load, side) for side in ways}, args.repeats)
    name = f"loading and a first forward, L={args.loading}"
    how = "a process each, imports not timed, files in the page cache; no arithmetic limit"
    resident = "resident memory, sampled every 2 ms, less what the imports occupy; mapped pages of files count"
    if args.device == "cuda":
        resident = f"most that tensors on the GPU hold at once; {PEAKS[args.device]}"
    return Result(
        [
            Case(name, "s", times, facts={"how": how}),
            Case(f"memory of {name}", "MB", peaks, facts={"how": resident}),
        ]
    )


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


def memory(args: Namespace) -> Result:
    """Measures peak memory above the weights for several vocabularies: of a step of sampling, and of a gradient.

    The step of the baseline is its first, which draws at every position and takes most. All steps of ours are alike.
    """
    cases, points = [], []
    rows, length, steps = args.memory
    for vocab_size in args.vocabularies:
        models = make_models(args, vocab_size)
        config = models[OURS].config
        whole = torch.full((rows, length), config.mask_token_id, device=args.device)
        positions = spread(max(length // steps, 1), length)
        x0 = random_tokens(config, rows, length, args.seed)
        canvas = masked_at(x0, positions, config.mask_token_id).to(args.device)
        first, *ours = models
        sample: dict[str, Callable[..., Any]] = {
            first: lambda models=models, whole=whole: make_sampler(models, whole, steps, 0).step(0)
        }
        for side in ours:
            sample[side] = partial(models[side].generate, canvas, steps=1, generation_config=EXACT)
        masks = draw_masks("lambda_DCE", rows, length, get_noise(config), seeded(args.seed))
        trainer = Trainer(models[OURS], list(models), x0, masks)
        trainer.backward(OURS)
        train = {side: partial(trainer.backward, side) for side in models}
        for what, runs in (("a step of sampling", sample), ("an accumulated gradient", train)):
            trainer.model.train(what != "a step of sampling")
            peaks = {side: [peak_bytes(run, args.device) / 1e6] for side, run in runs.items()}
            name = f"memory of {what}, B={rows}, L={length}, V={vocab_size}"
            how = f"most that tensors hold at once, less what they hold before; {PEAKS[args.device]}"
            how += "; nothing compiled" if args.compile else ""
            cases.append(Case(name, "MB", peaks, facts={"how": how}))
            points.append({"what": what, "vocab_size": vocab_size, **cases[-1].as_dict()})
    return Result(cases, {"memory": points})


# ---------------------------------------------------------------------------------------------------------
# Preparation
# ---------------------------------------------------------------------------------------------------------


def preparation(args: Namespace) -> Result:
    """Times how long the host prepares a training step, compared with the step, and returns a separate table."""
    points = []
    for rows, length, tokens_per_second in args.preparation:
        sizes = (make_config(args), rows, length, tokens_per_second)
        points += prepare.measure(*sizes, args.seed, args.device, args.preparation_repeats)
    lines = [prepare.HEADER, *map(prepare.format_row, points)] if points else []
    return Result([], {"preparation": points}, lines)


COMMANDS: dict[str, Callable[[Namespace], Result]] = {
    "sampling": sampling,
    "training": training,
    "likelihood": likelihood,
    "loading": loading,
    "memory": memory,
    "preparation": preparation,
}
