# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The memory of a training step: its estimate against tensors that were counted, and what is refused for it."""

import pytest
import torch

from benchmarks.measure import peak_bytes
from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.training import memory, train
from support.paths import ROOT
from support.toys import seeded

GB = 10**9
# Layers, heads, length, rows, vocabulary, attention, dropout, checkpointing, 16 bits.
STEPS = {
    "two layers": (2, 2, 128, 8, 256, "sdpa", 0.0, False, False),
    "six layers": (6, 2, 128, 8, 256, "sdpa", 0.0, False, False),
    "dropout": (6, 2, 128, 8, 256, "sdpa", 0.1, False, False),
    "eager": (6, 2, 512, 2, 256, "eager", 0.0, False, False),
    "checkpointing": (6, 2, 128, 32, 256, "sdpa", 0.0, True, False),
    "checkpointing of two": (2, 2, 128, 32, 256, "sdpa", 0.0, True, False),
    "sixteen bits": (6, 2, 128, 8, 256, "sdpa", 0.0, False, True),
    "a large vocabulary": (2, 2, 128, 8, 8192, "sdpa", 0.0, False, False),
    "logits in chunks": (1, 2, 128, 64, 16384, "sdpa", 0.0, False, False),
}


@pytest.mark.parametrize("case", STEPS.values(), ids=STEPS)
def test_the_estimate_of_a_step_is_near_the_tensors_that_it_holds(case):
    layers, heads, length, rows, vocabulary, attention, dropout, checkpointing, half = case
    config = RaddConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        hidden_dropout=dropout,
        attn_implementation=attention,
    )
    model = RaddForMaskedLM(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(vocabulary - 1, (rows, length), generator=seeded(0))
    masked = torch.rand(rows, length, generator=seeded(1)) < memory.MASKED
    inputs = {"input_ids": ids.masked_fill(masked, vocabulary - 1), "labels": ids.masked_fill(~masked, -100)}

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(**inputs, loss_weights=torch.ones(rows), max_targets=int(masked.sum())).loss
        loss.backward()

    expected = memory.forward_bytes(config, rows, checkpointing, half, on_gpu=False)
    assert expected == pytest.approx(peak_bytes(step), rel=0.15)


def test_weights_gradients_moments_and_the_average_are_twenty_bytes_a_parameter():
    config = RaddConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    parameters = RaddForMaskedLM(config).num_parameters()
    assert memory.state_bytes(config, half=False) == 20 * parameters
    assert memory.state_bytes(config, half=False, adapters=True) == 4 * parameters


def refused(monkeypatch, free: float, *flags: str, processes: int = 1, device: str = "cpu") -> str | None:
    """What the script says of these flags where so many bytes are free; None if it would train."""
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(free))
    monkeypatch.setattr(train, "load_tokenizer", lambda _: range(50_257))
    model_args, data_args, args = train.parse_arguments(list(flags))
    accelerator = FakeAccelerator(processes, device, args.mixed_precision)
    try:
        train.check_memory_of_a_step(model_args, data_args, args, None, None, accelerator)
    except ValueError as error:
        return str(error)
    return None


class FakeAccelerator:
    distributed_type = "NO"

    def __init__(self, processes: int, device: str, mixed_precision: str):
        self.num_processes, self.device, self.mixed_precision = processes, torch.device(device), mixed_precision


def test_the_defaults_are_refused_on_a_laptop_with_the_estimate_and_two_ways_out(monkeypatch):
    said = refused(monkeypatch, 16 * GB)
    assert "batch_size=512 with accumulation=1 needs about 211.1 GB of memory" in said
    assert "On cpu 16.0 GB are free. A smaller batch_size needs less; with the same batch_size, accumulation=" in said
    assert "with gradient_checkpointing=True would take" in said
    for way in (["--batch_size", "16"], ["--accumulation", "32"], ["--force", "true"]):
        assert refused(monkeypatch, 16 * GB, *way) is None
    assert "train a smaller model" in refused(monkeypatch, GB)


@pytest.mark.parametrize("name", ["austen", "tiny"])
def test_the_recipes_for_a_processor_are_trained_with_a_gigabyte(monkeypatch, name):
    assert refused(monkeypatch, GB, "--config", str(ROOT / f"configs/{name}.yaml")) is None


@pytest.mark.parametrize("name", ["small", "medium"])
def test_the_papers_recipes_are_trained_on_the_cards_that_they_are_for(monkeypatch, name):
    flags = ["--config", str(ROOT / f"configs/{name}.yaml")]
    assert refused(monkeypatch, 80 * GB, *flags, processes=8, device="cuda") is None
    assert "GB are free" in refused(monkeypatch, 80 * GB, *flags, device="cuda")


def test_the_script_refuses_before_it_reads_a_text(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "free_bytes", lambda _: GB)
    monkeypatch.setattr(train, "load_data", lambda *_: pytest.fail("it began"))
    with pytest.raises(ValueError, match="a smaller model"):
        train.main(["--output_dir", str(tmp_path / "run"), "--num_hidden_layers", "24"])


def test_the_limit_of_a_container_and_the_other_processes_on_the_machine_count(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    unlimited = memory.free_bytes(cpu)
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.free_bytes(cpu) == 1_000_000 < unlimited
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(cpu) == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(cpu) > 1_000_000
    assert memory.free_bytes(torch.device("meta")) is None
