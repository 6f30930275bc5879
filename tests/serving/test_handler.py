# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The handler of an endpoint: answers are those of the pipeline, and a bad request is refused before it is computed."""

import configparser
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from radd_hf import RaddForMaskedLM, RaddInfillingPipeline
from radd_hf.hub.convert import REQUIREMENTS, convert, main, write_endpoint
from radd_hf.serving.handler import EndpointHandler, Limits, load_pipeline
from support.launches import WITHOUT_RADD_HF
from support.paths import GOLDEN, ROOT
from support.toys import random_model

LENGTH = 32
TEXT, ENDS = "It is [MASK:5] truth", {"prefix": "It is", "suffix": " truth", "length": 20}

# What the toolkit of the Hub's endpoints does with a folder, in a process that has no radd_hf.
AS_THE_TOOLKIT_DOES = """
import importlib.util, json

folder, data = sys.argv[1:]
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
sys.path.insert(0, folder)
handler = importlib.util.module_from_spec(spec)
sys.modules["handler"] = handler
spec.loader.exec_module(handler)
print(json.dumps(handler.EndpointHandler(folder)(json.loads(data)), allow_nan=False))
assert "radd_hf" not in sys.modules
"""


@pytest.fixture(scope="module")
def fill(tiny_tokenizer) -> RaddInfillingPipeline:
    model = random_model(vocab_size=300, max_position_embeddings=LENGTH)
    return RaddInfillingPipeline(model=model, tokenizer=tiny_tokenizer, device="cpu")


@pytest.fixture
def handler(fill) -> EndpointHandler:
    return EndpointHandler(pipeline=fill)


@pytest.fixture
def saved(tmp_path, fill) -> Path:
    fill.model.save_pretrained(tmp_path / "saved")
    fill.tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def texts_of(outputs) -> list[list[str]]:
    """The texts of the samples of each input; their scores may differ by the rounding of a batch."""
    return [[sample["text"] for sample in samples] for samples in outputs]


# ---------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------


def test_a_text_has_the_samples_of_the_pipeline(handler, fill):
    settings = {"num_return_sequences": 3, "temperature": 0.7, "steps": 4}
    answer = handler({"inputs": TEXT, "parameters": {"seed": 5} | settings})
    assert answer == {"outputs": fill(TEXT, seed=5, **settings), "seed": 5}


def test_texts_of_mixed_lengths_have_the_samples_that_the_pipeline_gives_them_one_by_one(handler, fill):
    inputs = ["[MASK:9] a", TEXT, {"text": "A [MASK:9]"}, ENDS | {"seed": 8}]
    answer = handler({"inputs": inputs, "parameters": {"seed": 5}})
    assert texts_of(answer["outputs"]) == texts_of(fill(inputs, seed=5))
    assert texts_of(answer["outputs"][3:]) == texts_of([fill(ENDS, seed=8)])


def test_without_a_seed_the_answer_names_one_that_gives_the_same_texts(handler):
    answer = handler({"inputs": TEXT})
    assert answer == handler({"inputs": TEXT, "parameters": {"seed": answer["seed"]}})
    assert answer["seed"] != handler({"inputs": TEXT})["seed"]


def test_names_of_other_libraries_mean_what_they_mean_there(handler):
    ours = handler({"inputs": TEXT, "parameters": {"steps": 2, "seed": 1}})
    assert handler({"inputs": TEXT, "parameters": {"num_inference_steps": 2, "do_sample": True, "seed": 1}}) == ours


def test_a_model_of_another_precision_computes_in_float32(saved, fill):
    copy.deepcopy(fill.model).to(torch.bfloat16).save_pretrained(saved)
    assert load_pipeline(str(saved)).model.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "no object": (None, 'must be an object with "inputs"'),
    "no inputs": ({"parameters": {}}, 'must be an object with "inputs"'),
    "a model": ({"inputs": TEXT, "model": "/etc"}, "data has 'model'"),
    "no texts": ({"inputs": []}, "inputs has 0 texts; it must have 1 to 4"),
    "many texts": ({"inputs": [TEXT] * 5}, "inputs has 5 texts; it must have 1 to 4"),
    "a number": ({"inputs": 3}, "inputs=3 must be a text"),
    "nothing": ({"inputs": None}, "inputs=None must be a text"),
    "nothing in a list": ({"inputs": [TEXT, None]}, r"inputs\[1\]=None must be a text"),
    "no blank": ({"inputs": ["[MASK]", "A"]}, r"inputs\[1\]: text='A' has no blank"),
    "a path": ({"inputs": {"text": "[MASK]", "path": "/etc"}}, "inputs has 'path'; it may have text, .*seed"),
    "many tokens": ({"inputs": "[MASK:33]"}, "has 33 tokens; it must have at most 32"),
    "a long end": ({"inputs": {"prefix": "A", "length": 2**40}}, "length=1099511627776 must be an integer"),
    "many characters": ({"inputs": "a" * 600}, "has 600 characters; it must have at most 512"),
    "a list of parameters": ({"inputs": TEXT, "parameters": [1]}, r"parameters=\[1\] must be an object"),
    "an unknown parameter": ({"inputs": TEXT, "parameters": {"temperatures": 1}}, "did you mean temperature"),
    "a list": ({"inputs": TEXT, "parameters": {"order": [0, 1]}}, r"order=\[0, 1\] must be one of forward, backward"),
    "a number as order": ({"inputs": TEXT, "parameters": {"order": 3}}, "order=3 must be one of forward, backward"),
    "a list of numbers": ({"inputs": TEXT, "parameters": {"top_p": [1]}}, r"top_p=\[1\] must be in \(0, 1\]"),
    "a long name": ({"inputs": TEXT, "parameters": {"n" * 9999: 1}}, "^n{36} \\.\\.\\.=1 is not a parameter"),
    "a long name beside inputs": (
        {"inputs": TEXT, "n" * 9999: 1},
        "data has 'n{75} \\.\\.\\.; it may have inputs, parameters",
    ),
    "another library's": (
        {"inputs": TEXT, "parameters": {"min_p": 0.1}},
        "min_p=0.1 is not a parameter of this endpoint;",
    ),
    "a config": ({"inputs": TEXT, "parameters": {"generation_config": "/x"}}, "not a parameter of this endpoint"),
    "a processor": ({"inputs": TEXT, "parameters": {"logits_processor": {"a": 1}}}, "is not a parameter of this"),
    "a length": ({"inputs": TEXT, "parameters": {"length": 9}}, "length=9 is not a parameter of this endpoint"),
    "a temperature": ({"inputs": TEXT, "parameters": {"temperature": -1}}, "temperature=-1 must be"),
    "no number": ({"inputs": TEXT, "parameters": {"top_p": float("nan")}}, "top_p=nan must be"),
    "a seed": ({"inputs": TEXT, "parameters": {"seed": True}}, "seed=True must be"),
    "many samples": ({"inputs": TEXT, "parameters": {"num_return_sequences": 9}}, "=9 must be at most 8 here"),
    "many steps": ({"inputs": TEXT, "parameters": {"steps": 65}}, "steps=65 must be at most 64 here"),
    "tokens": ({"inputs": ["[MASK:32]"] * 3, "parameters": {"num_return_sequences": 8}}, "are 768 tokens"),
    "drafts": (
        {"inputs": "[MASK:32]", "parameters": {"method": "first_hitting", "speculate": 64}},
        "are 2048 tokens; they must have at most 512",
    ),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_refused_before_the_network_is_evaluated(fill, monkeypatch, data, reason):
    handler = EndpointHandler(pipeline=fill, limits=Limits(inputs=4, samples=8, steps=64, tokens=512))
    monkeypatch.setattr(RaddForMaskedLM, "generate", lambda *_, **__: pytest.fail("the network was evaluated"))
    with pytest.raises(ValueError, match=reason) as refused:
        handler(data)
    assert "\n" not in str(refused.value)


def test_settings_that_do_not_fit_together_are_refused_when_a_request_is_read(handler):
    with pytest.raises(ValueError, match="does not fit method='first_hitting'"):
        handler.read({"inputs": TEXT, "parameters": {"method": "first_hitting", "steps": 3}})


def test_the_defaults_of_parameters_are_those_in_effect(fill, monkeypatch):
    monkeypatch.setattr(fill.model.generation_config, "top_p", 0.9)
    assert EndpointHandler(pipeline=fill).parameters["top_p"].default == 0.9
    assert EndpointHandler(pipeline=fill).parameters["temperature"].default == 1.0


# ---------------------------------------------------------------------------------------------------------
# The folder of an endpoint
# ---------------------------------------------------------------------------------------------------------


def test_a_folder_serves_where_this_package_is_not_installed(tmp_path, saved, fill):
    folder = convert(saved, tmp_path / "endpoint", tokenizer=saved, endpoint=True)
    data = {"inputs": [TEXT, ENDS], "parameters": {"seed": 3, "num_return_sequences": 2}}
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_RADD_HF + AS_THE_TOOLKIT_DOES, folder, json.dumps(data)],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout.splitlines()[-1])
    expected = fill(data["inputs"], **data["parameters"])
    assert texts_of(answer["outputs"]) == texts_of(expected)


def test_the_requirements_of_an_endpoint_are_those_of_the_package(tmp_path, saved):
    write_endpoint(saved)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert {*REQUIREMENTS} <= {*setup["options"]["install_requires"].split()}
    assert (saved / "requirements.txt").read_text(encoding="utf-8").split() == [*REQUIREMENTS]


def test_an_endpoint_is_not_written_beside_what_it_cannot_serve(tmp_path, fill, saved):
    with pytest.raises(ValueError, match="endpoint=True needs a tokenizer"):
        convert(GOLDEN / "hub", tmp_path / "new", endpoint=True)
    with pytest.raises(ValueError, match="pass tokenizer=NAME"):
        main([str(GOLDEN / "hub"), str(tmp_path / "new"), "--endpoint"])
    assert not (tmp_path / "new").exists()
    fill.model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"has no tokenizer_config\.json"):
        write_endpoint(tmp_path / "bare")
    (saved / "pipeline_radd.py").write_text("# of another version\n", encoding="utf-8")
    with pytest.raises(ValueError, match="carries the code of another version"):
        write_endpoint(saved)
