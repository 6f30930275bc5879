# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Text with blanks: where its masks stand, and the pipeline that a checkpoint brings along to fill them."""

import inspect
import json
import random
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, pipeline

from radd_hf import RaddConfig, RaddForMaskedLM, text_radd
from radd_hf.canvas_radd import make_canvas
from radd_hf.data.documents import encode, load_documents, train_tokenizer
from radd_hf.hub.convert import convert
from radd_hf.likelihood import exact_likelihood
from radd_hf.pipeline_radd import CUSTOM_PIPELINES, RaddInfillingPipeline
from radd_hf.settings_radd import LENGTHS
from radd_hf.text_radd import (
    decode_span,
    encode_after_text,
    encode_blanks,
    encode_text,
    encode_with_blanks,
    split_at_blanks,
)
from support.paths import CHECKPOINT, ROOT
from support.tokenizer_kinds import KINDS, WORDS
from support.toys import seeded, tiny_model

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
        return encode_with_blanks(text, tokenizer, MASK).spans

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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[MASK:65536]" * 4000,
            "has blanks of 131072 tokens up to character 24; all blanks of a text must have at most",
        ),
        ("[MASK]" * (2**16 + 1), "has blanks of 65537 tokens"),
        ("a" * (2**20 + 1), "has 1048577 characters; it must have at most 1048576"),
        ("[MASK:99999999999999999999]", "at character 0; a blank is written"),
    ],
)
def test_a_text_that_would_fill_the_memory_is_refused_before_anything_is_made_of_it(text, message):
    class Tokenizer:  # which encodes nothing
        mask_token, mask_token_id = "<|mask|>", MASK

    with pytest.raises(ValueError, match=message):
        encode_blanks(text, Tokenizer(), MASK)


def test_a_prefix_that_would_fill_the_memory_is_refused_by_name(tokenizer):
    with pytest.raises(ValueError, match=r"prefix=.* has 1048577 characters"):
        tiny_model(vocab_size=MASK + 1).generate(prefix="a" * (2**20 + 1), tokenizer=tokenizer, length=8)


def test_a_long_run_of_backslashes_and_many_escapes_are_read_once():
    pieces, sizes = split_at_blanks("\\" * 2**19 + "[MASK]", None)
    assert (list(map(len, pieces)), sizes) == ([2**18, 0], [1])
    pieces, sizes = split_at_blanks("\\[MASK]" * 2**15, None)
    assert (pieces, sizes) == (["[MASK]" * 2**15], [])


def test_a_backslash_makes_a_blank_text_and_two_are_one_before_a_blank(tokenizer):
    def read(text):
        return tokenizer.decode(encode_blanks(text, tokenizer, MASK))

    assert read(r"\[Mask of Zorro]") == "[Mask of Zorro]"
    assert read(r"a \[MASK:3] b") == "a [MASK:3] b"
    assert read(r"\<|mask|> and [MASK]") == "<|mask|> and<|mask|>"
    assert read(r"\\[MASK:2]") == "\\<|mask|><|mask|>"
    assert read(r"\\\[MASK]") == r"\[MASK]"
    assert read(r"C:\new \[x] \\ \ [MASK]") == "C:\\new \\[x] \\\\ \\<|mask|>"
    with pytest.raises(ValueError, match=r"at character 2; .* and \\\[ is a bracket that is text"):
        read(r"\\[Mask of Zorro]")


# ---------------------------------------------------------------------------------------------------------
# Text is text, by tokenizers of every kind


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]()


def decode(ids, tokenizer) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def is_word_piece(tokenizer) -> bool:
    return any(token.startswith("##") for token in tokenizer.get_vocab())


def test_pieces_around_blanks_read_as_the_text_without_its_blanks(kind):
    draw, refused = random.Random(0), 0
    for _ in range(60):
        text = " ".join(draw.choices(WORDS, k=8)).replace(" ,", ",").replace(" .", ".")
        cuts = sorted(draw.sample(range(1, len(text) + 1), k=draw.randint(1, 3)))
        pieces = [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
        try:
            ids, spans, _ = encode_with_blanks("[MASK:2]".join(pieces), kind, kind.mask_token_id)
        except ValueError:  # in the middle of a word, where the vocabulary has no piece that fits
            refused += 1
            continue
        assert [end - begin for begin, end in spans] == [2] * len(cuts)
        whole = "".join(piece.removesuffix(" ") for piece in pieces[:-1]) + pieces[-1]
        read = decode([token for token in ids if token != kind.mask_token_id], kind)
        expected = decode(kind(whole)["input_ids"], kind)
        if is_word_piece(kind):  # a letter after a comma begins a word, and after a blank it need not
            read, expected = read.replace(" ", ""), expected.replace(" ", "")
        assert read == expected
    assert refused <= (40 if is_word_piece(kind) else 0)


@pytest.mark.parametrize(
    "text",
    ["un[MASK]able", "Emma [MASK:2], and", "It was [MASK] of spring.", "[MASK:2]able and un[MASK]", "[MASK], on"],
)
def test_a_text_is_its_pieces_and_what_each_blank_adds(kind, text):
    ids, spans, _ = encode_with_blanks(text, kind, kind.mask_token_id)
    fills = kind("fine")["input_ids"][-1], encode_after_text(["able"], kind)[0][-1]
    filled = [fills[place % 2] if token == kind.mask_token_id else token for place, token in enumerate(ids)]
    pieces = re.split(r" ?\[MASK(?::2)?\]", text)
    if is_word_piece(kind):
        pieces = [piece.lower() for piece in pieces]
    added = [decode_span(filled, *span, kind) for span in spans]
    rebuilt = pieces[0] + "".join(fill + piece for fill, piece in zip(added, pieces[1:], strict=True))
    assert decode(filled, kind).removeprefix(" ") == rebuilt.removeprefix(" ")


def test_the_given_text_stands_in_the_filled_one_as_it_was_given(kind):
    given = encode_with_blanks("  Emma's [MASK:2] and EMMA[MASK]", kind, kind.mask_token_id)
    filled = [kind("fine")["input_ids"][-1] if token == kind.mask_token_id else token for token in given.ids]
    fills = given.fills(filled, kind)
    assert given.filled(fills) == f"  Emma's{fills[0]} and EMMA{fills[1]}"


def test_text_that_a_tokenizer_does_not_know_is_said(caplog, monkeypatch):
    monkeypatch.setattr(text_radd, "REPORTED", set())
    kind = KINDS["WordPiece"]()
    with caplog.at_level("WARNING", logger="radd_hf.text_radd"):
        for _ in range(2):
            given = encode_with_blanks("Emma \u0436 [MASK]", kind, kind.mask_token_id)
    (record,) = caplog.records
    assert "has text that the tokenizer does not know and replaces by 1 <unk>" in record.message
    assert given.filled([" fine"]) == "Emma \u0436 fine"


def test_a_prefix_and_a_suffix_are_read_like_the_text_around_a_blank(kind):
    config = RaddConfig(vocab_size=len(kind), mask_token_id=kind.mask_token_id)
    for before, after in (("un", "able"), ("Emma", ", and"), ("It was", " of spring."), ("", "able")):
        expected = encode_blanks(f"{before}[MASK:3]{after}", kind, kind.mask_token_id)
        canvas, _ = make_canvas(config, prefix=before, suffix=after, length=len(expected), tokenizer=kind)
        assert canvas.tolist() == [expected]


def test_a_text_that_cannot_continue_another_is_refused_by_name():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "un": 2, "able": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert encode_blanks("un [MASK] able", tokenizer, 4) == [2, 4, 3]
    with pytest.raises(ValueError, match=r"text='able' cannot stand directly after other text: .* reads 'a able'"):
        encode_blanks("un[MASK]able", tokenizer, 4)


def test_what_spells_a_special_token_is_encoded_as_its_characters_or_refused(kind):
    special = {kind.eos_token_id, kind.mask_token_id, kind.unk_token_id}
    for literal in ("</s>", "<mask>"):
        text = f"Emma {literal} was un{literal}able"
        if special & {*kind(text, split_special_tokens=True)["input_ids"]}:  # as a Unigram model has them for pieces
            with pytest.raises(ValueError, match=f"text='{text}' spells the special token '{literal}' at character 5"):
                encode_text([text], kind)
            continue
        (ids,) = encode_text([text], kind)
        assert not special & {*ids}
        assert decode(ids, kind).replace(" ", "").lower() == text.replace(" ", "").lower()


def test_given_text_is_never_filled(tokenizer, pipe):
    text = "See the <|mask|> here<|endoftext|>"
    (ids,) = make_canvas(pipe.model.config, prefix=text, length=40, tokenizer=tokenizer)[0]
    assert tokenizer.decode(ids[ids != MASK]) == text
    (sample,) = pipe(r"A<|endoftext|>B \<|mask|> [MASK:2]", seed=0)
    assert sample["text"] == "A<|endoftext|>B <|mask|>" + sample["fills"][0]


def test_the_spelling_of_a_special_token_is_reported_once(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(text_radd, "REPORTED", set())
    with caplog.at_level("WARNING", logger="radd_hf.text_radd"):
        for _ in range(2):
            encode_text(["no such thing", "an <|endoftext|><|mask|>"], tokenizer, "document")
    (record,) = caplog.records
    places = "'<|endoftext|>' at character 3, '<|mask|>' at character 16"
    assert f"document='an <|endoftext|><|mask|>' spells {places}. These characters are read as plain" in record.message


def test_a_lone_surrogate_is_named_wherever_text_enters(tokenizer, pipe):
    config, text = pipe.model.config, "It was \ud800 of"
    for enter in (
        lambda: encode_text([text], tokenizer),
        lambda: encode_blanks(text + " [MASK]", tokenizer, MASK),
        lambda: make_canvas(config, prefix=text, length=40, tokenizer=tokenizer),
        lambda: make_canvas(config, suffix=text, length=40, tokenizer=tokenizer),
        lambda: make_canvas(config, input_ids=text, tokenizer=tokenizer),
        lambda: pipe(text + " [MASK]"),
        lambda: encode([text], tokenizer),
        lambda: train_tokenizer([text], 300),
    ):
        with pytest.raises(ValueError, match=r"='It was \\ud800 of.*' has the lone surrogate '\\ud800' at character 7"):
            enter()


def test_the_text_of_input_ids_is_a_text_with_blanks(tokenizer, pipe):
    (ids,) = make_canvas(pipe.model.config, input_ids=TEXTS[0], tokenizer=tokenizer)[0]
    assert ids.tolist() == encode_blanks(TEXTS[0], tokenizer, MASK)


def test_transformers_own_pipeline_fills_a_mask_with_a_word_and_its_space(tokenizer, pipe):
    assert encode_blanks("It was a [MASK] day", tokenizer, MASK) == tokenizer("It was a <|mask|> day")["input_ids"]
    answers = pipeline("fill-mask", model=pipe.model, tokenizer=tokenizer)("It was a <|mask|> day")
    assert all(answer["token_str"].startswith(" ") for answer in answers)
    assert {" very", " fine"} <= {answer["token_str"] for answer in answers}


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
    ids, spans, _ = encode_with_blanks(TEXTS[1], tokenizer, MASK)
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
        {"method": "ordered", "order": "margin"},
        {"method": "ordered", "confidence_threshold": 0.02},
    ],
    ids=lambda settings: settings.get("order", settings.get("method", "default")),
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
    assert greedy(TEXTS[0], temperature=1.0, seed=1) == pipe(TEXTS[0], method="ordered", temperature=1.0, seed=1)
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
        ("no blank", {}, "text='no blank' has no blank: write"),
        ([TEXTS[0], 3], {}, "text=3 must be a text with blanks, or a mapping"),
        (None, {}, "inputs=None must be a text with blanks, or a list"),
        ({"texts": TEXTS[0]}, {}, "text has 'texts'; a request has some of"),
        ({"text": TEXTS[0], "length": 24}, {}, "text is the whole text: leave out length, or text"),
        ({"text": 3}, {}, "text=3 must be a string"),
        ({}, {}, "text is missing: pass a text with blanks, or some of"),
        ({"prefix": "It", "length": 9, "max_new_tokens": 8}, {}, "length=9 and max_new_tokens=8: pass one"),
        ({"prefix": "It", "length": 0}, {}, "length=0 must be an integer in 1"),
        ({"prefix": "It was cold.", "length": 2}, {}, "leave nothing to generate in length=2"),
        ({"text": TEXTS[0], "seed": -1}, {}, "seed=-1 must be an integer"),
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


def test_a_dictionary_has_a_prefix_a_suffix_and_a_length_as_generate_takes_them(pipe, tokenizer):
    ends = {"prefix": "It was a very", "suffix": " of spring."}
    (sample,) = pipe({**ends, "length": 24}, seed=3)
    ids = pipe.model.generate(**ends, length=24, tokenizer=tokenizer, seed=3)
    assert sample["text"] == tokenizer.decode(ids[0])
    assert len(sample["fills"]) == 1
    (longer,) = pipe({"prefix": "It was a very", "max_new_tokens": 5, "suffix": None}, seed=3)
    assert longer["text"].startswith("It was a very")
    assert pipe({"text": TEXTS[0]}, seed=3) == pipe(TEXTS[0], seed=3)


def test_a_request_with_a_seed_of_its_own_has_the_samples_that_it_has_alone(pipe):
    alone = pipe(TEXTS[0], seed=7, num_return_sequences=2)
    _, among, _ = pipe([TEXTS[1], {"text": TEXTS[0], "seed": 7}, TEXTS[2]], seed=0, num_return_sequences=2)
    without = pipe([TEXTS[1], {"text": TEXTS[0], "seed": 7}], num_return_sequences=2)[1]
    assert_same([alone, alone], [among, without])


def test_rows_of_one_length_are_filled_together_as_in_calls_of_their_own(pipe):
    texts = ["It was [MASK:9] of spring.", {"text": "[MASK:9] it was of spring."}]
    rows = [pipe.encode({"text": text, "seed": 5} if isinstance(text, str) else {**text, "seed": 6}) for text in texts]
    rows = [row for row in rows if row["input_ids"].shape == rows[0]["input_ids"].shape]
    assert len(rows) == 2
    together = pipe.fill(rows, steps=4, num_return_sequences=2)
    alone = [pipe(text, seed=seed, steps=4, num_return_sequences=2) for text, seed in zip(texts, (5, 6), strict=True)]
    assert_same(together, alone)
    with pytest.raises(ValueError, match=r"rows have lengths \[8, 14\]; rows .* must have one length"):
        pipe.fill([pipe.encode("[MASK:8]", 1), pipe.encode("[MASK:14]", 1)])
    with pytest.raises(ValueError, match="seed_of_text=None: pass a seed"):
        pipe.encode("[MASK:8]")


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


@pytest.mark.parametrize("tokenizer", ["gpt2", object()])
def test_what_is_no_tokenizer_is_refused_by_name(tokenizer):
    with pytest.raises(TypeError, match=r"tokenizer=.* must be a tokenizer of transformers, loaded"):
        RaddInfillingPipeline(model=tiny_model(), tokenizer=tokenizer)


def test_a_tokenizer_without_an_unknown_token_reads_what_it_knows_and_names_what_it_does_not():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<mask>": 2}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, mask_token="<mask>")
    assert encode_after_text([" b"], tokenizer) == [[1]]
    with pytest.raises(ValueError, match=r"text='b' cannot stand directly after other text: begin it with a space"):
        encode_after_text(["b"], tokenizer)
    with pytest.raises(ValueError, match="text='c' has text that the tokenizer cannot encode: WordLevel error"):
        encode_text(["c"], tokenizer)
