"""Settings of the environment, and fixtures: golden files, tiny models and texts, a clean Accelerate."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach for the network
if os.environ.get("RADD_TEST_GPU") != "1":  # before torch is imported: tests mean the processor, but for tests/gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""
if "RADD_TEST_CACHE" not in os.environ:  # what `datasets` keeps; of this process and of those that it starts
    os.environ["RADD_TEST_CACHE"] = os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["RADD_TEST_CACHE"], ignore_errors=True)

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from transformers import AutoTokenizer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from radd_hf import RaddForMaskedLM, programs_radd
from radd_hf.data.documents import train_tokenizer
from support.launches import TINY
from support.models import make_model
from support.paths import GOLDEN
from support.tapes import capturer_of
from support.texts import SENTENCES
from support.toys import random_model

# Their tests run twice: events are called, as on a processor, and replayed, as on a GPU.
SAMPLERS = (
    "test_generation",
    "test_generation_draws",
    "test_generation_laws",
    "test_generation_plans",
    "test_generation_policies",
    "test_generation_refusals",
    "test_generation_rows",
    "test_partial_caching",
    "test_randomness",
    "test_speculation",
    "test_speed",
)


def pytest_generate_tests(metafunc):
    called_only = metafunc.definition.get_closest_marker("called_only")
    if metafunc.module.__name__.split(".")[-1] in SAMPLERS and not called_only:
        metafunc.parametrize("events", ["called", "replayed"], indirect=True)


@pytest.fixture(autouse=True)
def events(request, monkeypatch) -> Iterator[str]:
    """Replays events from a tape, where a test is parametrised so, or asks for it as `replayed` does."""
    kind = getattr(request, "param", "called")
    if kind == "replayed":
        replay_events(monkeypatch)
    yield kind
    if kind == "replayed":
        programs_radd.KEPT.clear()  # tapes keep what every operation returned


@pytest.fixture
def replayed(monkeypatch):
    replay_events(monkeypatch)


def replay_events(monkeypatch) -> None:
    monkeypatch.setitem(programs_radd.CAPTURERS, "cpu", capturer_of)
    monkeypatch.setattr(programs_radd, "CALLS_BEFORE_CAPTURE", 0)


@pytest.fixture
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def golden_model() -> RaddForMaskedLM:
    """The authors' small random checkpoint, read from their layout."""
    return RaddForMaskedLM.from_pretrained(GOLDEN / "hub").eval()


@pytest.fixture
def toy() -> RaddForMaskedLM:
    """Two real tokens and the mask, three positions: small enough to enumerate."""
    return random_model(vocab_size=3, max_position_embeddings=3)


@pytest.fixture(scope="module")
def model() -> RaddForMaskedLM:
    """The small model of `support.models`; a file may have a `model` of its own."""
    return make_model()


@pytest.fixture
def flash_calls(monkeypatch):
    """Stands in for flash attention (which needs a GPU), and writes down how it was called.

    Like the real one it takes a 2D mask of keys, and puts fewer queries than keys at the END of the row.
    """
    calls = []

    def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        shapes = {"query": tuple(query.shape), "key": tuple(key.shape), "value": tuple(value.shape)}
        causal = module.is_causal if is_causal is None else is_causal
        calls.append(shapes | {"causal": causal, "mask": attention_mask, "dropout": dropout, "kwargs": kwargs})
        allowed = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
        return output.transpose(1, 2), None

    for name in ("flash_attention_2", "stand_in"):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, attend)
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, flash_attention_mask)
    return calls


@pytest.fixture
def uncompiled_flex():
    """flex_attention as written out in PyTorch: the same call and result without half a minute of compilation."""
    with torch.compiler.set_stance("force_eager"):
        yield


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
