# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What is compared: sampling, training, likelihood, loading and memory, each a function of the arguments.

Every command returns cases (lines of the table) and the points of its plot. Models have random weights, texts are
random tokens: what a step costs does not depend on either. The bf16 side samples, scores and loads bf16 weights, and
trains float32 weights under autocast, as the scripts do.

Shapes: B rows, L length, V vocabulary, n steps of the grid.
"""

import copy
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
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
from radd_hf.losses import Masks, draw_masks
from radd_hf.noise_radd import expected_evaluations, get_noise

from .baseline import (
    GridSampler,
    fill_in_order,
    forwards_of,
    full_logits,
    make_plan,
    nll_in_order,
    training_loss,
)
from .loading import WEIGHTS
from .measure import (
    BASELINE,
    DTYPES,
    OURS,
    OURS_BF16,
    SIDES,
    Case,
    alternate,
    compare,
    evaluation_flops,
    peak_bytes,
    sampling_flops,
    seconds,
    training_flops,
)

ROOT = Path(__file__).parents[1]
CLIP = 1.0
WARM_UP = 3  # training steps of every side


@dataclass
class Result:
    """cases: lines of the table. points: of the plot, by the name of the plot."""

    cases: list[Case] = field(default_factory=list)
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(args: Namespace, vocab_size: int | None = None) -> RaddForMaskedLM:
    """Of the sizes asked for; the output layer, zero at initialisation, is random too."""
    config = RaddConfig(
        vocab_size=vocab_size or args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
    )
    torch.manual_seed(args.seed)
    model = RaddForMaskedLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    return model.eval()


def make_models(args: Namespace, vocab_size: int | None = None) -> dict[str, RaddForMaskedLM]:
    model = make_model(args, vocab_size)
    return {BASELINE: model, OURS: model, OURS_BF16: copy.deepcopy(model).to(torch.bfloat16)}  # type: ignore[arg-type]


def random_tokens(config: PreTrainedConfig, rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(config.vocab_size - 1, (rows, length), generator=seeded(seed))  # all but the mask, the last


def spread(count: int, total: int) -> list[int]:
    """At most `count` of 0 .. total - 1, the middles of equal parts; all of them if there are no more."""
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def masked_at(x0: Tensor, positions: list[int], mask_token_id: int) -> Tensor:
    canvas = x0.clone()
    canvas[:, positions] = mask_token_id
    return canvas


def warm_up(models: dict[str, RaddForMaskedLM], rows: int, length: int) -> None:
    """Once in vain at the sizes that follow."""
    canvas = masked_at(random_tokens(models[OURS].config, rows, length, 0), [0], models[OURS].config.mask_token_id)
    for side in (OURS, OURS_BF16):
        models[side].generate(canvas, steps=1)
    make_sampler(models[BASELINE], canvas, 1, 0).step(0)


# ---------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------


def sampling(args: Namespace) -> Result:
    models = make_models(args)
    cases = [sampling_case(args, models, *size, each_evaluation=True) for size in args.evaluation]
    cases += [sampling_case(args, models, *size) for size in args.cached]
    cases += [sampling_case(args, models, *size, refresh_interval=args.refresh_interval) for size in args.partial]
    cases.append(ordered_case(args, models, args.ordered))
    sizes = [(rows, args.sweep_length) for rows in args.sweep_batches] + [(1, length) for length in args.sweep_lengths]
    times = [step_point(args, models, *size) for size in dict.fromkeys(sizes)]
    return Result(cases, {"nfe": nfe_points(args, models[OURS].config), "time": times})


def make_sampler(model: RaddForMaskedLM, canvas: Tensor, steps: int, seed: int) -> GridSampler:
    config = model.config
    return GridSampler(
        full_logits(model),
        canvas.clone(),
        config.vocab_size,
        config.mask_token_id,
        get_noise(config),
        steps,
        generator=seeded(seed),
    )


def sampling_case(
    args: Namespace,
    models: dict[str, RaddForMaskedLM],
    rows: int,
    length: int,
    steps: int,
    *,
    each_evaluation: bool = False,
    refresh_interval: int = 1,
) -> Case:
    """A wholly masked batch by Tweedie: seconds a sample, or of each evaluation of the network in it.

    Ours runs whole. So does the baseline, if it has no more steps than are timed; else evenly spaced steps of the same
    plan are timed, each in the state in which the run would reach it. Their draws are scaled to all steps, and their
    evaluations to those of the whole plan, since by chance they may have had more or fewer.
    """
    model = models[OURS]
    config, mask = model.config, model.config.mask_token_id
    canvas = torch.full((rows, length), mask)
    plan = make_plan((rows, length), get_noise(config), steps, args.seed)  # which `generate` draws itself
    tokens = random_tokens(config, rows, length, args.seed)
    timed = spread(args.timed_steps, steps)
    ours = int(max(len(row.unique()) for row in plan))  # forwards: the rows advance together, each to its next event
    theirs = forwards_of(plan, steps)

    def baseline() -> float:
        sampler = make_sampler(models[BASELINE], canvas, steps, args.seed)
        asking = drawing = 0.0
        for number in timed:
            if len(timed) < steps:
                sampler.resume(plan, tokens, number)
            asking += seconds(sampler.ask)
            drawing += seconds(partial(sampler.reveal, number))
        if len(timed) == steps:
            return (asking + drawing) / (sampler.forwards if each_evaluation else 1)
        evaluations = sum(forwards_of(row, steps) for row in plan)  # of rows
        total = asking * evaluations / max(int(sampler.evaluations.sum()), 1) + drawing * steps / len(timed)
        return total / (theirs if each_evaluation else 1)

    def generate(side: str) -> float:
        settings: dict[str, Any] = {
            "steps": steps,
            "refresh_interval": refresh_interval,
            "generator": seeded(args.seed),
        }
        return seconds(lambda: models[side].generate(canvas, **settings)) / (ours if each_evaluation else 1)

    warm_up(models, rows, length)
    what = "evaluation + draw" if each_evaluation else "sample"
    if exact := refresh_interval == 1:
        flops = sampling_flops(config, plan) / (ours if each_evaluation else 1)
    else:
        what += f" (refresh_interval {refresh_interval})"
    return compare(
        f"{what}, Tweedie, B={rows}, L={length}, {steps} steps",
        "s",
        flops if exact else 0.0,  # the limit is that of the exact law
        {BASELINE: baseline, OURS: partial(generate, OURS), OURS_BF16: partial(generate, OURS_BF16)},
        args.repeats,
        args.matmul_size,
        how=f"ours: {how_timed(steps, steps)}; baseline: {how_timed(len(timed), steps)}",
        averaged=f"over the {ours} events of a run" if each_evaluation else "a whole run",
        forwards_ours=ours,  # the most evaluations of any row
        forwards_baseline=theirs,  # steps before which some row has changed
        steps=steps,
        evaluations_of_each_row=[len(row.unique()) for row in plan],
    )


def how_timed(timed: int, steps: int) -> str:
    return "the whole run" if timed == steps else f"{timed} evenly spaced steps of {steps}, scaled to all"


def ordered_case(args: Namespace, models: dict[str, RaddForMaskedLM], length: int) -> Case:
    """Seconds a token: both sides fill evenly spaced masks of a row from left to right, one forward each."""
    config = models[OURS].config
    positions = spread(args.timed_steps, length)
    canvas = masked_at(random_tokens(config, 1, length, args.seed), positions, config.mask_token_id)
    network = full_logits(models[BASELINE])

    def baseline() -> float:
        return seconds(lambda: fill_in_order(network, canvas.clone(), positions, seeded(args.seed))) / len(positions)

    def generate(side: str) -> float:
        run = partial(models[side].generate, canvas, method="ordered", generator=seeded(args.seed))
        return seconds(run) / len(positions)

    warm_up(models, 1, length)
    return compare(
        f"token in an order, B=1, L={length}",
        "s",
        evaluation_flops(config, length, [1]),
        {BASELINE: baseline, OURS: partial(generate, OURS), OURS_BF16: partial(generate, OURS_BF16)},
        args.repeats,
        args.matmul_size,
        how=f"mean over {len(positions)} masks spread evenly over a row of {length}",
    )


def step_point(args: Namespace, models: dict[str, RaddForMaskedLM], rows: int, length: int) -> dict[str, Any]:
    """A step in the middle of a run: half of the tokens masked, some of every row revealed; seconds of each side."""
    config, steps = models[OURS].config, args.sweep_steps
    revealed = max(length // steps, 1)
    tokens = random_tokens(config, rows, length, args.seed)
    # For ours a row with nothing masked but what the step reveals is as much work, and can be asked for.
    canvas = masked_at(tokens, spread(revealed, length), config.mask_token_id)
    plan = torch.where(torch.arange(length) % 2 == 0, steps // 2 - 1, steps - 1).expand(rows, -1)

    def baseline() -> float:
        sampler = make_sampler(models[BASELINE], tokens, steps, args.seed)
        sampler.resume(plan, tokens, steps // 2)
        return seconds(lambda: sampler.step(steps // 2))

    def generate(side: str) -> float:
        return seconds(lambda: models[side].generate(canvas, steps=1, generator=seeded(args.seed)))

    warm_up(models, rows, length)
    case = compare(
        f"step, B={rows}, L={length}",
        "s",
        evaluation_flops(config, length, [revealed] * rows),
        {BASELINE: baseline, OURS: partial(generate, OURS), OURS_BF16: partial(generate, OURS_BF16)},
        args.repeats,
        args.matmul_size,
    )
    return {"batch": rows, "length": length, "revealed": revealed, **case.as_dict()}


def nfe_points(args: Namespace, config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Forwards against steps for each batch of `cached`: counted in plans, and a row's expectation."""
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


class Trainer:
    """One model, of which every side takes the same steps on the same batch and masks.

    The baseline's AdamW is torch's by default, ours the fused one of `train_accelerate.py`.
    """

    def __init__(self, model: RaddForMaskedLM, rows: int, length: int, seed: int):
        self.model = model.train()
        self.optimizers = {
            side: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=side != BASELINE or None) for side in SIDES
        }
        self.network = full_logits(model)
        self.x0 = random_tokens(model.config, rows, length, seed)
        self.masks: Masks = draw_masks("lambda_DCE", rows, length, get_noise(model.config), seeded(seed))

    def loss(self, side: str) -> Tensor:
        mask = self.model.config.mask_token_id
        if side == BASELINE:
            return training_loss(self.network, self.x0, self.masks, mask)
        with torch.autocast("cpu", torch.bfloat16, enabled=side == OURS_BF16):
            return self.model(**self.masks.apply(self.x0, mask)).loss

    def backward(self, side: str) -> None:
        """Gradients, added to those that are there, as with accumulation: they are memory at rest."""
        self.loss(side).backward()
        self.optimizers[side].zero_grad(set_to_none=False)

    def step(self, side: str) -> None:
        self.loss(side).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizers[side].step()
        self.optimizers[side].zero_grad()


def training(args: Namespace) -> Result:
    """Seconds of a step, and the memory it takes above weights and moments, with the gradients and without them."""
    cases = []
    for rows, length in args.training:
        trainer = Trainer(make_model(args), rows, length, args.seed)
        for side in WARM_UP * SIDES:  # in vain: AdamW's moments are there then, and so is the memory
            trainer.step(side)
        sides = {side: partial(seconds, partial(trainer.step, side)) for side in SIDES}
        name = f"lambda_DCE, B={rows}, L={length}"
        masked = int(trainer.masks.masked.sum())
        how = "forward, backward, clipping, AdamW, no average of the weights; bf16 by autocast"
        cases.append(
            compare(
                f"training step, {name}",
                "s",
                training_flops(trainer.model.config, trainer.masks.masked),
                sides,
                args.repeats,
                args.matmul_size,
                how=how,
                masked_tokens=masked,
            )
        )
        how = (
            "most that tensors hold at once, less what they hold between; gradients counted in; torch's memory profiler"
        )
        memory = {side: [peak_bytes(partial(trainer.step, side)) / 1e6] for side in SIDES}
        cases.append(Case(f"memory of a training step, {name}", "MB", memory, facts={"how": how}))
        trainer.backward(OURS)  # from here on there are gradients
        how = how.replace("counted in", "being there already, as with accumulation")
        memory = {side: [peak_bytes(partial(trainer.backward, side)) / 1e6] for side in SIDES}
        cases.append(Case(f"memory of an accumulated gradient, {name}", "MB", memory, facts={"how": how}))
    return Result(cases)


# ---------------------------------------------------------------------------------------------------------
# Likelihood
# ---------------------------------------------------------------------------------------------------------


def likelihood(args: Namespace) -> Result:
    """Exact likelihood in the order of reading: seconds a pass, a pass being the evaluation of one row."""
    models, cases = make_models(args), []
    config = models[OURS].config
    network = full_logits(models[BASELINE])
    for rows, length in args.likelihood:
        x0 = random_tokens(config, rows, length, args.seed)
        positions = spread(args.timed_steps, length)
        scored = [masked_at(row[None], positions, -1)[0] == -1 for row in x0]
        passes = rows * len(positions)

        def baseline(x0=x0, positions=positions, passes=passes) -> float:
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
                {BASELINE: baseline, OURS: partial(score, OURS), OURS_BF16: partial(score, OURS_BF16)},
                args.repeats,
                args.matmul_size,
                how=f"{rows} sequences, {len(positions)} evenly spaced tokens of each scored given the others",
            )
        )
    return Result(cases)


# ---------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------


def loading(args: Namespace) -> Result:
    """Seconds from files to the first output, and the memory on the way, each in a process of its own."""
    disable_progress_bar()
    models = make_models(args)
    ways = {BASELINE: "naive", OURS: "ours", OURS_BF16: "ours"}
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        folders = {BASELINE: Path(place, "fp32"), OURS: Path(place, "fp32"), OURS_BF16: Path(place, "bf16")}
        for side in (OURS, OURS_BF16):
            models[side].save_pretrained(folders[side])
        torch.save(models[BASELINE].state_dict(), folders[BASELINE] / WEIGHTS)
        del models

        def load(side: str) -> float:
            dtype = str(DTYPES[side]).removeprefix("torch.")
            command = [sys.executable, "-m", "benchmarks.loading", ways[side]]
            command += [str(folders[side]), dtype, str(args.loading)]
            printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured = json.loads(printed.splitlines()[-1])
            peaks[side].append(measured["peak_bytes"] / 1e6)
            return measured["seconds"]

        times = alternate({side: partial(load, side) for side in SIDES}, args.repeats)
    name = f"loading and a first forward, L={args.loading}"
    how = "a process each, imports not timed, files in the page cache; no arithmetic limit"
    resident = "resident memory, sampled every 2 ms, less what the imports occupy; mapped pages of files count"
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
    """Peak above the weights, against the size of the vocabulary: the widest step of a sample, and a gradient.

    The baseline's widest step is its first, which draws at every position; all steps of ours are alike.
    """
    cases, points = [], []
    rows, length, steps = args.memory
    for vocab_size in args.vocabularies:
        models = make_models(args, vocab_size)
        config = models[OURS].config
        whole = torch.full((rows, length), config.mask_token_id)
        positions = spread(max(length // steps, 1), length)
        canvas = masked_at(random_tokens(config, rows, length, args.seed), positions, config.mask_token_id)
        sample: dict[str, Callable[..., Any]] = {
            BASELINE: lambda models=models, whole=whole: make_sampler(models[BASELINE], whole, steps, 0).step(0)
        }
        for side in (OURS, OURS_BF16):
            sample[side] = partial(models[side].generate, canvas, steps=1)
        trainer = Trainer(models[OURS], rows, length, args.seed)
        trainer.backward(OURS)
        train = {side: partial(trainer.backward, side) for side in SIDES}
        for what, runs in (("a step of sampling", sample), ("an accumulated gradient", train)):
            trainer.model.train(what != "a step of sampling")
            peaks = {side: [peak_bytes(run) / 1e6] for side, run in runs.items()}
            name = f"memory of {what}, B={rows}, L={length}, V={vocab_size}"
            how = "most that tensors hold at once, less what they hold before; torch's memory profiler"
            cases.append(Case(name, "MB", peaks, facts={"how": how}))
            points.append({"what": what, "vocab_size": vocab_size, **cases[-1].as_dict()})
    return Result(cases, {"memory": points})


COMMANDS: dict[str, Callable[[Namespace], Result]] = {
    "sampling": sampling,
    "training": training,
    "likelihood": likelihood,
    "loading": loading,
    "memory": memory,
}
