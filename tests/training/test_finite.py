# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Numbers that are not finite end a run: the step is not taken, nothing is saved of it, good checkpoints stay."""

import json
import math
import subprocess

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from radd_hf import RaddForMaskedLM
from radd_hf.training import train
from radd_hf.training.run import Run
from support.launches import QUIET, command, metrics
from support.paths import ROOT
from support.tapes import waits
from support.toys import random_model


@pytest.fixture
def run(tmp_path, tiny_config):
    """Trains with the tiny settings and the given ones; returns the run folder."""

    def run_folder(**settings):
        flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        train.main(["--config", tiny_config(n_samples=0), "--output_dir", str(tmp_path / "run"), *flags])
        return tmp_path / "run"

    return run_folder


@pytest.fixture
def planted(monkeypatch):
    """Plants a value in one gradient of a step; returns what the weights and moments were before it, and the run."""
    step, seen = train.optimizer_step, {}

    def plant(at: int, value: float = math.nan, every: bool = False) -> dict:
        def optimizer_step(run, *given):
            if not (run.step + 1 == at or (every and run.step + 1 > at)):
                return step(run, *given)
            weight = [weight for weight in run.model.parameters() if weight.requires_grad][-1]
            seen.update(run=run, before=state_of(run))
            hook = weight.register_hook(lambda gradient: torch.full_like(gradient, value))
            result = step(run, *given)
            hook.remove()
            return result

        monkeypatch.setattr(train, "optimizer_step", optimizer_step)
        return seen

    return plant


def state_of(run: Run) -> list[torch.Tensor]:
    moments = [value for state in run.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*run.model.parameters(), *moments)]


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [6, 8])  # in the middle, where nothing is read, and the last, which is saved
def test_a_gradient_that_is_not_finite_ends_the_run_and_the_good_checkpoint_stays(run, planted, tmp_path, step, value):
    planted(step, value)
    with pytest.raises(FloatingPointError, match=rf"the gradient is (nan|inf) at step {step}; nothing was saved"):
        run(keep_last=1)
    assert checkpoints(tmp_path) == ["step_4"]
    RaddForMaskedLM.from_pretrained(tmp_path / "run" / "checkpoints" / "step_4")


@pytest.mark.parametrize("way", [{}, {"accumulation": 2}, {"lora_rank": 2}])
def test_a_step_whose_gradient_is_not_finite_is_not_taken(run, planted, way):
    seen = planted(8)
    with pytest.raises(FloatingPointError, match="the gradient is nan at step 8"):
        run(**way)
    after = state_of(seen["run"])
    assert all(torch.equal(now, before) for now, before in zip(after, seen["before"], strict=True))
    assert all(average.isfinite().all() for average in seen["run"].ema.state_dict().values())


def test_a_step_that_only_logs_does_not_log_what_is_not_finite(run, planted, tmp_path):
    planted(2)
    with pytest.raises(FloatingPointError, match="the gradient is nan at step 2"):
        run(log_steps=2)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_gradient_of_one_process_ends_them_all_with_its_status(tiny_config, tmp_path):
    script = tmp_path / "one_is_nan.py"
    script.write_text(
        "import os, sys, torch\n"
        "from radd_hf.processes import run_script\n"
        "from radd_hf.training import train\n"
        "step = train.optimizer_step\n"
        "def optimizer_step(run, prepared, args):\n"
        "    if run.step == 5 and os.environ['RANK'] == '1':\n"
        "        next(run.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)\n"
        "    return step(run, prepared, args)\n"
        "train.optimizer_step = optimizer_step\n"
        "if __name__ == '__main__':\n"
        "    run_script(train.main)\n"
    )
    flags = ["--config", tiny_config(n_samples=0), "--output_dir", str(tmp_path / "run"), "--keep_last", "1"]
    environment = QUIET | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        command(2, str(script), *flags), env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.count("error: the gradient is nan at step 6") >= 1
    assert checkpoints(tmp_path) == ["step_4"]


class Reads(TorchDispatchMode):
    """Counts the operations that make the host wait for a device."""

    number = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.number += waits(str(operation.overloadpacket), args)
        return operation(*args, **(kwargs or {}))


def test_the_norm_of_a_step_is_read_with_the_losses_one_step_late(run, monkeypatch):
    counts, step = [], train.optimizer_step

    def counted(run, *given):
        with Reads() as reads:
            clip = run.accelerator.clip_grad_norm_

            def clipped(*arguments):
                reads.number = 0  # what the forward on a processor reads is another matter
                return clip(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(run.accelerator, "clip_grad_norm_", clipped)
                figures = step(run, *given)
        counts.append((reads.number, len(figures)))
        return figures

    monkeypatch.setattr(train, "optimizer_step", counted)
    run(accumulation=2, max_steps=2)
    assert counts == [(0, 3)] * 2, "nothing read; two losses and the norm"


@pytest.mark.parametrize("what", ["weight", "average of"])
@pytest.mark.parametrize("deed", ["save", "evaluate", "sample"])
def test_weights_and_averages_that_are_not_finite_are_neither_saved_nor_used(run, monkeypatch, tmp_path, what, deed):
    ran, name = getattr(Run, deed), "model.norm.weight"

    def spoil(self, *given, **settings):
        with torch.no_grad():
            if self.step == 8:
                tensors = dict(self.model.named_parameters()) if what == "weight" else self.ema.averages
                tensors[name][3] = torch.inf
        return ran(self, *given, **settings)

    monkeypatch.setattr(Run, deed, spoil)
    with pytest.raises(FloatingPointError, match=rf"the {what} {name} is not finite after step 8; nothing was saved"):
        run(keep_last=1, n_samples=1)
    assert checkpoints(tmp_path) == ["step_4" if deed == "save" else "step_8"], "it is saved first"
    assert not (tmp_path / "run" / "samples" / "step_8").exists()


@pytest.mark.parametrize("settings", [{"learning_rate": 1e38}, {"learning_rate": 1e30}])
def test_a_learning_rate_beyond_all_bounds_ends_in_one_sentence_and_saves_nothing(run, tmp_path, settings):
    with pytest.raises(FloatingPointError, match=r"^the .* (is|has) (nan|inf|not finite) "):
        run(**settings, warmup_steps=0, save_steps=8)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("rate", [1e10, 1e20])
def test_a_run_that_diverged_has_no_perplexity_in_its_figures_but_the_nats(run, tmp_path, rate):
    try:
        folder = run(learning_rate=rate, warmup_steps=0, ema_decay=0.0)
    except FloatingPointError:
        return  # it diverged beyond the numbers
    final = metrics(folder)[-1]
    assert final["final_nats_per_token"] > 710
    assert final["final_perplexity"] is None
    json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=lambda name: pytest.fail(name))


def test_fp16_may_leave_out_some_steps_but_not_all_of_them():
    """Under its scaler an overflow is ordinary; that no scale is small enough is not."""

    class Accelerator:
        scaler = object()

    class Toy:
        accelerator, step, nats = Accelerator(), 0, 0.0

    losses = train.LateLosses(Toy(), [range(1)])
    for _ in range(3):
        for step in range(train.MOST_OVERFLOWS):
            Toy.step = step
            losses.add(torch.tensor([1.0, torch.inf]))
        losses.add(torch.tensor([1.0, 2.0]))
    losses.read_all()
    for _ in range(train.MOST_OVERFLOWS + 1):
        losses.add(torch.tensor([1.0, torch.inf]))
    with pytest.raises(FloatingPointError, match=rf"the gradient is inf at step .* and {train.MOST_OVERFLOWS} steps "):
        losses.read_all()


def test_the_weights_of_a_whole_step_are_those_of_a_step_that_was_not_looked_at():
    """To the bit: the device reads the mark and goes on."""
    networks = [random_model(hidden_size=32, vocab_size=40, max_position_embeddings=8) for _ in range(2)]
    for network, mark in zip(networks, (None, torch.tensor(0.0)), strict=True):
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
        if mark is not None:
            optimizer.found_inf = mark
        for seed in range(3):
            ids = torch.randint(0, 39, (2, 8), generator=torch.Generator().manual_seed(seed))
            network(input_ids=ids.masked_fill(ids % 3 == 0, 39), labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)
