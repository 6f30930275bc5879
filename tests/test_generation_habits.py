"""generate() for people who come from other libraries: their names of arguments, and the numbers of NumPy."""

import inspect

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from radd_hf import RaddForMaskedLM, RaddGenerationConfig
from radd_hf.settings_radd import FOREIGN, SETTINGS, SYNONYMS
from support.toys import random_model

V, M, L = 300, 299, 12


@pytest.fixture
def model():
    return random_model(vocab_size=V, max_position_embeddings=L)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"max_length": 7, "num_inference_steps": 3}, {"length": 7, "steps": 3}),
        ({"inputs": [1, M, M]}, {"input_ids": [1, M, M]}),
        ({"do_sample": True, "num_beams": 1, "repetition_penalty": 1.0, "min_length": 0, "stopping_criteria": []}, {}),
    ],
)
def test_what_means_the_same_in_transformers_is_taken(model, theirs, ours):
    ids = model.generate(**ours, seed=3)
    assert torch.equal(ids, model.generate(**theirs, seed=3))
    if "inputs" not in theirs:
        assert torch.equal(ids, model.generate(generation_config=theirs, seed=3))
        assert torch.equal(ids, model.generate(generation_config=RaddGenerationConfig(**theirs), seed=3))


def test_a_generation_config_of_transformers_is_taken_as_its_settings(model, tmp_path):
    theirs = GenerationConfig(
        max_new_tokens=4, temperature=0.5, top_k=9, do_sample=True, bos_token_id=1, eos_token_id=2
    )
    settings = {"max_new_tokens": 4, "temperature": 0.5, "top_k": 9}
    ids = model.generate(prefix=[1], seed=3, **settings)
    assert torch.equal(ids, model.generate(prefix=[1], seed=3, generation_config=theirs))
    model.save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    loaded = RaddForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(ids, loaded.generate(prefix=[1], seed=3))
    assert loaded.generation_config.eos_token_id == 2
    model.generation_config = theirs
    assert torch.equal(ids, model.generate(prefix=[1], seed=3))


THEIR_ARGUMENTS = {*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters} - {
    "self",
    "kwargs",
    "transformers_version",
    "_from_model_config",
}


@pytest.mark.parametrize("name", sorted(THEIR_ARGUMENTS))
def test_every_argument_of_transformers_has_a_meaning_or_an_equivalent(model, name):
    parameters = inspect.signature(RaddForMaskedLM.generate).parameters
    assert (name in parameters) + (name in SYNONYMS) + (name in FOREIGN) == 1
    if name in FOREIGN:
        with pytest.raises(ValueError, match=f"{name}='x' is not an argument of RADD's generate: "):
            model.generate(**{name: "x"})
    if name in FOREIGN and name not in RaddGenerationConfig.METADATA:
        with pytest.raises(ValueError, match=f"{name}='x' is not a setting of RADD's generate: "):
            RaddGenerationConfig(**{name: "x"})


def test_a_synonym_stands_for_an_argument_that_there_is():
    parameters = inspect.signature(RaddForMaskedLM.generate).parameters
    assert {*SYNONYMS.values()} < {*parameters}
    assert {*SETTINGS} < {*parameters}


def test_a_setting_that_somebody_wrote_on_the_models_config_is_not_passed_over(model):
    model.generation_config.max_length = 5
    assert model.generate().shape == (1, 5)
    model.generation_config.num_beams = 4
    with pytest.raises(ValueError, match="num_beams=4 is not a setting of RADD's generate: there is no beam search"):
        model.generate()


def test_a_saved_setting_that_is_refused_is_named_with_its_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"num_beams": 4}')
    with pytest.raises(ValueError, match=r"generation_config\.json: num_beams=4 is not a setting"):
        RaddForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("number", [np.int64, np.int32, np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(model, number):
    settings = {"length": 7, "steps": 4, "top_k": 9, "num_return_sequences": 2, "seed": 3}
    fractions = {"temperature": 0.5, "top_p": 0.75}  # exact in every type
    fraction = number if number in (np.array, torch.tensor) else np.float32
    ids = model.generate(**settings, **fractions, use_cache=True)
    as_numbers = {name: number(value) for name, value in settings.items()}
    as_numbers |= {name: fraction(value) for name, value in fractions.items()}
    assert torch.equal(ids, model.generate(**as_numbers, use_cache=np.bool_(True)))


@pytest.mark.parametrize(
    "form",
    [
        np.array,
        lambda rows: [np.array(row) for row in rows],
        lambda rows: [torch.tensor(row) for row in rows],
        lambda rows: [[np.int32(token) for token in row] for row in rows],
        lambda rows: [list(torch.tensor(row)) for row in rows],
    ],
)
def test_ids_and_orders_may_be_arrays_or_lists_of_them(model, form):
    rows, order = [[1, M, M], [M, 2, M]], [[2, 1, 0], [0, 1, 2]]
    mask = [[1, 1, 1], [1, 1, 1]]
    ids = model.generate(rows, order=order, method="ordered", seed=3)
    assert torch.equal(
        ids, model.generate(form(rows), order=form(order), attention_mask=form(mask), method="ordered", seed=3)
    )
    ids = model.generate(prefix=[[1, 2]], suffix=[[3, 4]], seed=3)
    assert torch.equal(ids, model.generate(prefix=form([[1, 2]]), suffix=form([[3, 4]]), seed=3))
