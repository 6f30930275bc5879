# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What `generate` returns shows itself in a notebook, and a streamer shows a text there while it is generated."""

import copy
import pickle
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import TextDiffusionStreamer

from radd_hf.display_radd import FRAGMENT, GREY_BAR, MOST_TEXTS, RETURN, STYLE, Denoising, to_fragment
from radd_hf.state_radd import RaddGenerateOutput
from support.pages import Page
from support.toys import random_model

LENGTH = 24


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=300, max_position_embeddings=LENGTH)


def write(model, **settings) -> RaddGenerateOutput:
    """Two texts, of which the first four tokens were given, unless the settings say otherwise."""
    asked = {"prefix": [40, 41, 42, 43], "steps": 16, "num_return_sequences": 2, "seed": 0} | settings
    return model.generate(return_dict_in_generate=True, **asked)


# ---------------------------------------------------------------------------------------------------------
# An output
# ---------------------------------------------------------------------------------------------------------


def test_an_output_prints_its_shapes_in_a_line(model):
    output = write(model, output_history=True)
    nfe = output.num_function_evaluations.tolist()
    assert repr(output) == (
        f"RaddGenerateOutput(sequences=(2, {LENGTH}), num_function_evaluations={nfe}, num_sequences_evaluated={nfe}, "
        f"reveal_step=(2, {LENGTH}), token_logprobs=(2, {LENGTH}), history={len(output.history)} x (2, {LENGTH}))"
    )
    assert len(repr(write(model, num_return_sequences=100))) < 300
    assert repr(RaddGenerateOutput()) == "RaddGenerateOutput()"


def test_a_notebook_shows_the_texts_of_an_output(model, tiny_tokenizer):
    output = write(model, prefix="<b>It & was", tokenizer=tiny_tokenizer)
    page = Page(output._repr_html_())
    expected = tiny_tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    assert [text.replace(RETURN, "") for text in page.texts] == expected
    assert page.steps == [step for step in output.reveal_step.flatten().tolist() if step >= 0]
    for nfe in output.num_function_evaluations.tolist():
        assert f"\u00b7 {nfe} network evaluations" in output._repr_html_()


def test_without_a_tokenizer_a_notebook_shows_the_ids(model):
    output = write(model)
    page = Page(output._repr_html_())
    assert [[int(token) for token in text.split()] for text in page.texts] == output.sequences.tolist()
    assert "Pass tokenizer=tokenizer to generate" in output._repr_html_()


def test_an_output_of_many_texts_shows_the_first(model):
    page = write(model, num_return_sequences=100)._repr_html_()
    assert len(Page(page).texts) == MOST_TEXTS
    assert f"{MOST_TEXTS} of 100 texts are shown." in page


def test_an_output_without_steps_leaves_its_display_to_the_notebook():
    assert RaddGenerateOutput(sequences=torch.zeros(1, 2))._repr_html_() is None


@pytest.mark.parametrize(
    "changed",
    [
        {"token_logprobs": None},
        {"num_function_evaluations": None},
        {"sequences": torch.zeros(0, LENGTH, dtype=torch.int64)},
        {"sequences": torch.zeros(2, LENGTH - 1, dtype=torch.int64)},
        {"sequences": torch.zeros(4, LENGTH, dtype=torch.int64)},
        {"sequences": torch.zeros(LENGTH, dtype=torch.int64)},
    ],
    ids=lambda changed: ", ".join(changed),
)
def test_an_output_that_somebody_has_changed_leaves_its_display_to_the_notebook(model, changed):
    output = write(model)
    assert output._repr_html_()
    for name, value in changed.items():
        setattr(output, name, value)
    assert output._repr_html_() is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda output: pickle.loads(pickle.dumps(output))])
def test_a_copy_of_an_output_is_without_the_tokenizer(model, tiny_tokenizer, copied):
    output = write(model, prefix="It was", tokenizer=tiny_tokenizer)
    other = copied(output)
    assert output.tokenizer is tiny_tokenizer
    assert other.tokenizer is None
    assert list(other) == list(output)
    assert "tokenizer" not in output
    assert all(torch.equal(other[name], output[name]) for name in output)


# ---------------------------------------------------------------------------------------------------------
# The HTML
# ---------------------------------------------------------------------------------------------------------


def test_a_denoising_prints_and_shows_its_text():
    denoising = Denoising(("It", " was", " so"), (-1, 3, 0), (0.0, -1.0, -0.5), n_steps=8, evaluations=2)
    assert repr(denoising) == "Denoising('It was so', 2 of 3 tokens generated, n_steps=8, evaluations=2)"
    assert Page(denoising._repr_html_()).text == "It was so"
    assert "step 4, probability 0.368" in denoising._repr_html_()


def test_a_text_cannot_become_part_of_a_notebook():
    texts = ("<script>alert(1)</script>", ' "&$ink', "</div></style><img src=x onerror=alert(1)>")
    for shown in (to_fragment([Denoising(texts, (-1, 0, 1), (0.0,) * 3, 2, 2)] * count, "<b>") for count in (1, 2)):
        assert shown.count("<script>") == shown.count("</style>") == 1
        assert "<img" not in shown
        assert shown.count("&lt;b&gt;") == 1
        assert all(text == "".join(texts) for text in Page(shown).texts)


def test_the_style_reaches_only_the_picture_and_the_script_only_pictures():
    selectors = [rule.rpartition("}")[2] for rule in STYLE.partition("<style>")[2].split("{")[:-1]]
    assert len(selectors) >= 8
    assert all(selector.strip().startswith(".radd-denoising") for selector in selectors)
    assert re.findall(r"(?:document|window|globalThis)\.\w+\([^)]*", FRAGMENT) == [
        'document.querySelectorAll(".radd-denoising:not([data-ready]'
    ]
    assert not re.search(r"https?:|url\(|@import|<link|<img| src=| href=", FRAGMENT)


def test_letters_and_paper_have_the_colours_of_the_notebook():
    """So that a dark notebook stays dark. Only a token on its own colour has a colour of its own."""
    colored = re.findall(r"([^{}\n]*)\{[^}]*[ {]color: (?!inherit|transparent)", STYLE)
    assert [selector.strip() for selector in colored] == [".radd-denoising b"]


# ---------------------------------------------------------------------------------------------------------
# While it is generated
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch):
    """A stand-in for IPython in a kernel of Jupyter; the list of what its one output showed."""
    shown = []

    def display(media, raw, display_id):
        assert raw
        assert display_id is True
        shown.append(media)
        return SimpleNamespace(update=lambda media, raw: shown.append(media))

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    displays.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return shown


def watched(model, tokenizer, pause: float | None = 1e-9, **settings):
    """One text, watched by transformers' streamer."""
    streamer = TextDiffusionStreamer(tokenizer, sleep_time=pause)
    return write(model, num_return_sequences=1, tokenizer=tokenizer, streamer=streamer, **settings)


def test_a_notebook_shows_each_event_in_place_and_no_codes_of_a_terminal(model, tiny_tokenizer, notebook, capsys):
    output = watched(model, tiny_tokenizer, prefix="<b>It was")
    assert capsys.readouterr().out == ""
    masks = int((output.reveal_step >= 0).sum())
    drafts = [Page(media["text/html"]).text.count(GREY_BAR.strip()) for media in notebook]
    nfe = int(output.num_function_evaluations)
    assert len(drafts) == 2 + nfe  # the masks, each event, and the end
    assert drafts[0] == masks
    assert drafts == sorted(drafts, reverse=True)
    revealed = [sum(step <= reached for step in output.reveal_step[0].tolist()) for reached in range(-1, 16)]
    assert {LENGTH - left for left in drafts} == set(revealed)
    for events, media in enumerate(notebook[:-2]):
        assert media["text/plain"].startswith(f"{events} network evaluation")
        assert media["text/html"].count('class="newest"') == (drafts[events - 1] - drafts[events] if events else 0)


def test_in_the_end_a_notebook_has_the_text_with_a_slider(model, tiny_tokenizer, notebook):
    output = watched(model, tiny_tokenizer, prefix="It was")
    page, steps = Page(notebook[-1]["text/html"]), output.reveal_step[0]
    assert page.text.replace(RETURN, "") == tiny_tokenizer.decode(output.sequences[0], skip_special_tokens=True)
    assert notebook[-1]["text/plain"] == page.text.replace(RETURN, "")
    events = steps.unique().tolist()[1:]
    assert page.steps == [events.index(step) for step in steps.tolist() if step >= 0]
    assert ("type", "range") in page.attributes


def test_fast_events_are_shown_together(model, tiny_tokenizer, notebook, monkeypatch):
    monkeypatch.setattr("radd_hf.display_radd.FRAME", 3600)
    watched(model, tiny_tokenizer, pause=None)
    assert len(notebook) == 2


def test_a_terminal_of_ipython_has_the_streamer_of_transformers(model, tiny_tokenizer, notebook, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())
    output = watched(model, tiny_tokenizer, pause=None)
    assert notebook == []
    assert capsys.readouterr().out.count("\033[33m") == int(output.num_function_evaluations)


def test_a_streamer_of_the_users_own_is_left_as_it_is(model, tiny_tokenizer, notebook):
    class Own(TextDiffusionStreamer):
        drafts = 0

        def put_draft(self, value, **settings):
            self.drafts += 1

    own = Own(tiny_tokenizer)
    output = write(model, num_return_sequences=1, streamer=own)
    assert own.drafts == int(output.num_function_evaluations)
    assert notebook == []


def test_tokens_are_the_same_whoever_watches(model, tiny_tokenizer, notebook):
    assert torch.equal(watched(model, tiny_tokenizer).sequences, write(model, num_return_sequences=1).sequences)


def test_without_ipython_nothing_breaks(model, tiny_tokenizer, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython", None)  # an import then fails
    output = watched(model, tiny_tokenizer, pause=None)
    assert "\033[33m" in capsys.readouterr().out
    assert Page(output._repr_html_()).text
