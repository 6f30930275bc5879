"""Fixtures shared by all tests: golden files, tiny models, a clean Accelerate."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach for the network
if "RADD_TEST_CACHE" not in os.environ:  # what `datasets` keeps; of this process and of those that it starts
    os.environ["RADD_TEST_CACHE"] = os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["RADD_TEST_CACHE"], ignore_errors=True)

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from launching import TINY
from transformers import AutoTokenizer

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.data.documents import train_tokenizer

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
# The README's lines of Python: a folder of ours, the authors' repository, the same by AutoModel.
README_CODE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
# The first lines of a script that runs as where this package is not installed.
WITHOUT_RADD_HF = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "radd_hf":
            raise ImportError("radd_hf is not installed here")

sys.meta_path.insert(0, Absent())
"""
SENTENCES = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


@pytest.fixture
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def golden_model() -> RaddForMaskedLM:
    """The authors' small random checkpoint, read from their layout."""
    return RaddForMaskedLM.from_pretrained(GOLDEN / "hub").eval()


def random_model(seed: int = 0, **settings) -> RaddForMaskedLM:
    """A tiny model whose every parameter is random, the output layer (zero at initialisation) included."""
    defaults = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_dropout": 0.0}
    model = RaddForMaskedLM(RaddConfig(**{**defaults, **settings})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.fixture
def toy() -> RaddForMaskedLM:
    """Two real tokens and the mask, three positions: small enough to enumerate."""
    return random_model(vocab_size=3, max_position_embeddings=3)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("".join(f"{number}. {SENTENCES}" for number in range(400)))
    return path


@pytest.fixture
def tiny_config(tmp_path, tiny_text):
    """Writes the training script's tiny settings, and the given ones, to a file; returns its path."""

    def write(**settings) -> str:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(TINY | {"dataset": str(tiny_text)} | settings))
        return str(path)

    return write


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([SENTENCES * 20], 300).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state in the process; a second Accelerator with other settings would be refused."""
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
