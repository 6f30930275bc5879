"""`exact=True` draws from the model's distribution, whatever settings its checkpoint has saved."""

import ast
import json
import re
from itertools import chain

import pytest
import torch
from transformers import AutoModel

from radd_hf import RaddGenerationConfig
from radd_hf.evaluation.quality import write_samples
from radd_hf.settings_radd import INEXACT
from support.models import make_model
from support.paths import CHECKPOINT, ROOT

SAVED = {"temperature": 0.2, "top_k": 3, "order": "confidence", "steps": 2, "stop_on_eos": True, "use_cache": False}
CHANGED = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "refresh_interval": 2, "max_time": 5.0}


@pytest.fixture
def model():
    return make_model(max_position_embeddings=12)


def generated(model, **settings):
    return model.generate(seed=0, num_return_sequences=3, **settings)


def test_exact_sets_the_saved_settings_aside(model):
    expected = generated(model, method="first_hitting")
    model.generation_config = RaddGenerationConfig(**SAVED, eos_token_id=1)
    assert not torch.equal(generated(model), expected)
    assert torch.equal(generated(model, exact=True), expected)


@pytest.mark.parametrize("settings", [{"method": "tweedie", "steps": 4}, {"order": "random"}, {"steps": 5}], ids=str)
def test_exact_goes_with_any_method_of_choosing_positions(model, settings):
    expected = generated(model, **settings)
    model.generation_config = RaddGenerationConfig(**SAVED, eos_token_id=1)
    assert torch.equal(generated(model, exact=True, **settings), expected)


def test_exact_keeps_the_saved_length_and_profile(model):
    profile = [3.0, 1.0]
    model.generation_config = RaddGenerationConfig(length=7, information_profile=profile)
    assert generated(model, exact=True).shape == (3, 7)
    assert model.check_settings(exact=True).information_profile == profile


@pytest.mark.parametrize("name", INEXACT)
def test_exact_is_refused_beside_a_setting_that_changes_the_distribution(model, name):
    assert CHANGED.keys() == set(INEXACT)
    message = f"exact=True and {name}={CHANGED[name]} contradict each other"
    with pytest.raises(ValueError, match=re.escape(message)):
        generated(model, exact=True, **{name: CHANGED[name]})
    with pytest.raises(ValueError, match=re.escape(message)):
        generated(model, exact=True, generation_config={name: CHANGED[name]})
    with pytest.raises(ValueError, match=re.escape(message)):
        RaddGenerationConfig(exact=True, **{name: CHANGED[name]})


def test_exact_is_refused_beside_a_logits_processor(model):
    with pytest.raises(ValueError, match="exact=True and logits_processor="):
        generated(model, exact=True, logits_processor=[lambda ids, scores: scores])


def test_a_keyword_changes_the_distribution_of_an_exact_configuration(model):
    expected = generated(model, temperature=0.5)
    model.generation_config = RaddGenerationConfig(**SAVED, eos_token_id=1)
    base = RaddGenerationConfig(exact=True)
    assert torch.equal(generated(model, generation_config=base, steps=4), generated(model, exact=True, steps=4))
    assert torch.equal(generated(model, generation_config=base, temperature=0.5), expected)
    assert not model.check_settings(exact=False).exact


def test_values_that_change_nothing_may_stand_beside_exact(model):
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "refresh_interval": 1}
    assert torch.equal(generated(model, exact=True, **neutral), generated(model, exact=True))


def test_the_shipped_checkpoint_writes_by_the_settings_of_its_picture():
    saved = json.loads((CHECKPOINT / "generation_config.json").read_text())
    makefile = (ROOT / "Makefile").read_text()
    pictured = re.search(r"radd generate .* --temperature ([\d.]+) --top-p ([\d.]+) .*readme\.gif", makefile)
    written = re.search(r"settings\.temperature, settings\.top_p = ([\d.]+), ([\d.]+);", makefile)
    expected = (str(saved["temperature"]), str(saved["top_p"]))
    assert [found and found.groups() for found in (pictured, written)] == [expected, expected]


# ---------------------------------------------------------------------------------------------------------
# What measures a model is not moved by the settings that it has saved
# ---------------------------------------------------------------------------------------------------------


def test_samples_for_an_evaluation_are_not_moved_by_saved_settings(model):
    settings = {"method": "tweedie", "steps": 4, "length": 12}
    expected = write_samples(model, 3, **settings).ids
    model.generation_config = RaddGenerationConfig(**SAVED, top_p=0.5, eos_token_id=1)
    assert torch.equal(write_samples(model, 3, **settings).ids, expected)


def test_the_likelihood_of_the_shipped_checkpoint_is_not_moved_by_its_saved_settings():
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True, dtype=torch.float32)
    ids, labels = torch.arange(24).view(2, 12), torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).sequence_nll
        model.generation_config = RaddGenerationConfig()
        assert torch.equal(model(input_ids=ids, labels=labels).sequence_nll, expected)


SCANNED = [ROOT / "benchmarks", *(ROOT / "radd_hf" / room for room in ("evaluation", "training"))]


@pytest.mark.parametrize("path", sorted(chain(*(room.glob("*.py") for room in SCANNED))), ids=lambda path: path.stem)
def test_what_measures_passes_the_exact_sampler_to_every_call(path):
    """Calls `model.generate(...)`, `partial(model.generate, ...)` and `RowFiller(...)` name their base settings."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and generates(call):
            passed = {word.arg or ast.unparse(word.value) for word in call.keywords}
            assert not passed.isdisjoint({"generation_config", "exact", "EXACT"}), f"{path.name}:{call.lineno}"


def generates(call: ast.Call) -> bool:
    called = [call.func, *(call.args[:1] if ast.unparse(call.func) == "partial" else ())]
    return any(ast.unparse(each).endswith(".generate") or ast.unparse(each) == "RowFiller" for each in called)
