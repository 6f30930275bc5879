# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws docs/figures/generation.png: a plan, the canvas it fills event by event, and evaluations against steps.

python -m benchmarks.generation_figure
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from transformers import AutoModel, AutoTokenizer

from radd_hf.endings import run_program
from radd_hf.noise_radd import expected_evaluations, get_noise

from .commands import ROOT
from .estimators import CHECKPOINT
from .measure import EXACT

FIGURE = ROOT / "docs" / "figures" / "generation.png"
SHORT, STEPS = 24, 16  # the row that is shown: tokens, and steps of its grid
ROWS = 64  # of the measurement


def draw_plan(axes: Axes, reveal_step: torch.Tensor) -> None:
    """Draws the plan, reveal_step (L,): the step of each position."""
    position = np.arange(len(reveal_step))
    planned = reveal_step >= 0
    axes.scatter(position[planned], reveal_step[planned], c=reveal_step[planned], cmap="viridis", s=28, zorder=3)
    used = set(reveal_step[planned].tolist())
    for step in range(STEPS):
        axes.axhline(step, color="0.9" if step in used else "#f2b8b5", linewidth=1 if step in used else 5, zorder=1)
    axes.scatter(position[~planned], np.full((~planned).sum(), -1), marker="s", color="0.6", s=16)
    axes.set(xlabel="position", ylabel="step of the grid", title="plan: when (red: empty steps, not evaluated)")
    axes.invert_yaxis()


def draw_canvas(axes: Axes, history: torch.Tensor, reveal_step: torch.Tensor, texts: list[str], mask_id: int) -> None:
    """Draws history (events + 1, L) with reveal_step (L,) and the final token of each position as text."""
    shown = np.where(history == mask_id, np.nan, np.where(reveal_step < 0, -6, reveal_step))
    axes.imshow(shown, aspect="auto", cmap="viridis", vmin=-6, vmax=STEPS, interpolation="nearest")
    axes.set_xticks(range(len(texts)), texts, rotation=90, fontsize=7)
    axes.set(ylabel="event", title="loop: one evaluation and one draw an event")


def draw_evaluations(axes: Axes, model, length: int) -> None:
    """Draws network evaluations of unconditional samples, measured and expected, against the steps of the grid."""
    grid = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    for name, colour in (("loglinear", "C0"), ("geometric", "C1")):
        model.config.noise_type = name
        noise = get_noise(model.config)
        measured = []
        for steps in grid:
            output = model.generate(
                length=length,
                steps=steps,
                num_return_sequences=ROWS,
                generation_config=EXACT,
                generator=torch.Generator().manual_seed(steps),
                return_dict_in_generate=True,
            )
            measured.append(output.num_function_evaluations.double().mean())
        axes.plot(grid, measured, "o", color=colour, label=f"{name}, measured")
        axes.plot(
            grid,
            [expected_evaluations(noise, "tweedie", steps, length) for steps in grid],
            color=colour,
            label="expected",
        )
    axes.plot(grid, grid, ":", color="0.5", label="one a step (no caching)")
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(3, 1100),
        xlabel="steps",
        ylabel="evaluations",
        title=f"evaluations, {length} masks",
    )
    axes.legend(fontsize=7)


def main() -> None:
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)
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
    texts = [str(tokenizer.decode([token])).replace("\n", "\\n") for token in output.sequences[0]]
    history = torch.cat(output.history)

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), constrained_layout=True)
    draw_plan(axes[0], output.reveal_step[0])
    draw_canvas(axes[1], history, output.reveal_step[0], texts, model.config.mask_token_id)
    draw_evaluations(axes[2], model, model.config.max_position_embeddings)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})
    print(f"wrote {FIGURE.relative_to(ROOT)}: {output.num_function_evaluations.item()} evaluations for {STEPS} steps")


if __name__ == "__main__":
    run_program(lambda _: main(), "python -m benchmarks.generation_figure")
