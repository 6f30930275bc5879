# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""No text that comes to a model card from outside becomes its Markdown, HTML or YAML."""

import html
import json
import re

import pytest
import yaml
from markdown_it import MarkdownIt

from radd_hf.endings import visible
from radd_hf.hub.convert import convert, to_original
from radd_hf.hub.facts import CARD_ROW
from radd_hf.hub.model_card import RECIPE, Origin, model_card, with_results
from support.hostile import FOR_CARDS
from support.paths import CHECKPOINT
from support.toys import random_model

EVALUATION = json.loads((CHECKPOINT / "evaluation.json").read_text())
NAMES = ("dataset", "split", "protocol", "length", "estimator", "passes", "seed", "weights", "ids")
each_hostile = pytest.mark.parametrize("text", FOR_CARDS.values(), ids=FOR_CARDS)


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=11, max_position_embeddings=8)


def full_card(model, text: str) -> str:
    origin = Origin(text, False, text, revision=text, weights=text)
    card = model_card(model, origin, with_tokenizer=True, license="mit", repository="me/mine")
    evaluation = EVALUATION | dict.fromkeys(NAMES, text)
    return with_results(card, recipe=dict.fromkeys(RECIPE, text), evaluation=evaluation, repository="me/mine")


def structure(card: str) -> list[str]:
    """The elements of the page, without text and whether a name stands as code."""
    blocks = MarkdownIt().enable(["table", "strikethrough"]).parse(card.split("\n---\n", 1)[1])
    kinds = [token.type for block in blocks for token in (block, *(block.children or []))]
    return [kind for kind in kinds if kind not in ("text", "text_special", "code_inline")]


@each_hostile
def test_a_text_changes_nothing_of_a_card_but_its_words(model, text):
    card = full_card(model, text)
    assert all(line.isprintable() for line in card.split("\n"))
    assert structure(card) == structure(full_card(model, "plain"))
    page = html.unescape(MarkdownIt().enable("table").render(card.split("\n---\n", 1)[1]))
    assert page.count(visible(text).strip()) >= 4 + len(RECIPE) + len(NAMES) - 1
    assert {html.unescape(row[2]) for row in CARD_ROW.finditer(card)} == {
        visible(text),
        f"{visible(text)}, {visible(text)}",
    }


@each_hostile
def test_the_metadata_of_a_card_hold_a_text_as_one_value(model, text):
    front = yaml.safe_load(full_card(model, text).split("---\n")[1])
    plain = yaml.safe_load(full_card(model, "plain").split("---\n")[1])
    assert front.keys() == plain.keys()
    dataset = front["model-index"][0]["results"][0]["dataset"]
    assert dataset == dict.fromkeys(("name", "type", "split"), visible(text))
    assert front["license"] == "mit"


@pytest.mark.parametrize("license", ["mit", "apache-2.0", "cc-by-nc-4.0", "GPL-2.0+", "llama3.1", "other"])
def test_an_identifier_of_a_license_is_named_where_the_hub_and_a_reader_look(model, license):
    card = model_card(model, Origin("mine", False, "x"), with_tokenizer=False, license=license)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == license
    assert f"The weights are under {license}." in card


@pytest.mark.parametrize(
    "text", [*FOR_CARDS.values(), "mit\nfoo: bar", "mit\n", "]", "{", "", " mit", "-", "é", "m" * 99]
)
def test_what_cannot_be_a_license_or_a_repository_is_refused_before_anything_is_read(model, text, tmp_path):
    origin, target = Origin("mine", False, "x"), tmp_path / "target"
    calls = {
        "license": [
            lambda: convert("/none/here", target, license=text),
            lambda: model_card(model, origin, with_tokenizer=False, license=text),
        ],
        "push_to_hub": [
            lambda: convert("/none/here", target, push_to_hub=text),
            lambda: to_original("/none/here", target, push_to_hub=text),
        ],
        "repository": [
            lambda: model_card(model, origin, with_tokenizer=False, repository=text),
            lambda: with_results("", repository=text),
        ],
        "origin.name": [lambda: model_card(model, Origin(text, True, "x"), with_tokenizer=False)],
    }
    for argument, refused in calls.items():
        for call in refused:
            with pytest.raises(ValueError, match=re.escape(f"{argument}={text!r} must be the ")):
                call()
    assert not target.exists()


def test_a_figure_beyond_the_largest_number_has_no_row(model):
    card = model_card(model, Origin("mine", False, "x"), with_tokenizer=False)
    null = {"perplexity": None, "perplexity_error": None, "perplexity_interval": [None, None]}
    for figures in (null, {"perplexity_error": None}, {"perplexity_interval": [3.0, None]}):
        shown = with_results(card, evaluation=EVALUATION | figures)
        assert "| perplexity |" not in shown
        assert "| bits per byte | 1.7708 |" in shown
        results = yaml.safe_load(shown.split("---\n")[1])["model-index"][0]["results"]
        metrics = [metric["type"] for result in results for metric in result["metrics"]]
        assert metrics == (["bits_per_byte"] if figures is null else ["bits_per_byte", "perplexity"])


@pytest.mark.parametrize(
    "figures", [{"perplexity": "1 | 2"}, {"n_tokens": "<b>"}, {"interval": 3}, {"interval": [1.0]}]
)
def test_figures_that_are_no_numbers_are_refused(model, figures):
    card = model_card(model, Origin("mine", False, "x"), with_tokenizer=False)
    with pytest.raises(ValueError, match=r"evaluation must be what eval_ppl\.py writes with --output: "):
        with_results(card, evaluation=EVALUATION | figures)
