# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Every example runs, and does what it says, on settings that take a second."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from transformers import pipeline

from radd_hf import RaddForMaskedLM
from support.hub_scripts import OWNER, run_script
from support.hub_stand_in import HubStandIn
from support.paths import CHECKPOINT, ROOT


def example(name: str) -> dict:
    return runpy.run_path(str(ROOT / "examples" / name))


def test_every_example_has_a_test():
    beside = [ROOT / "tests" / "docs" / name for name in ("test_ray_data.py", "test_sudoku.py")]
    tests = Path(__file__), ROOT / "tests" / "hub" / "test_quantised.py", *beside
    tried = {name for test in tests for name in re.findall(r'"(\w+\.py)"', test.read_text())}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} <= tried


def test_the_trainers_model_is_a_folder_like_any_other(tmp_path, tiny_text, capsys):
    flags = ["--dataset", str(tiny_text), "--max_steps", "2", "--batch_size", "2", "--hidden_size", "16"]
    example("trainer.py")["main"](["--output_dir", str(tmp_path / "run"), *flags])
    losses = [float(loss) for loss in re.findall(r"'train_loss': '?([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 1
    assert 128 < losses[0] < 128 * 12, "nats per sequence of 128 tokens, about 8.3 each at first"
    (sample,) = pipeline(model=str(tmp_path / "run"), trust_remote_code=True, device="cpu")("It is [MASK:3].", seed=0)
    assert sample["text"] == f"It is{sample['fills'][0]}."


def test_adapters_change_the_likelihood_by_what_is_printed(tmp_path, capsys):
    lora = example("lora.py")
    torch.manual_seed(0)
    lora["main"](["--output_dir", str(tmp_path), "--max_steps", "8", "--batch_size", "2", "--passages", "3"])
    printed = dict(re.findall(r"^(before|after|difference) +(-?[\d.]+) \+-", capsys.readouterr().out, re.MULTILINE))
    before, after, difference = (float(printed[name]) for name in ("before", "after", "difference"))
    assert difference == pytest.approx(after - before, abs=2e-3)
    assert 4 < before < 5.2, "nats per token of the shipped checkpoint on Persuasion"
    assert 0.0005 < abs(difference) < 0.2
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "merged"}
    merged, original = (
        RaddForMaskedLM.from_pretrained(path, dtype=torch.float32) for path in (tmp_path / "merged", CHECKPOINT)
    )
    changed = {
        name for name, weight in merged.state_dict().items() if not torch.equal(weight, original.state_dict()[name])
    }
    assert changed
    assert all(re.search(r"qkv_proj|o_proj|up_proj|down_proj", name) for name in changed)


def test_a_model_that_is_partly_on_the_disk_writes_the_same(capsys):
    big_model = example("big_model.py")
    big_model["main"](["--length", "12", "--dtype", "float32"])
    places, _, whole = re.split(r"^(weights.*)\n", capsys.readouterr().out, flags=re.MULTILINE)
    assert places.split()[-1] == "cpu"
    big_model["main"](["--length", "12", "--dtype", "float32", "--max_memory", '{"cpu": "16MB"}'])
    places, weights, offloaded = re.split(r"^(weights.*)\n", capsys.readouterr().out, flags=re.MULTILINE)
    assert {line.split()[-1] for line in places.splitlines()} == {"cpu", "disk"}
    assert offloaded == whole
    held, total = re.findall(r"[\d,]{5,}", weights)
    assert 0 < int(held.replace(",", "")) < 16e6 < int(total.replace(",", ""))


def test_compiled_layers_compute_the_same(capsys):
    flags = ["--backend", "eager", "--batch_size", "2", "--length", "16", "--repeats", "1"]
    example("compiled.py")["main"](flags)
    torch.compiler.reset()
    printed = capsys.readouterr().out
    assert float(re.search(r"differs by at most (\S+) of its value", printed)[1]) < 1e-5
    assert "100.0% of the sampled tokens are the same" in printed
    assert re.findall(r"^(evaluate|sample) ", printed, re.MULTILINE) == ["evaluate", "sample"]


# ---------------------------------------------------------------------------------------------------------
# Publishing


PUSH = """
import runpy
runpy.run_path(sys.argv[1])["main"](sys.argv[2:])
print(json.dumps("pushed"))
"""


def test_publishing_uploads_a_whole_model_and_a_card_with_its_figures(tmp_path):
    """In a process of its own, which knows of no other Hub than the stand-in and may reach for nothing else."""
    script = ROOT / "examples" / "push_to_hub.py"
    with HubStandIn() as hub:
        asked = (script, CHECKPOINT, "someone/radd", "--endpoint")
        run_script(OWNER + PUSH, *asked, hub=hub, home=tmp_path, HF_TOKEN="hf_token")
    assert not hub.surprises
    files = hub.files("someone/radd")
    expected = {path.name for path in CHECKPOINT.iterdir() if path.is_file()} - {"evaluation.json"}
    assert files.keys() == expected | {"handler.py", "requirements.txt"}
    assert files["handler.py"] == (ROOT / "radd_hf" / "serving" / "handler.py").read_bytes()
    assert json.loads(files["config.json"])["custom_pipelines"]
    card = files["README.md"].decode()
    figures = json.loads((CHECKPOINT / "evaluation.json").read_text())
    assert f"| bits per byte | {figures['bits_per_byte']:.4f} |" in card
    assert "| `loss_type` | k_DCE |" in card
    assert '\nname = "someone/radd"\n' in card
    assert "| Source | `austen`, a radd_hf training run |" in card, "the source that the card of the folder names"
    assert "\n## Intended use and limits\n" in card, "people wrote it"
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == figures["bits_per_byte"]
