"""What the README and the demo promise, run as they stand."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import demo
from radd_hf.data.blocks import Blocks
from radd_hf.data.documents import load_documents, tokenize
from radd_hf.likelihood import estimate_likelihood
from support.paths import CHECKPOINT, ROOT, SHIPPED, SUDOKU
from support.texts import README_CODE


def test_the_first_lines_of_the_readme_write_a_text():
    finished = subprocess.run(
        [sys.executable, "-c", README_CODE[0]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("It was a very")
    assert finished.stdout.rstrip().endswith("of spring.")


def test_the_demo_runs_the_folders_own_code_and_shows_every_method():
    finished = subprocess.run([sys.executable, "demo.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout
    assert "by the code in that folder (transformers_modules)" in printed
    assert demo.OPENING[:20] in printed
    for method in demo.METHODS:
        assert re.search(rf"^{re.escape(method)} +\d+ +\d+\.\d\d   \S", printed, flags=re.MULTILINE)
    assert demo.OPENING in load_documents("austen", "validation")[0]["text"]


def test_the_shipped_checkpoint_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in demo.CHECKPOINT.iterdir()}
    assert sum(files.values()) < 25 * 2**20
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_radd.py", "README.md"} <= set(files)
    assert AutoModel.from_pretrained(demo.CHECKPOINT, trust_remote_code=True).config.vocab_size == 4096


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("folder", [CHECKPOINT, SUDOKU], ids=["austen", "sudoku"])
def test_the_shipped_checkpoints_carry_the_present_code(folder, name):
    assert (folder / name).read_text() == (ROOT / "radd_hf" / name).read_text(), "make code copies it"


def test_every_file_the_readme_names_exists():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).exists(), path


def test_the_readme_gives_the_figures_of_the_shipped_evaluation():
    readme, result = (ROOT / "README.md").read_text(), json.loads((demo.CHECKPOINT / "evaluation.json").read_text())
    assert f"**{result['bits_per_byte']:.3f} bits per byte**" in readme
    assert f"error\n{result['bits_per_byte_error']:.3f}, {result['n_tokens']:,} tokens" in readme
    assert (result["dataset"], result["split"], result["length"], result["passes"]) == ("austen", "validation", 128, 16)
    weights = (demo.CHECKPOINT / "model.safetensors").stat().st_size
    assert 2 * 5_250_000 < weights < 2 * 5_350_000, "5.3 million parameters in bfloat16"


def test_a_small_part_of_the_held_out_novel_is_scored_as_recorded():
    """The figure is of these weights: the first blocks agree with the whole within a few standard errors."""
    model = AutoModel.from_pretrained(demo.CHECKPOINT, trust_remote_code=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT, trust_remote_code=True)
    blocks = Blocks(tokenize(load_documents("austen", "validation"), tokenizer), 128, tail=True)
    result = json.loads((demo.CHECKPOINT / "evaluation.json").read_text())
    assert blocks.fingerprint() == result["ids"]
    part = estimate_likelihood(model, blocks[100:132], passes=4)
    assert abs(part.nats_per_token - result["nats_per_token"]) < 0.35
