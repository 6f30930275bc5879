"""What the page in the browser does, without gradio: texts that fill, likelihoods token by token, both stoppable."""

import configparser
import html
import importlib
import math
import re
import sys
import time
from itertools import pairwise

import pytest
import torch

from radd_hf.app.live import (
    BLANKS,
    ENDS,
    GIVEN_ALL_OTHERS,
    LOOK,
    canvas_of_form,
    denoise,
    fill,
    load,
    own_settings,
    render_canvas,
    render_heat,
    score,
    score_text,
)
from radd_hf.app.turns import Stop
from radd_hf.likelihood import exact_likelihood
from radd_hf.settings_radd import ADAPTIVE_ORDERS, FIXED_ORDERS, METHODS
from support.paths import CHECKPOINT, GOLDEN, ROOT
from support.toys import FlatNetwork, seeded, tiny_model

AUSTEN = str(CHECKPOINT)
# The fields of the page as it opens, but for the pause.
FIELDS = {
    "model": AUSTEN,
    "tokenizer": "",
    "form": BLANKS,
    "text": "It was [MASK:6] of spring",
    "prefix": "",
    "suffix": "",
    "length": 32,
    "texts": 1,
    "exact": False,
    "seed": 0,
    "pause": 0,
    "method": "tweedie",
    "steps": 0,
    "order": "forward",
    "temperature": 0.7,
    "top_p": 1,
    "top_k": 0,
    "refresh_interval": 1,
    "entropy_bound": None,
    "confidence_threshold": None,
}


@pytest.fixture(scope="module")
def austen():
    return load(AUSTEN, "")


def test_what_is_watched_is_what_generate_fills_mask_by_mask(austen):
    model, tokenizer = austen
    canvas = canvas_of_form(model, tokenizer, BLANKS, "It was [MASK:12] of spring")
    given = canvas != model.config.mask_token_id
    run = denoise(model, canvas, stop=Stop(), pause=0.06, steps=6, generator=seeded(3))
    shown = [(texts[0], output) for texts, output in run]
    assert torch.equal(shown[0][0], canvas)
    assert len(shown) > 4
    assert [output is None for _, output in shown] == [True] * (len(shown) - 1) + [False]
    for (before, _), (after, _) in pairwise(shown):
        known = before != model.config.mask_token_id
        assert torch.equal(after[known], before[known])
    assert torch.equal(shown[-1][0], model.generate(canvas[None], steps=6, generator=seeded(3))[0])
    assert torch.equal(shown[-1][0][given], canvas[given])


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_run_ends_at_its_next_event_when_it_is_stopped_or_nobody_looks_any_more(how):
    model, stop = FlatNetwork(vocab_size=5, length=4), Stop()
    run = denoise(model, torch.full((4,), 4), stop=stop, pause=8, method="first_hitting")
    started = time.monotonic()
    shown = [next(run)[0]]
    while bool((shown[-1] == 4).all()):  # the first event may be over before the first look
        shown.append(next(run)[0])
    if how == "stop":
        stop.set()
        rest = list(run)
        assert all(output is None for _, output in rest)
        shown += [canvas for canvas, _ in rest]
    else:
        run.close()
    assert int((shown[-1] == 4).sum()) == 3
    assert model.rows_evaluated == [1]
    assert time.monotonic() - started < 7, "the pause between events must end with the run"


def test_a_pause_ends_as_soon_as_others_wait_for_the_model(monkeypatch):
    pauses, answers = [], iter([False, False])  # then somebody comes
    stop = Stop(others_wait=lambda: next(answers, True))
    monkeypatch.setattr(stop, "wait", pauses.append)
    model = FlatNetwork(vocab_size=5, length=4)
    *_, (canvas, _) = denoise(model, torch.full((4,), 4), stop=stop, pause=8, method="first_hitting")
    assert pauses == [LOOK, LOOK]
    assert not bool((canvas == 4).any())


def test_what_generate_refuses_reaches_who_asked():
    run = denoise(tiny_model(), torch.full((3,), 3), stop=Stop(), temperature=-1)
    with pytest.raises(ValueError, match=r"temperature=-1"):
        list(run)


@pytest.mark.parametrize("order", FIXED_ORDERS)
def test_the_nats_of_the_tokens_add_up_to_the_exact_likelihood_in_that_order(order):
    model, ids = tiny_model(vocab_size=6, length=20), torch.randint(5, (20,), generator=seeded(1))
    seen = list(score(model, ids, order, stop=Stop(), seed=2))
    known = [int((~nll.isnan()).sum()) for nll in seen]
    assert known == [16, 20]
    # The same permutation in both: of "random", the seed's.
    if order == "random":
        order = torch.randperm(20, generator=seeded(2))
    assert float(seen[-1].sum()) == pytest.approx(float(exact_likelihood(model, [ids], order)), rel=1e-5)


def test_a_token_can_be_scored_given_all_others():
    model, ids = tiny_model(vocab_size=6, length=5), torch.tensor([0, 4, 2, 2, 1])
    (nll,) = score(model, ids, GIVEN_ALL_OTHERS, stop=Stop())
    for position in range(5):
        hidden = ids.clone()
        hidden[position] = 5
        with torch.no_grad():
            law = model(hidden[None]).logits[0, position].log_softmax(-1)
        assert float(nll[position]) == pytest.approx(-float(law[ids[position]]), rel=1e-5)


@pytest.mark.parametrize("order", ["backward", "entropy"])
def test_scoring_can_be_stopped_and_leaves_what_it_does_not_know_open(order):
    stop = Stop()
    run = score(tiny_model(vocab_size=6, length=40), torch.zeros(40, dtype=torch.int64), order, stop=stop)
    nll = next(run)
    stop.set()
    assert list(run) == []
    unknown = nll.isnan().nonzero().squeeze(1).tolist()
    assert len(unknown) == 24
    assert order != "backward" or unknown == list(range(24))


def test_a_beginning_and_an_end_make_the_canvas_that_generate_would_make(austen):
    model, tokenizer = austen
    canvas = canvas_of_form(model, tokenizer, ENDS, prefix="It was", suffix=" of spring.", length=20)
    ids = model.generate(prefix="It was", suffix=" of spring.", length=20, tokenizer=tokenizer, generator=seeded(0))
    given = canvas != model.config.mask_token_id
    assert torch.equal(canvas[given], ids[0, given])
    assert 10 < int((~given).sum()) < 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "no blank"}, r"text='no blank' has no blank to fill: write \[MASK:12\]"),
        ({"text": "x" * 2000}, r"text='x{75} \.\.\. has no blank"),
        ({"text": "[MASK:x]"}, r"a blank is written \[MASK\]"),
        ({"text": "[MASK:129]"}, "the text with its blanks has 129 tokens; at most 128"),
        ({"form": ENDS, "length": 129}, r"length=129 must lie in 1 \.\. 128"),
        ({"form": ENDS, "length": 2, "prefix": "It was a very"}, "leave nothing to generate in length=2"),
        ({"form": "verse"}, "form='verse' must be one of"),
        ({"steps": -1}, "steps=-1 must be an integer of at least 1"),
        ({"top_k": -1}, "top_k=-1 must be"),
        (
            {"method": "ordered", "order": "margin", "entropy_bound": 0.1, "confidence_threshold": 0.9},
            "entropy_bound=0.1 and confidence_threshold=0.9 both say",
        ),
        ({"texts": 5}, r"texts=5 must be an integer in 1 \.\. 4"),
        ({"texts": None}, "texts=None must be"),
        ({"seed": -2}, r"seed=-2 must be an integer in 0 \.\. "),
        ({"model": " "}, "model=' ' must be a folder or the name of a repository"),
        ({"model": "/no/such"}, "Cannot find model='/no/such': no such folder"),
        ({"model": str(GOLDEN / "hub")}, "Pass the name of its tokenizer"),
        ({"model": str(GOLDEN / "hub"), "tokenizer": AUSTEN}, "it belongs to another model"),
    ],
)
def test_a_field_that_does_not_fit_is_named_before_masks_replace_the_last_result(fields, message):
    with pytest.raises(ValueError, match=message):
        next(fill(Stop(), **FIELDS | fields))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "text='' has no token"), ("a" * 999, "at most 128"), ("a\ud800", "has the lone surrogate")],
)
def test_a_text_that_has_no_likelihood_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        list(score_text(Stop(), model=AUSTEN, tokenizer="", text=text, order="forward"))


def test_what_spells_the_mask_has_a_likelihood_as_any_text():
    *_, (heat, line) = score_text(Stop(), model=AUSTEN, tokenizer="", text="a <|mask|>", order="forward")
    assert "bits per byte" in line
    assert "radd-mask" not in heat


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_with_the_page_as_it_opens(method):
    page, line = list(fill(Stop(), **FIELDS | {"method": method}))[-1]
    assert 'data-masks="0"' in page
    assert re.search(r"\d network evaluations? · .* nats per token", page)
    assert re.fullmatch(r"6 of 6 tokens filled · .* s · seed 0", line)
    assert page.count('"radd-filled"') == page.count("radd-heat") == 6


def test_several_texts_are_those_of_generate_with_the_same_seed(austen):
    model, tokenizer = austen
    canvas = canvas_of_form(model, tokenizer, BLANKS, FIELDS["text"])
    own = own_settings(model)
    fields = FIELDS | {name: own[name] for name in FIELDS.keys() & own.keys()} | {"length": 32, "texts": 3}
    page, line = list(fill(Stop(), **fields))[-1]
    ids = model.generate(canvas[None], seed=0, num_return_sequences=3)
    texts = [html.unescape(text) for text in re.findall(r'data-text="([^"]*)"', page)]
    assert texts == [tokenizer.decode(row) for row in ids]
    assert line.startswith("18 of 18 tokens")
    assert page.count("srcdoc=") == 3


def test_the_page_opens_with_the_settings_that_the_checkpoint_saves(austen):
    own = own_settings(austen[0])
    assert (own["temperature"], own["top_p"], own["method"], own["steps"], own["schedule"]) == (
        0.6,
        0.9,
        "tweedie",
        0,
        "",
    )


def test_exact_replaces_every_other_setting(austen):
    model, tokenizer = austen
    canvas = canvas_of_form(model, tokenizer, BLANKS, FIELDS["text"])
    page, _ = list(fill(Stop(), **FIELDS | {"exact": True, "temperature": 0.1, "refresh_interval": 3}))[-1]
    (text,) = model.generate(canvas[None], seed=0, exact=True)
    assert html.unescape(re.findall(r'data-text="([^"]*)"', page)[0]) == tokenizer.decode(text)


@pytest.mark.parametrize("order", ADAPTIVE_ORDERS)
def test_the_page_fills_in_an_order_that_the_model_chooses_and_with_a_bound(order):
    fields = FIELDS | {"method": "ordered", "order": order}
    assert ">6 network evaluations" in list(fill(Stop(), **fields))[-1][0]
    assert ">1 network evaluation " in list(fill(Stop(), **fields | {"entropy_bound": 1e6}))[-1][0]
    assert ">1 network evaluation " in list(fill(Stop(), **fields | {"confidence_threshold": 1e-9}))[-1][0]


def test_a_bound_that_the_page_hides_is_passed_over():
    for fields in ({"method": "tweedie"}, {"method": "ordered", "order": "forward"}):
        assert list(fill(Stop(), **FIELDS | fields | {"entropy_bound": 0.5, "confidence_threshold": 0.5}))


def test_an_empty_field_means_the_default_and_seed_minus_one_a_new_seed_each_time():
    sampling = {"steps": None, "temperature": None, "top_p": None, "top_k": None, "refresh_interval": None}
    lines = [list(fill(Stop(), **FIELDS | sampling | {"seed": seed}))[-1][1] for seed in (-1, None)]
    first, second = (int(line.split("seed ")[1]) for line in lines)
    assert first != second


def test_a_text_is_scored_with_its_figures():
    text = "It is a truth universally acknowledged."
    heat, line = list(score_text(Stop(), model=AUSTEN, tokenizer="", text=text, order="forward"))[-1]
    tokens, nats, perplexity, bits, total = (float(number) for number in re.findall(r"[\d.]+\d|\d", line))
    assert heat.count("radd-heat") == tokens
    assert nats == pytest.approx(total / tokens, abs=0.01)
    assert perplexity == pytest.approx(math.exp(nats), rel=0.01)
    assert bits == pytest.approx(total / len(text) / math.log(2), abs=0.01)


def test_text_is_text_in_html_and_special_tokens_and_generated_line_breaks_show(austen):
    model, tokenizer = austen
    mask, end = model.config.mask_token_id, model.config.eos_token_id
    ids = torch.tensor([*tokenizer("<b> &")["input_ids"], end, *tokenizer("\n")["input_ids"], mask])
    given = torch.zeros(len(ids), dtype=torch.bool)
    fresh = ids == end
    shown = render_canvas(ids, given, fresh, tokenizer, mask)
    text = re.sub(r"</?(span|div)[^>]*>", "", shown)
    assert text == "&lt;b&gt; &amp;&lt;|endoftext|&gt;\u21b5\n"
    assert shown.count("radd-fresh") == shown.count("radd-mask") == 1
    assert shown.count("radd-filled") == len(ids) - 1


def test_heat_runs_from_certain_to_a_blind_guess_and_spares_what_was_given(austen):
    _, tokenizer = austen
    ids = torch.tensor(tokenizer("one two three four")["input_ids"][:4])
    shown = render_heat(ids, torch.tensor([0.0, 4.0, 12.0, math.nan]), tokenizer, uniform=8.0)
    assert re.findall(r"--heat: ([\d.]+)", shown) == ["0.000", "0.500", "1.000"]
    assert 'data-note="4.00 nats, probability 0.018"' in shown


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "radd_hf.app.web", raising=False)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "as it was")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'radd_hf\[demo\]'"):
        importlib.import_module("radd_hf.app.web")


def test_a_space_installs_what_the_package_asks_for():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = setup["options"]["install_requires"].split() + setup["options.extras_require"]["demo"].split()
    installed = (ROOT / "requirements.txt").read_text().split()
    assert installed
    assert set(installed) <= set(asked)
