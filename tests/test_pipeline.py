# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Text with blanks: where its masks stand, and the pipeline that a checkpoint brings along to fill them."""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, pipeline

from radd_hf import RaddForMaskedLM
from radd_hf.canvas_radd import encode_blanks, encode_with_spans
from radd_hf.data.documents import load_documents
from radd_hf.generation_radd import LENGTHS
from radd_hf.hub.convert import convert
from radd_hf.likelihood import exact_likelihood
from radd_hf.pipeline_radd import CUSTOM_PIPELINES, RaddInfillingPipeline
from support.paths import CHECKPOINT, ROOT
from support.toys import seeded

MASK = 4095
TEXTS = [
    "It was a [MASK:9] of spring.",
    "She [MASK:2] him, and [MASK:3] at last.",
    "[MASK:14]",
    "Anne [MASK].",
    "Captain Wentworth, who had [MASK:5] since the year six, was now [MASK:4]; and [MASK] too.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """By the code in a copy of the shipped checkpoint."""
    folder = shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("pipeline") / "radd")
    return pipeline("radd-infilling", model=str(folder), trust_remote_code=True, dtype=torch.float32, device="cpu")


def assert_same(one: list, other: list) -> None:
    """Results of two calls: equal words, scores up to rounding."""
    assert [[sample["text"] for sample in samples] for samples in one] == [[s["text"] for s in each] for each in other]
    scores = [torch.tensor([sample["score"] for samples in each for sample in samples]) for each in (one, other)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------
# Blanks


def test_words_of_a_text_made_a_blank_are_masked_and_the_rest_keeps_its_tokens(tokenizer):
    text = load_documents("austen", "validation")[0]["text"][2000:4000]
    ids = tokenizer(text)["input_ids"]
    begins = [place for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)) if token.startswith("Ġ")]
    for start, stop in zip(begins, begins[3:], strict=False):
        before, after = tokenizer.decode(ids[:start]), tokenizer.decode(ids[stop:])
        blanked = f"{before} [MASK:{stop - start}]{after}"
        assert encode_blanks(blanked, tokenizer, MASK) == [*ids[:start], *[MASK] * (stop - start), *ids[stop:]]
    assert len(begins) > 100


def test_blanks_may_touch_begin_end_and_be_the_tokenizers_own_mask(tokenizer):
    def spans(text):
        return encode_with_spans(text, tokenizer, MASK)[1]

    assert spans("[MASK:2][MASK] [MASK:3]") == [(0, 2), (2, 3), (3, 6)]
    assert encode_blanks("[MASK:2][MASK] [MASK:3]", tokenizer, MASK) == [MASK] * 6
    assert encode_blanks("It <|mask|> on", tokenizer, MASK) == encode_blanks("It [MASK] on", tokenizer, MASK)
    assert spans("no blank") == spans("") == []
    assert encode_blanks("a ", tokenizer, MASK) == tokenizer("a ")["input_ids"]


@pytest.mark.parametrize(
    "blank", ["[MASK:0]", "[MASK:]", "[MASK:-1]", "[MASK: 3]", "[MASK:3", "[mask:3]", "[MASK3]", "[MASK:99999999999]"]
)
def test_a_malformed_blank_is_refused_with_its_place(tokenizer, blank):
    with pytest.raises(ValueError, match=r"at character 7; a blank is written \[MASK\] for one token or \[MASK:n\]"):
        encode_blanks(f"It was {blank}", tokenizer, MASK)


# ---------------------------------------------------------------------------------------------------------
# The pipeline


def test_a_checkpoint_brings_its_pipeline_along(pipe):
    assert type(pipe).__module__.startswith("transformers_modules.")
    assert repr(pipe).startswith("RaddInfillingPipeline")


def test_a_filled_text_is_the_text_with_its_fills(pipe):
    for text, samples in zip(TEXTS, pipe(TEXTS, seed=0, num_return_sequences=2), strict=True):
        assert len(samples) == 2
        for sample in samples:
            pieces = [piece.removesuffix(" ") for piece in text.replace("[MASK]", "[MASK:1]").split("[MASK:")]
            sizes = [int(piece.split("]")[0]) for piece in pieces[1:]]
            rebuilt = pieces[0]
            for fill, piece in zip(sample["fills"], pieces[1:], strict=True):
                rebuilt += fill + piece.split("]", 1)[1]
            assert sample["text"] == rebuilt
            assert sample["score"] == pytest.approx(sum(sample["fill_scores"]))
            assert 1 <= sample["num_function_evaluations"] <= sum(sizes)
    assert pipe(TEXTS[0], seed=0) == pipe([TEXTS[0]], seed=0)[0]


def test_the_score_of_an_ordered_filling_is_its_exact_log_likelihood(pipe, tokenizer):
    ids, spans = encode_with_spans(TEXTS[1], tokenizer, MASK)
    (sample,) = pipe(TEXTS[1], method="ordered", seed=5)
    scored = torch.tensor(ids) == MASK
    fills = [token for fill in sample["fills"] for token in tokenizer(fill)["input_ids"]]
    filled = torch.tensor(ids).masked_scatter(scored, torch.tensor(fills))
    assert tokenizer.decode(filled) == sample["text"]
    nll = exact_likelihood(pipe.model, [filled], "forward", scored=[scored])
    assert sample["score"] == pytest.approx(-nll.item(), abs=1e-3)
    assert [stop - start for start, stop in spans] == [2, 3]
    assert len(sample["fill_scores"]) == 2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "euler", "steps": 3, "top_p": 0.9},
        {"method": "first_hitting"},
        {"method": "ordered", "order": "random"},
    ],
    ids=lambda settings: settings.get("method", "default"),
)
def test_a_sample_does_not_depend_on_its_batch(pipe, monkeypatch, settings, side):
    monkeypatch.setattr(pipe.tokenizer, "padding_side", side)
    alone = pipe(TEXTS, seed=0, num_return_sequences=2, **settings)
    assert_same(pipe(TEXTS, seed=0, num_return_sequences=2, batch_size=3, **settings), alone)
    assert_same(pipe(TEXTS[:2], seed=0, num_return_sequences=2, **settings), alone[:2])
    assert_same([samples[:1] for samples in alone], pipe(TEXTS, seed=0, **settings))


def test_texts_may_be_streamed(pipe):
    streamed = pipe((text for text in TEXTS), seed=0, batch_size=2)
    assert not isinstance(streamed, list)
    assert_same(list(streamed), pipe(TEXTS, seed=0))
    assert pipe([]) == []


def test_randomness_is_an_argument(pipe):
    text = "[MASK:14]"
    generator = seeded(5)
    first, second = (pipe(text, generator=generator)[0]["text"] for _ in range(2))
    assert first == pipe(text, generator=seeded(5))[0]["text"]
    assert pipe(text, seed=5) == pipe(text, seed=5)
    assert len({first, second, *(sample["text"] for samples in pipe([text] * 2, seed=0) for sample in samples)}) == 4
    torch.manual_seed(5)
    assert pipe(text)[0]["text"] == first


def test_settings_may_be_given_once_for_all_calls(pipe):
    greedy = RaddInfillingPipeline(pipe.model, pipe.tokenizer, method="ordered", temperature=0, batch_size=2)
    assert len({greedy(TEXTS[0])[0]["text"] for _ in range(3)}) == 1
    assert greedy(TEXTS[0], temperature=1.0, seed=1) == pipe(TEXTS[0], method="ordered", seed=1)
    config = {"method": "ordered", "temperature": 0, "num_return_sequences": 2}
    assert [sample["text"] for sample in pipe(TEXTS[0], generation_config=config)] == [greedy(TEXTS[0])[0]["text"]] * 2


def test_every_setting_of_generate_that_says_how_to_draw_is_taken(pipe):
    parameters = set(inspect.signature(RaddForMaskedLM.generate).parameters)
    canvas = {"self", "input_ids", "prefix", "suffix", "attention_mask", "tokenizer", "streamer", "others"}
    canvas |= {"seed", "generator", "eos_token_id", "pad_token_id", *LENGTHS}
    assert parameters - canvas - set(RaddInfillingPipeline.FIXED) == RaddInfillingPipeline.SETTINGS


def test_habits_of_transformers_are_taken(pipe):
    plain = pipe(TEXTS[0], steps=3, seed=5)
    assert pipe(TEXTS[0], num_inference_steps=3, do_sample=True, num_beams=1, seed=np.int64(5)) == plain
    assert (
        pipe(TEXTS[0], generation_config=GenerationConfig(do_sample=True, max_new_tokens=9), steps=3, seed=5) == plain
    )


def test_what_cannot_be_is_refused_by_name(pipe):
    for texts, settings, message in (
        ("no blank", {}, "text='no blank' has no blank; write"),
        ([TEXTS[0], 3], {}, "text=3 must be a string"),
        (TEXTS[0], {"max_new_tokens": 3}, "max_new_tokens=3 is not a setting of this pipeline: each blank says"),
        (TEXTS[0], {"max_length": 3}, "max_length=3 is not a setting of this pipeline: each blank says"),
        (TEXTS[0], {"num_beams": 3}, "num_beams=3 is not a setting of this pipeline: there is no beam search"),
        (TEXTS[0], {"temperatures": 3}, "temperatures=3 is not a setting of this pipeline; did you mean temperature"),
        (TEXTS[0], {"seed": 1, "generator": seeded(1)}, "seed=1 and generator both"),
        (TEXTS[0], {"seed": "x"}, "seed='x' must be an integer"),
        (TEXTS[0], {"generator": [seeded(1)]}, "must be one torch.Generator"),
        (TEXTS[0], {"top_p": 2.0}, r"top_p=2\.0 must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(texts, **settings)
    with pytest.raises(ValueError, match="tokenizer=None: the pipeline reads and writes text"):
        RaddInfillingPipeline(pipe.model)


# ---------------------------------------------------------------------------------------------------------
# How it travels


def test_the_package_needs_no_foreign_code(pipe, tokenizer):
    model = RaddForMaskedLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    ours = pipeline("radd-infilling", model=model, tokenizer=tokenizer, device="cpu")
    assert type(ours) is RaddInfillingPipeline
    assert_same(ours(TEXTS, seed=0), pipe(TEXTS, seed=0))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("radd-infilling", model=str(CHECKPOINT), trust_remote_code=False)


def test_whatever_saves_a_model_saves_its_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    pipe.model.save_pretrained(tmp_path / "model")
    RaddForMaskedLM.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "package")
    convert(tmp_path / "package", tmp_path / "converted")
    for folder in (*tmp_path.iterdir(), CHECKPOINT):
        assert (folder / "pipeline_radd.py").read_text() == (ROOT / "radd_hf" / "pipeline_radd.py").read_text(), folder
        assert json.loads((folder / "config.json").read_text())["custom_pipelines"] == CUSTOM_PIPELINES
    again = pipeline("radd-infilling", model=str(tmp_path / "pipeline"), trust_remote_code=True, device="cpu")
    assert_same(again(TEXTS[:2], seed=0), pipe(TEXTS[:2], seed=0))
