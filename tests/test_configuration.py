"""A configuration is validated, and reads the authors' nested form."""

import json

import pytest

from radd_hf import RaddConfig, RaddForMaskedLM
from support.paths import CHECKPOINT


def rope(kind: str, **parameters) -> dict:
    return {"rope_parameters": {"rope_type": kind} | parameters}


def test_the_defaults_are_the_small_model():
    config = RaddConfig()
    assert (config.vocab_size, config.mask_token_id, config.intermediate_size) == (50258, 50257, 3072)
    assert config.rope_parameters["rope_theta"] == 10000.0


def test_the_authors_nested_configuration_is_understood(golden):
    config = RaddConfig.from_pretrained(golden / "hub")
    nested = json.loads((golden / "hub" / "config.json").read_text())
    assert config.vocab_size == nested["tokens"] + 1 == config.mask_token_id + 1
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)
    assert (config.max_position_embeddings, config.noise_type, config.hidden_dropout) == (32, "loglinear", 0.02)


def test_a_configuration_survives_saving(tmp_path):
    config = RaddConfig(vocab_size=11, mask_token_id=3, noise_type="geometric", sigma_max=5, embedding_std=0.5)
    config.save_pretrained(tmp_path)
    assert RaddConfig.from_pretrained(tmp_path).to_dict() | {"dtype": None} == config.to_dict() | {"dtype": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 770}, "hidden_size=770 over num_attention_heads=12"),
        ({"hidden_size": 36, "num_attention_heads": 12}, "even whole width"),
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0 must be at least 1"),
        ({"mask_token_id": 50258}, "mask_token_id=50258 must lie in"),
        ({"mask_token_id": -1}, "mask_token_id=-1 must lie in"),
        ({"hidden_dropout": 1.0}, "hidden_dropout=1.0 must lie in"),
        ({"noise_type": "cosine"}, "noise_type='cosine' must be one of"),
        ({"noise_eps": 0.0}, "noise_eps=0.0 must lie in"),
        ({"sigma_min": 30.0}, "sigma_min=30.0 and sigma_max=20.0"),
        ({"embedding_std": 0}, "embedding_std=0 must be positive"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True is not RADD"),
        (
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor=0.5 of rope_parameters must be 1 for rope_type='default'",
        ),
        (rope("nonsense"), r"rope_type='nonsense' of rope_parameters must be one of \('default', 'linear'"),
        (rope("linear"), "factor=None of rope_parameters must be a positive number for rope_type='linear'"),
        (rope("linear", factor="2"), "factor='2' of rope_parameters"),
        (rope("linear", factor=-2), "factor=-2 of rope_parameters"),
        (rope("default", rope_theta=0), "rope_theta=0 of rope_parameters must be a positive number"),
        (rope("dynamic", factor=2.0, partial_rotary_factor=0.5), "partial_rotary_factor=0.5 .* rope_type='dynamic'"),
        (rope("dynamic", factor=2.0) | {"hidden_size": 24}, "rope_type='dynamic' .* needs heads of width 4 or more"),
        (rope("proportional", partial_rotary_factor=2.0), "partial_rotary_factor=2.0"),
        (rope("yarn", factor=2.0, beta_fast="x"), "beta_fast='x' of rope_parameters"),
        (rope("llama3", factor=2.0, low_freq_factor=4, high_freq_factor=4), "low_freq_factor=4 .* less than high_freq"),
        (rope("llama3", factor=2.0, low_freq_factor=1), "high_freq_factor=None"),
        (rope("longrope", short_factor=[1.0] * 32, long_factor=[1.0]), "long_factor=.* a list of 32 positive numbers"),
        (rope("longrope", short_factor=2.0, long_factor=[1.0] * 32), "short_factor=2.0 .* must be a list"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        RaddConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [(rope("nonsense"), "rope_type='nonsense'"), ({"hidden_dropout": 5.0}, "hidden_dropout=5.0")],
)
def test_values_that_are_set_while_loading_are_validated_too(settings, message):
    with pytest.raises(ValueError, match=message):
        RaddForMaskedLM.from_pretrained(CHECKPOINT, **settings)


def test_a_rope_that_is_set_while_loading_keeps_its_base():
    model = RaddForMaskedLM.from_pretrained(CHECKPOINT, **rope("linear", factor=2.0))
    assert model.config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def test_another_network_of_the_authors_framework_is_refused():
    nested = {"model": {"type": "ddit", "hidden_size": 64}, "tokens": 96}
    with pytest.raises(ValueError, match=r"model\.type='ddit'"):
        RaddConfig.from_dict(nested)
