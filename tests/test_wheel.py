# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The wheel alone, without a checkout, trains, evaluates and writes. `make wheel` builds it and runs this."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SITE = os.environ.get("RADD_WHEEL")  # where the wheel is installed
pytestmark = pytest.mark.skipif(SITE is None, reason="make wheel builds the wheel that is tried here")


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(SITE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_is_the_wheel_that_is_tried(tmp_path):
    where = run(tmp_path, "-c", "import radd_hf; print(radd_hf.__file__)")
    assert Path(where.strip()).is_relative_to(str(SITE))


def test_it_holds_code_types_texts_and_recipes_and_nothing_of_the_checkout():
    site = Path(str(SITE))
    package = site / "radd_hf"
    files = "py.typed", "kernels_radd.py", "data/corpora/austen.txt.gz", "training/configs/small.yaml"
    for name in (*files, "app/page.css", "app/page.js"):
        assert (package / name).is_file(), name
    assert (package / "training" / "configs" / "accelerate" / "eight_gpus.yaml").is_file()
    assert {path.name for path in site.iterdir() if path.name not in ("__pycache__", "bin")} == {
        "radd_hf",
        "radd_command.py",
        *(path.name for path in site.glob("*.dist-info")),
    }


def test_one_trains_evaluates_and_writes_without_a_checkout(tmp_path, tiny_text):
    sizes = ["--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--vocab_size", "320"]
    steps = ["--max_steps", "4", "--save_steps", "4", "--batch_size", "4", "--length", "16", "--n_samples", "1"]
    data = ["--dataset", str(tiny_text)]
    run(tmp_path, "-m", "radd_hf", "train", "--config", "tiny", *data, *sizes, *steps, "--output_dir", "run")
    model = "run/checkpoints/step_4"
    scored = run(tmp_path, "-m", "radd_hf", "eval", "--model", model, *data, "--passes", "2")
    assert "bits per byte" in scored
    judged = ["--methods", "tweedie", "--steps", "4", "--n_samples", "2", "--length", "8"]
    assert "tweedie" in run(tmp_path, "-m", "radd_hf", "quality", "--model", model, *judged)
    written = run(tmp_path, "-m", "radd_command", "generate", model, "It is a [MASK:4].", "--seed", "1", "--quiet")
    assert written.startswith("It is a")
    assert "austen" in run(tmp_path, "-m", "radd_hf", "train", "--help")
