# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Generates and scores texts for the page of `page.py`, as HTML. A visitor can watch and stop each run.

    text with blanks -> canvas -> denoise, in a thread -> HTML
    text -> ids -> score, batch by batch -> HTML

A canvas is a row of token ids, some of them masks. An event is a network evaluation that reveals tokens.

Shapes: L length of a canvas, R texts that are generated from it.
"""

import contextlib
import html
import math
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..canvas_radd import make_canvas
from ..display_radd import number_of
from ..generation_radd import RaddGenerateOutput, RaddGenerationConfig
from ..hub.facts import model_facts
from ..hub.loading import load
from ..likelihood import nats_of_tokens, order_of, order_round, perplexity_of
from ..modeling_radd import RaddForMaskedLM
from ..policy_likelihood import nats_under_policy
from ..policy_radd import Policy
from ..randomness_radd import check_seed
from ..settings_radd import BOUNDS, ORDERS, TEXT_SETTINGS, is_adaptive, is_integer, is_number, shortened
from ..text_radd import check_characters, check_unicode, encode_blanks, encode_text, split_at_blanks
from .generate import picture_facts
from .turns import Stop
from .visualize import RETURN, Denoising, to_html, token_texts

BLANKS, ENDS = FORMS = ("text with blanks", "beginning and end")
GIVEN_ALL_OTHERS = "each token given all others"
# Rows of one network evaluation of `score`. It can be stopped, and shows its results, after each evaluation.
SCORED_AT_ONCE = 16
# The fewest seconds between two pictures of a run, however fast the model is.
FRAME = 0.05
# The most texts that are generated from one canvas.
MOST_TEXTS = 4
# Seconds: the longest pause after an event, all pauses of a run together, and the time between two checks whether
# another run waits.
LONGEST_PAUSE, PAUSES, LOOK = 1.0, 60.0, 0.1
# A text may have this many characters for each token. English has four.
CHARACTERS_OF_TOKEN = 16
LONGEST_NAME = 1000  # characters of a folder or repository
# For texts of a page, a time grid with this many steps is as good as continuous time.
MOST_STEPS = 2**14
# The page calls a model with fewer parameters a toy.
TOY = 50e6


class Stopped(Exception):
    """Says that the visitor pressed stop or closed the page."""


# ---------------------------------------------------------------------------------------------------------
# From the fields of the page to a canvas and settings
# ---------------------------------------------------------------------------------------------------------


def load_for_page(model: str, tokenizer: str) -> tuple[RaddForMaskedLM, PreTrainedTokenizerBase]:
    """Loads both by name, on a GPU if there is one. An empty tokenizer means the one beside the model."""
    for name, value in (("model", model), ("tokenizer", tokenizer)):
        if not isinstance(value, str) or len(value) > LONGEST_NAME or "\0" in value:
            raise ValueError(f"{name}={shortened(value)} must be the name of a folder or repository.")
    return _load_for_page(model, tokenizer)


@lru_cache(maxsize=1)
def _load_for_page(model: str, tokenizer: str) -> tuple[RaddForMaskedLM, PreTrainedTokenizerBase]:
    if not model.strip():
        raise ValueError(f"model={model!r} must be a folder or the name of a repository.")
    flag = "the name of its tokenizer (the authors' models: gpt2)"
    return load(model.strip(), tokenizer.strip() or None, device=None, flag=flag)


def canvas_of_form(
    model: RaddForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    form: str,
    text: str = "",
    prefix: str = "",
    suffix: str = "",
    length: int | None = None,
) -> Tensor:
    """Makes the canvas (L,), from `text` if the form is BLANKS, else from `prefix`, `suffix` and `length`.

    Raises:
        ValueError: for a text without a blank, and for more tokens than the model was trained on. Longer texts would
            take memory from the texts of other visitors.
    """
    longest = model.config.max_position_embeddings
    for name, value in (("text", text), ("prefix", prefix), ("suffix", suffix)):
        check_text(name, value, longest)
    if form == BLANKS:
        check_length("the text with its blanks", sum(split_at_blanks(text, tokenizer.mask_token)[1]), longest)
        ids = encode_blanks(text, tokenizer, model.config.mask_token_id)
        if model.config.mask_token_id not in ids:
            raise ValueError(
                f"text={shortened(text)} has no blank to fill: write [MASK:12] where twelve tokens are wanted."
            )
        canvas = torch.tensor(ids)
    elif form == ENDS:
        TEXT_SETTINGS["length"].check("length", length)
        if length is not None and length > longest:
            raise ValueError(f"length={length} must lie in 1 .. {longest}, the length the model was trained at.")
        canvas = make_canvas(model.config, prefix=prefix, suffix=suffix, length=length, tokenizer=tokenizer)[0][0]
    else:
        raise ValueError(f"form={form!r} must be one of {FORMS}.")
    check_length("the text with its blanks", len(canvas), longest)
    return canvas


def check_text(name: str, value: Any, longest: int) -> None:
    """Raises a ValueError for anything but a text, and for a text that is certainly longer than `longest` tokens."""
    if not isinstance(value, str):
        raise ValueError(f"{name}={shortened(value)} must be a text.")
    check_characters(value, name, CHARACTERS_OF_TOKEN * longest)
    check_unicode(value, name)


def check_length(what: str, tokens: int, longest: int) -> None:
    if tokens > longest:
        raise ValueError(f"{what} has {tokens} tokens; at most {longest}, the length the model was trained at.")


def generation_settings(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Makes arguments of `generate` from the fields of the page, without those that the method does not use.

    None, and 0 for steps, mean the setting saved with the model, or the default. `exact` replaces all other settings. A
    schedule replaces method and order.
    """
    if sampling["exact"]:
        return {"exact": True}
    schedule, steps = sampling.get("schedule") or None, sampling["steps"]
    method = None if schedule else sampling["method"]
    if steps and is_integer(steps) and steps > MOST_STEPS:
        raise ValueError(f"steps={steps} must be at most {MOST_STEPS}.")
    order = sampling["order"] if method == "ordered" else None
    fitting = dict(sampling) | {"method": method, "order": order, "schedule": schedule}
    fitting["steps"] = None if method == "first_hitting" else steps or None
    return fitting if is_adaptive(order) else fitting | dict.fromkeys(BOUNDS)


def own_settings(model: RaddForMaskedLM) -> dict[str, Any]:
    """Returns the settings saved with a model, or the defaults, as values for the fields of the page."""
    own = RaddGenerationConfig.resolve(model.generation_config)
    fields = {name: getattr(own, name) for name in TEXT_SETTINGS}
    order = own.order if own.order in ORDERS else TEXT_SETTINGS["order"].default  # not a list of positions
    return fields | {"steps": own.steps or 0, "schedule": own.schedule or "", "order": order}


def choose_seed(seed: int | None) -> int:
    """Returns the seed, or a new one for -1 or None. The page shows it, so a visitor can generate a text again."""
    if seed in (-1, None):
        return secrets.randbelow(2**31)
    return check_seed(seed)


# ---------------------------------------------------------------------------------------------------------
# Denoising and scoring that can be watched and stopped
# ---------------------------------------------------------------------------------------------------------


class DraftStreamer:
    """Streams `generate`: keeps the newest canvases (R, L), waits `pause` seconds after each event, ends at `stop`.

    All pauses together take PAUSES seconds at most. There is no pause while another run waits for the model.
    """

    def __init__(self, canvas: Tensor, stop: Stop, pause: float):
        self.canvas, self.stop, self.pause, self.left = canvas, stop, pause, PAUSES

    def put_draft(self, canvas: Tensor) -> None:
        self.canvas = canvas
        pause = min(self.pause, self.left)
        while pause > 0 and not self.stop.others_wait():
            part = min(pause, LOOK)
            pause, self.left = pause - part, self.left - part
            if self.stop.wait(part):
                break
        if self.stop.is_set():
            raise Stopped

    def put(self, ids: Tensor) -> None:
        pass  # the output of `generate` has them

    def end(self) -> None:
        pass


def denoise(
    model: RaddForMaskedLM, canvas: Tensor, *, stop: Stop, pause: float = 0.0, texts: int = 1, **settings: Any
) -> Iterator[tuple[Tensor, RaddGenerateOutput | None]]:
    """Runs `generate` on a canvas (L,) in a thread. Yields the texts (R, L) as they fill, and at the end the output.

    `stop` ends the run at its next event; then there is no output. Closing this generator also stops the run. If
    canvases come faster than one per FRAME, only the newest is yielded.

    Raises:
        ValueError: where `generate` does.
    """
    asked: dict[str, Any] = {"num_return_sequences": texts, "return_dict_in_generate": True}
    shown = canvas.expand(texts, -1)
    streamer = DraftStreamer(shown, stop, pause)
    with ThreadPoolExecutor(max_workers=1) as worker:
        running = worker.submit(model.generate, canvas[None], streamer=streamer, **asked, **settings)
        try:
            yield shown, None  # not the streamer's: its first draft may be there already
            done = False
            while not done:
                done = running in wait([running], timeout=FRAME).done
                if streamer.canvas is not shown:
                    yield (shown := streamer.canvas), None
        except GeneratorExit:
            stop.set()
            raise
    with contextlib.suppress(Stopped):
        output = cast(RaddGenerateOutput, running.result())
        yield cast(Tensor, output.sequences).cpu(), output


def score(model: RaddForMaskedLM, ids: Tensor, order: str, *, stop: Stop, seed: int = 0) -> Iterator[Tensor]:
    """Yields the nats (L,) of the tokens after every batch, as float64, with nan where they are not known yet.

    In an order, each token is scored given the tokens before it. The sum is the negative log-likelihood of the text in
    that order (`likelihood.exact_likelihood`). With GIVEN_ALL_OTHERS, each token is scored given all others; that sum
    is not a likelihood.
    """
    if is_adaptive(order):
        everywhere = torch.ones(1, len(ids), dtype=torch.bool)
        events = nats_under_policy(model, ids[None], everywhere, Policy(order))  # one token per event
        for known, (nats,) in enumerate(events, 1):
            if stop.is_set():
                return
            if known % SCORED_AT_ONCE == 0 or known == len(ids):
                yield nats
        return
    if order == GIVEN_ALL_OTHERS:
        masked = scored = torch.eye(len(ids), dtype=torch.bool)  # (L, L)
    else:
        rows = order_round(order_of(order, len(ids), torch.Generator().manual_seed(seed)))
        masked, scored = rows.masked, rows.scored
    nats = torch.full(ids.shape, math.nan, dtype=torch.float64)
    batches = nats_of_tokens(model, ids.expand(len(ids), -1), masked, scored, SCORED_AT_ONCE)  # (rows, L) each
    for part in scored.split(SCORED_AT_ONCE):
        if stop.is_set():
            return
        found = part.any(dim=0)  # (L,)
        nats[found] = next(batches).sum(dim=0)[found]
        yield nats.clone()


# ---------------------------------------------------------------------------------------------------------
# HTML
# ---------------------------------------------------------------------------------------------------------


def texts_to_show(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns the text of each token, as HTML. Special tokens, such as the end of a text, are shown by their names."""
    special = set(tokenizer.all_special_ids)
    return [
        html.escape(str(tokenizer.convert_ids_to_tokens(token)) if token in special else text)
        for token, text in zip(ids.tolist(), token_texts(ids.tolist(), tokenizer), strict=True)
    ]


def boxed(text: str, attributes: str) -> str:
    """Puts a word in a box. Spaces before it stay outside, so lines break there. A line break gets a visible sign."""
    core = text.lstrip(" ") or text
    shown = core.replace("\n", f"{RETURN}\n")
    return f"{text[: len(text) - len(core)]}<span {attributes}>{shown}</span>"


def render_canvas(
    ids: Tensor, given: Tensor, fresh: Tensor, tokenizer: PreTrainedTokenizerBase, mask_token_id: int
) -> str:
    """Draws a canvas (L,): masks as bars, given tokens plain, generated tokens marked, `fresh` ones marked more.

    given, fresh: (L,) bool.
    """
    masked, spans = ids == mask_token_id, []
    for position, text in enumerate(texts_to_show(ids, tokenizer)):
        if masked[position]:
            spans.append('<span class="radd-mask" role="img" aria-label="mask"></span>')
        elif given[position]:
            spans.append(f"<span>{text}</span>")
        else:
            spans.append(boxed(text, f'class="radd-filled{" radd-fresh" if fresh[position] else ""}"'))
    return f'<div class="radd-text" data-masks="{int(masked.sum())}">{"".join(spans)}</div>'


def render_heat(ids: Tensor, nll: Tensor, tokenizer: PreTrainedTokenizerBase, uniform: float) -> str:
    """Draws a text (L,) as a heat map: the less likely a token, the warmer. Pointing at a token shows its probability.

    nll: (L,) nats, nan for tokens without a colour. uniform: nats of the warmest colour, those of a blind guess.
    """
    spans = []
    for text, nats in zip(texts_to_show(ids, tokenizer), nll.tolist(), strict=True):
        if math.isnan(nats):
            spans.append(f"<span>{text}</span>")
            continue
        # With -1 a touch gives a token the focus, and the tabulator key does not stop at each of a thousand tokens.
        note = f"{nats:.2f} nats, probability {math.exp(-nats):.2g}"
        heat = min(max(nats, 0) / uniform, 1)
        spans.append(boxed(text, f'class="radd-heat" style="--heat: {heat:.3f}" data-note="{note}" tabindex="-1"'))
    scale = (
        f'certain <span class="radd-scale"></span> a blind guess, {uniform:.1f} nats. '
        "Nats are the negative logarithm of the probability."
    )
    return f'<div class="radd-text radd-map">{"".join(spans)}</div><div class="radd-legend">{scale}</div>'


def render_sample(
    output: RaddGenerateOutput, row: int, given: Tensor, title: str, steps: int | None, network: Any, words: Any
) -> str:
    """Draws text `row` of an output: the text, buttons that copy and save it, its picture with a slider, its heat map.

    Args:
        given: (L,) bool. title, steps: facts of the picture, see [`picture_facts`].
    """
    ids, mask_id = cast(Tensor, output.sequences)[row].cpu(), network.config.mask_token_id
    nll = -cast(Tensor, output.token_logprobs)[row].cpu()  # (L,)
    denoising = Denoising.of(output, words, row, n_steps=steps)
    text = "".join(denoising.texts)
    lines = 1 + text.count("\n") + len(text) // 60
    opened = " open" if len(cast(Tensor, output.sequences)) == 1 else ""
    evaluations = number_of(denoising.evaluations, "network evaluation")
    heat = render_heat(ids, nll.masked_fill(given, math.nan), words, blind_guess(network))
    return f"""<section class="radd-sample" data-text="{html.escape(text)}">
{render_canvas(ids, given, torch.zeros_like(given), words, mask_id)}
<div class="radd-bar"><span>{evaluations} · {float(nll.sum()) / int((~given).sum()):.2f} nats per token</span>
<span class="radd-buttons"><button type="button" data-radd="copy">Copy</button>
<button type="button" data-radd="text">Save text</button>
<button type="button" data-radd="picture">Save picture</button></span></div>
<details class="radd-replay"{opened}><summary>Watch it step by step</summary>
<iframe title="the text after each step" sandbox="allow-scripts" style="--lines: {lines}"
srcdoc="{html.escape(to_html(denoising, title))}"></iframe></details>
<details class="radd-unlikely"><summary>How unlikely each token was when it was drawn</summary>{heat}</details>
</section>"""


# ---------------------------------------------------------------------------------------------------------
# The work of the buttons: generators of HTML
# ---------------------------------------------------------------------------------------------------------


def fill(
    stop: Stop,
    *,
    model: str,
    tokenizer: str,
    form: str,
    text: str,
    prefix: str,
    suffix: str,
    length: int | None,
    texts: int,
    seed: int | None,
    pause: float,
    **sampling: Any,
) -> Iterator[tuple[str, str]]:
    """Generates texts. Yields them as they fill, with the newest tokens marked, and a line about them.

    sampling: the fields of [`generation_settings`].
    """
    if not is_number(pause) or not 0 <= pause <= LONGEST_PAUSE:
        raise ValueError(f"pause={pause!r} must be a number of seconds in 0 .. {LONGEST_PAUSE:g}.")
    if not is_integer(texts, 1, MOST_TEXTS):
        raise ValueError(f"texts={shortened(texts)} must be an integer in 1 .. {MOST_TEXTS}.")
    network, words = load_for_page(model, tokenizer)
    canvas = canvas_of_form(network, words, form, text, prefix, suffix, length)  # (L,)
    seed, settings = choose_seed(seed), generation_settings(sampling)
    network.check_settings(**settings)  # before the masks replace the last result
    given = canvas != network.config.mask_token_id
    total, started = int((~given).sum()) * texts, time.monotonic()
    shown, page, line, output = canvas.expand(texts, -1), "", "", None
    run = denoise(network, canvas, stop=stop, pause=pause, texts=texts, seed=seed, **settings)
    for drafts, output in run:  # (R, L)
        page, shown = render_drafts(shown, drafts, given, words, network.config.mask_token_id), drafts
        filled = int((drafts != network.config.mask_token_id).sum() - texts * given.sum())
        line = f"{filled} of {number_of(total, 'token')} filled"
        if output is None:
            yield page, line
    if output is None:
        yield page, f"{stop.reason}: {line} · seed {seed}"
        return
    seconds = time.monotonic() - started
    title, steps = picture_facts(model, settings, network, len(canvas))
    samples = (render_sample(output, row, given, title, steps, network, words) for row in range(texts))
    yield "".join(samples), f"{line} · {seconds:.1f} s · seed {seed}"


def render_drafts(before: Tensor, after: Tensor, given: Tensor, tokenizer: Any, mask_token_id: int) -> str:
    """Draws the texts `after` an event, with the event's tokens marked. before, after: (R, L). given: (L,) bool."""
    fresh = (before == mask_token_id) & (after != mask_token_id)
    rows = zip(after, fresh, strict=True)
    drawn = (render_canvas(ids, given, newest, tokenizer, mask_token_id) for ids, newest in rows)
    return "".join(f'<section class="radd-sample">{each}</section>' for each in drawn)


def score_text(stop: Stop, *, model: str, tokenizer: str, text: str, order: str) -> Iterator[tuple[str, str]]:
    """Scores a text. Yields its heat map, as far as it is known, and a line about it."""
    network, words = load_for_page(model, tokenizer)
    check_text("text", text, network.config.max_position_embeddings)
    ids = torch.tensor(encode_text([text], words)[0], dtype=torch.int64)  # (L,)
    check_length("the text", len(ids), network.config.max_position_embeddings)
    if len(ids) == 0:
        raise ValueError(f"text={shortened(text)} has no token to score: type something.")
    heat, line = "", f"0 of {number_of(len(ids), 'token')} scored"
    nll = torch.full(ids.shape, math.nan)
    for nll in score(network, ids, order, stop=stop):
        heat = render_heat(ids, nll, words, blind_guess(network))
        line = f"{int((~nll.isnan()).sum())} of {number_of(len(ids), 'token')} scored"
        yield heat, line
    if bool(nll.isnan().any()):
        yield heat, f"{stop.reason}: {line}"
        return
    total = float(nll.double().sum())
    line = f"{number_of(len(ids), 'token')} · {total / len(ids):.2f} nats per token"
    if order != GIVEN_ALL_OTHERS:
        line += f" · perplexity {perplexity_of(total / len(ids)):.1f}"
        line += f" · {total / len(text.encode()) / math.log(2):.2f} bits per byte · {total:.1f} nats in all"
    yield heat, line


def blind_guess(model: RaddForMaskedLM) -> float:
    """Returns the nats of a token under the uniform distribution over all tokens but the mask."""
    return math.log(model.config.vocab_size - 1)


def describe(model: str, tokenizer: str) -> str:
    """Describes a model in HTML, and says so if it is a toy."""
    network, _ = load_for_page(model, tokenizer)
    config, parameters = network.config, network.num_parameters()
    trained_on = model_facts(model.strip()).get("training", {}).get("dataset")
    facts = (
        f"{parameters / 1e6:,.1f} million parameters",
        *([f"trained on {Path(trained_on).name}"] if trained_on else []),
        f"texts of up to {number_of(config.max_position_embeddings, 'token')}",
        f"vocabulary of {config.vocab_size:,}",
        f"{config.noise_type} noise",
        f"on {network.device}",
    )
    toy = " is a toy: expect grammar, not sense." if parameters < TOY else ""
    return f"<b>{html.escape(Path(model).name)}</b>{toy}<small>{html.escape(' · '.join(facts))}</small>"
