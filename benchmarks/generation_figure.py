# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws docs/figures/generation.png: a plan, the sequence that it fills, and evaluations against steps.

A plan says which step reveals each token. An event is a network evaluation and the tokens that it reveals.

    pip install 'radd_hf[viz]'
    python -m benchmarks.generation_figure
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.app.visualize import plot_evaluations
from radd_hf.endings import run_program
from radd_hf.figure_style import WIDTH, Theme, label_values, ramp, save_figure

from .commands import ROOT
from .estimators import CHECKPOINT
from .measure import EXACT

FIGURE = ROOT / "docs" / "figures" / "generation.png"
SHORT, STEPS = 24, 16  # the sequence shown: its tokens, and the steps of its grid
ROWS, LENGTH = 64, 128  # the measurement: sequences, and masks of each
NOISES = ("loglinear", "geometric")
GRID = [4, 8, 16, 32, 64, 128, 256, 512, 1024]


@dataclass
class Example:
    """A sequence of L tokens: the step that revealed each (L,), the ids after each event (events + 1, L), and texts."""

    reveal_step: Tensor
    history: Tensor
    texts: list[str]
    mask_id: int
    evaluations: int


def make_example(model, tokenizer) -> Example:
    output = model.generate(
        generation_config=EXACT,
        prefix="She had never",
        suffix=" of her.",
        length=SHORT,
        steps=STEPS,
        temperature=0.7,
        tokenizer=tokenizer,
        generator=torch.Generator().manual_seed(1),
        output_history=True,
        return_dict_in_generate=True,
    )
    texts = [str(tokenizer.decode([token])).replace("\n", "\\n").strip() for token in output.sequences[0]]
    evaluations = int(output.num_function_evaluations)
    return Example(output.reveal_step[0], torch.cat(output.history), texts, model.config.mask_token_id, evaluations)


def small_config(noise_type: str) -> RaddConfig:
    return RaddConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        noise_type=noise_type,
    )


def measure_evaluations(grid: list[int], rows: int) -> dict[str, dict[int, Tensor]]:
    """Returns the network evaluations (rows,) of unconditional samples, for each noise and number of steps.

    A plan does not depend on the network. So a small network gives the same counts as the checkpoint, in seconds.
    """
    return {name: {steps: count_evaluations(name, steps, rows) for steps in grid} for name in NOISES}


def count_evaluations(noise_type: str, steps: int, rows: int) -> Tensor:
    """Returns the network evaluations (rows,) of each sample."""
    output = RaddForMaskedLM(small_config(noise_type)).generate(
        length=LENGTH,
        generation_config=EXACT,
        steps=steps,
        num_return_sequences=rows,
        generator=torch.Generator().manual_seed(steps),
        return_dict_in_generate=True,
    )
    return cast(Any, output).num_function_evaluations


def draw_plan(axes: Axes, reveal_step: Tensor, theme: Theme) -> None:
    position, step = np.arange(len(reveal_step)), reveal_step.numpy() + 1
    planned = step > 0
    axes.scatter(position[planned], step[planned], c=step[planned], cmap=ramp(), vmin=1, vmax=STEPS, s=26, zorder=3)
    axes.scatter(position[~planned], np.zeros((~planned).sum()), marker="s", color=theme.faint, s=16)
    empty = sorted(set(range(1, STEPS + 1)) - set(step.tolist()))
    for place in empty:
        axes.axhline(place, color=theme.colors[1], alpha=0.35, linewidth=5, zorder=1)
    axes.set(title="plan: the step that reveals each token", ylabel="step", ylim=(STEPS + 0.8, -0.8))
    axes.set_yticks([1, *range(4, STEPS + 1, 4)])
    axes.tick_params(labelbottom=False)
    axes.legend(
        handles=[
            Line2D([], [], color=ramp()(0.5), marker="o", linestyle="none", label="revealed"),
            Line2D([], [], color=theme.faint, marker="s", linestyle="none", label="given"),
            Patch(color=theme.colors[1], alpha=0.35, label="empty step: no evaluation"),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.04),
        ncols=3,
        columnspacing=1,
    )


def draw_loop(axes: Axes, example: Example, theme: Theme) -> None:
    step = example.reveal_step.numpy() + 1
    masked = example.history.numpy() == example.mask_id  # (events + 1, L)
    revealed = np.ma.masked_where(masked | (step == 0), np.broadcast_to(step, masked.shape))
    given = np.ma.masked_where(np.broadcast_to(step != 0, masked.shape), np.ones(masked.shape))
    style: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    axes.imshow(revealed, cmap=ramp(), vmin=1, vmax=STEPS, **style)
    axes.imshow(given, cmap=ListedColormap([theme.faint]), **style)
    axes.grid(visible=False)
    axes.set_xticks(range(len(example.texts)), example.texts, rotation=90)
    axes.set(title="loop: the sequence after each event", xlabel="final tokens", ylabel="events so far")
    axes.set_yticks([*range(0, len(masked), 2)])


def draw_evaluations(axes: Axes, measured: dict[str, dict[int, Tensor]], theme: Theme) -> None:
    for place, (name, counts) in enumerate(measured.items()):
        plot_evaluations(counts, small_config(name), axes=axes, color=theme.colors[place])
    grid = sorted(next(iter(measured.values())))
    label_values(axes.xaxis, grid, most=5)
    axes.set(xlabel="steps", ylabel="network evaluations")
    axes.set_title(f"evaluations, {LENGTH} masks")
    axes.legend(
        handles=[
            *[Line2D([], [], color=theme.colors[place], marker="o", label=name) for place, name in enumerate(measured)],
            Line2D([], [], color=theme.ink, marker="o", linestyle="none", label="measured"),
            Line2D([], [], color=theme.ink, label="expected"),
            Line2D([], [], color=theme.faint, linestyle=":", label="one per step"),
        ],
        loc="lower right",
    )


def generation_figure(example: Example, measured: dict[str, dict[int, Tensor]], theme: Theme) -> Figure:
    """Draws the plan above the sequence after each event, with shared positions, and the evaluations on the right."""
    figure = Figure(figsize=(WIDTH, 5.2))
    panels = figure.subplot_mosaic([["plan", "cost"], ["loop", "cost"]], width_ratios=(1.5, 1))
    panels["plan"].sharex(panels["loop"])
    draw_plan(panels["plan"], example.reveal_step, theme)
    draw_loop(panels["loop"], example, theme)
    draw_evaluations(panels["cost"], measured, theme)
    return figure


def main() -> None:
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True, dtype=torch.float32)
    example = make_example(model, AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True))
    measured = measure_evaluations(GRID, ROWS)
    save_figure(partial(generation_figure, example, measured), FIGURE)
    print(f"wrote {FIGURE.relative_to(ROOT)}: {example.evaluations} evaluations for {STEPS} steps")


if __name__ == "__main__":
    run_program(lambda _: main(), "python -m benchmarks.generation_figure")
