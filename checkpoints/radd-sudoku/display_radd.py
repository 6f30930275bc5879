# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Shows as HTML, in a notebook or a file, how texts were generated: which token was revealed when.

    Denoising.of(output, tokenizer)      one text of `generate`, position by position
    to_fragment([denoising, ...])        texts with a slider over the steps, as HTML for any page
    InPlace                              the streamer that shows a text in a notebook while it is generated

An event is one evaluation of the network and the tokens that it reveals. In absorbing diffusion a token is revealed
once and then stays (arXiv:2406.03736, section 2.1). So the final text and the step of each position say all: frame k
shows the tokens of the first k events, and masks elsewhere.

Shapes: R rows, L length.
"""

import html
import importlib
import json
import math
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from string import Template
from typing import Any

from torch import Tensor
from transformers.generation.streamers import TextDiffusionStreamer

from .settings_radd import shortened
from .text_radd import decode_after_text, decode_span

# Colours from the first step to the last, each the background of near-black text.
RAMP = ("#7d86e8", "#57b5e6", "#4cc9a9", "#a8cf5a", "#f4bd4f", "#f08a5d")
INK = "#1d1f24"
RETURN = "\u21b5"  # makes a generated line break visible
GREY_BAR = " \u2591\u2591\u2591"  # stands for a token that is not known yet
# Most texts and tokens of an output that a notebook displays, since it keeps them in its file. One text always is.
MOST_TEXTS, MOST_TOKENS = 8, 4096
FRAME = 0.05  # seconds between two updates; a notebook takes longer to draw a text than a small model to generate it


@dataclass(frozen=True)
class Denoising:
    """Holds one text of `generate`, position by position, and displays itself in a notebook.

    texts: the text that each token adds.
    steps: the step that revealed each token, -1 if it was given.
    logprobs: the log-probability of each token when it was drawn, in nats (the unit of natural logarithms); 0 if it was
        given, nan if unknown.
    n_steps: the number of steps of the grid or, in a method without a grid, of events.
    evaluations: the number of network evaluations (NFE).
    """

    texts: tuple[str, ...]
    steps: tuple[int, ...]
    logprobs: tuple[float, ...]
    n_steps: int
    evaluations: int

    @classmethod
    def of(cls, output: Any, tokenizer: Any = None, row: int = 0, n_steps: int | None = None) -> "Denoising":
        """Takes row `row` of what `generate` returns with return_dict_in_generate=True.

        Args:
            tokenizer: default: the tokenizer that `generate` got. Without one, ids stand for the texts of the tokens.
            n_steps: the number of steps of the grid; default: up to the last step that revealed a token.

        Raises:
            ValueError: if `output` lacks the steps, has no such row, or has a step beyond `n_steps`.
        """
        if getattr(output, "reveal_step", None) is None:
            raise ValueError(
                f"output is a {type(output).__name__} without reveal_step: pass generate return_dict_in_generate=True."
            )
        rows = len(output.sequences)
        if not 0 <= row < rows:
            raise ValueError(f"row={row} must lie in 0 .. {rows - 1}, the rows of output.")
        steps = output.reveal_step[row].tolist()
        last = max(steps) + 1
        if n_steps is not None and n_steps < last:
            raise ValueError(f"n_steps={n_steps} must be at least {last}: a token was revealed in step {last}.")
        tokenizer = getattr(output, "tokenizer", None) if tokenizer is None else tokenizer
        ids = output.sequences[row].tolist()
        numbers = [f"{' ' * (place > 0)}{token}" for place, token in enumerate(ids)]
        return cls(
            texts=tuple(numbers if tokenizer is None else token_texts(ids, tokenizer)),
            steps=tuple(steps),
            logprobs=tuple(output.token_logprobs[row].tolist()),
            n_steps=n_steps or max(last, 1),
            evaluations=int(output.num_function_evaluations[row]),
        )

    def __repr__(self) -> str:
        return (
            f"Denoising({shortened(''.join(self.texts))}, {len(self.revealed)} of {len(self.texts)} tokens generated, "
            f"n_steps={self.n_steps}, evaluations={self.evaluations})"
        )

    def _repr_html_(self) -> str:
        return to_fragment([self])

    @cached_property
    def revealed(self) -> list[int]:
        """Lists the step of each generated token, in ascending order."""
        return sorted(step for step in self.steps if step >= 0)

    @cached_property
    def events(self) -> list[int]:
        """Lists the steps that revealed something, in order. Frame k shows the text after k of them."""
        return sorted(set(self.revealed))

    def color(self, step: int) -> str:
        return ramp_color(step / max(self.n_steps - 1, 1))

    def caption(self, frame: int) -> str:
        """Says how far the text is in frame `frame`: steps, network evaluations, tokens."""
        reached = self.events[frame - 1] if frame else -1
        # Without caching, steps that reveal nothing are evaluated, too.
        evaluations = frame if self.evaluations == len(self.events) else reached + 1
        return (
            f"step {reached + 1} of {self.n_steps} \u00b7 {number_of(evaluations, 'network evaluation')} "
            f"\u00b7 {bisect_right(self.revealed, reached)} of {len(self.revealed)} tokens"
        )


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Lists the string that each token adds to the text: L ids to L strings, which together are the text.

    If several tokens spell one character, the last of them adds it, and the others add nothing. Special tokens add
    nothing, too.
    """
    distinct = list(set(ids))
    texts_of = partial(decode_after_text, tokenizer=tokenizer, skip_special_tokens=True)
    pieces = dict(zip(distinct, texts_of([[token] for token in distinct]), strict=True))
    texts: list[str] = []
    pending: list[int] = []  # tokens of a character that is not complete
    for index, token in enumerate(ids):
        piece = pieces[token]
        if pending or "\ufffd" in piece:
            pending.append(token)
            piece = texts_of([pending])[0]
            follows = index + 1 < len(ids) and "\ufffd" in pieces[ids[index + 1]]
            if "\ufffd" in piece and follows:
                piece = ""
            else:
                pending = []
        texts.append(piece)
    if ids:  # no text stands before the first
        texts[0] = texts[0] and decode_span(ids, 0, 1, tokenizer, skip_special_tokens=True)
    return texts


def ramp_color(fraction: float) -> str:
    """Returns the colour at `fraction` of the way from the first step (0) to the last (1), as "#rrggbb"."""
    place = min(max(fraction, 0.0), 1.0) * (len(RAMP) - 1)
    left = min(int(place), len(RAMP) - 2)
    return mix(RAMP[left], RAMP[left + 1], place - left)


def mix(first: str, second: str, share: float) -> str:
    """Returns the colour at `share` of the way from the first colour to the second."""
    channels = (
        round((1 - share) * int(first[at : at + 2], 16) + share * int(second[at : at + 2], 16)) for at in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def number_of(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# ---------------------------------------------------------------------------------------------------------
# HTML
# ---------------------------------------------------------------------------------------------------------


def to_fragment(denoisings: Sequence[Denoising], note: str = "", plays: bool = False) -> str:
    """Returns HTML for any page, which shows texts with one slider over the steps of all of them.

    The text is readable without the script and the style: a notebook that is not trusted runs neither. They change
    nothing else on the page. Text and background have the colours of the page, so a dark page stays dark.

    Args:
        note: a line below the texts.
        plays: whether the script starts with the masks and plays. Otherwise it shows the final text.
    """
    if len(denoisings) == 1:
        texts, whole = f'<div class="radd-text">{_marked(denoisings[0])}</div>', denoisings[0]
        captions = [whole.caption(frame) for frame in range(len(whole.events) + 1)]
    else:
        texts, whole = "".join(map(_numbered, range(1, len(denoisings) + 1), denoisings)), _together(denoisings)
        captions = [
            f"step {step + 1} of {whole.n_steps} \u00b7 {bisect_right(whole.revealed, step)} of "
            f"{len(whole.revealed)} tokens"
            for step in (-1, *whole.events)
        ]
    return _filled(
        FRAGMENT,
        steps=[-1, *whole.events],
        captions=html.escape(json.dumps(captions, ensure_ascii=False)),
        interval=milliseconds(len(captions)),
        plays=int(plays),
        texts=texts,
        last=len(captions) - 1,
        caption=captions[-1],
        note=f'<div class="radd-bar">{html.escape(note)}</div>' if note else "",
    )


def _filled(template: str, **parts: Any) -> str:
    return Template(template).substitute(parts, ink=INK, ramp=", ".join(RAMP))


def milliseconds(frames: int) -> int:
    """Returns how long to show a frame: 8 seconds divided by the number of frames, but 50 to 400 ms."""
    return min(max(8000 // frames, 50), 400)


def _together(denoisings: Sequence[Denoising]) -> Denoising:
    """Returns all tokens of several texts as if they were one, for the steps of the slider."""
    return Denoising(
        texts=tuple(text for each in denoisings for text in each.texts),
        steps=tuple(step for each in denoisings for step in each.steps),
        logprobs=tuple(logprob for each in denoisings for logprob in each.logprobs),
        n_steps=max(each.n_steps for each in denoisings),
        evaluations=max(each.evaluations for each in denoisings),
    )


def _numbered(number: int, denoising: Denoising) -> str:
    fact = (
        f"text {number} \u00b7 {len(denoising.revealed)} of {number_of(len(denoising.texts), 'token')} generated "
        f"\u00b7 {number_of(denoising.evaluations, 'network evaluation')}"
    )
    return f'<div class="radd-bar">{fact}</div><div class="radd-text">{_marked(denoising)}</div>'


def _marked(denoising: Denoising, frame: int | None = None) -> str:
    """Returns the text after `frame` events (None: all), each generated token on the colour of its step.

    A pointer over a token shows its step, and the probability that it was drawn with.
    """
    return "".join(_marked_tokens(denoising, len(denoising.events) if frame is None else frame))


def _marked_tokens(denoising: Denoising, frame: int) -> Iterator[str]:
    reached = denoising.events[frame - 1] if frame else -1
    for text, step, logprob in zip(denoising.texts, denoising.steps, denoising.logprobs, strict=True):
        shown = html.escape(text).replace("\n", f"<i>{RETURN}</i>\n" if step >= 0 else "\n")
        if step < 0:
            yield f"<span>{shown}</span>"
            continue
        # White space before a word stays outside its box: a line can break there.
        core = shown.lstrip(" ") or shown
        fact = f"step {step + 1}" + ("" if math.isnan(logprob) else f", probability {math.exp(logprob):.3g}")
        newest = step == reached and frame < len(denoising.events)
        state = ' class="masked"' if step > reached else ' class="newest"' if newest else ""
        yield (
            f'{shown[: len(shown) - len(core)]}<b{state} data-step="{step}" '
            f'style="background:{denoising.color(step)}" title="{fact}">{core}</b>'
        )


STYLE = """<style>
.radd-denoising { max-width: 46em; }
.radd-denoising .radd-text { white-space: pre-wrap; overflow-wrap: break-word; margin-bottom: .8em;
  font: 17px/1.75 Georgia, "Times New Roman", serif; }
.radd-denoising b { font-weight: normal; color: $ink; border-radius: 4px; padding: 1px 2px; margin: 0 -1px; }
.radd-denoising b.masked { color: transparent; background: #80808048 !important; user-select: none; }
.radd-denoising b.newest { color: inherit; background: none !important; outline: 2px solid currentColor;
  position: relative; z-index: 1; }
.radd-denoising i { font-style: normal; opacity: .6; }
.radd-denoising .radd-bar { font: 13px/1.6 system-ui, sans-serif; opacity: .85; display: flex; flex-wrap: wrap;
  gap: 0 1em; align-items: center; justify-content: space-between; }
.radd-denoising .radd-bar > span { white-space: nowrap; }
.radd-denoising .radd-bar[hidden] { display: none; }
.radd-denoising input { flex: 1; accent-color: currentColor; }
.radd-denoising button { font: inherit; color: inherit; background: none; width: 6em; padding: .2em 0; cursor: pointer;
  border: 1px solid #80808080; border-radius: 4px; }
.radd-denoising .radd-ramp { display: inline-block; width: 9em; height: .7em; border-radius: 4px;
  background: linear-gradient(90deg, $ramp); }
</style>"""

# MathJax, which notebooks run, leaves the class tex2jax_ignore alone: a text may hold dollar signs.
FRAGMENT = f"""<div class="radd-denoising tex2jax_ignore" data-steps="$steps" data-captions="$captions"
data-interval="$interval" data-plays="$plays">
{STYLE}
$texts
<div class="radd-bar" hidden><button type="button">Play</button><input type="range" min="0" max="$last" value="$last"
  aria-label="step"></div>
<div class="radd-bar"><output>$caption</output><span>first step <span class="radd-ramp"></span> last step</span></div>
$note
<script>
(() => {{
  for (const root of document.querySelectorAll(".radd-denoising:not([data-ready])")) {{
    root.dataset.ready = "1";
    const steps = JSON.parse(root.dataset.steps), captions = JSON.parse(root.dataset.captions);
    const last = steps.length - 1, slider = root.querySelector("input"), button = root.querySelector("button");
    const revealed = new Map(steps.map(step => [step, []]));  // the tokens of each step
    for (const token of root.querySelectorAll("b[data-step]")) revealed.get(Number(token.dataset.step)).push(token);
    let timer = null, shown = last;
    const show = frame => {{
      slider.value = frame;
      root.querySelector("output").textContent = captions[frame];
      // Only the tokens of the events between the two frames look otherwise; the newest of the old frame, too.
      for (let event = Math.min(frame, shown); event <= Math.max(frame, shown); event++) {{
        for (const token of revealed.get(steps[event])) {{
          token.classList.toggle("masked", event > frame);
          token.classList.toggle("newest", event === frame && frame < last);
        }}
      }}
      shown = frame;
    }};
    const pause = () => {{ clearInterval(timer); timer = null; button.textContent = "Play"; }};
    const play = () => {{
      if (shown === last) show(0);
      button.textContent = "Pause";
      timer = setInterval(() => {{ show(shown + 1); if (shown === last) pause(); }}, Number(root.dataset.interval));
    }};
    button.addEventListener("click", () => timer === null ? play() : pause());
    slider.addEventListener("input", () => {{ pause(); show(Number(slider.value)); }});
    root.querySelector(".radd-bar[hidden]").hidden = last === 0;
    if (root.dataset.plays === "1" && last) play();
  }}
}})();
</script>
</div>
"""


# ---------------------------------------------------------------------------------------------------------
# While it is generated
# ---------------------------------------------------------------------------------------------------------


def in_place(streamer: Any, canvas: Tensor, mask_token_id: int) -> Any:
    """Returns the streamer, or in a notebook [`InPlace`] in place of transformers' `TextDiffusionStreamer`.

    `TextDiffusionStreamer` moves the cursor of a terminal. A notebook would print the codes for that.

    Args:
        canvas: (1, L) ids before the first event.
    """
    if type(streamer) is TextDiffusionStreamer and in_notebook():
        return InPlace(streamer.tokenizer, canvas[0].tolist(), mask_token_id, streamer.sleep_time or 0.0)
    return streamer


def in_notebook() -> bool:
    """Tells whether this runs in a Jupyter kernel, which shows HTML and does not follow the codes of a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class InPlace:
    """Shows one text in the output of a notebook cell while `generate` fills it, and at the end with a slider.

    Fast events are shown together, unless there is a `pause` (in seconds) after each.
    """

    LATER = 2**62  # the event of a token that is not revealed yet

    def __init__(self, tokenizer: Any, ids: list[int], mask_token_id: int, pause: float = 0.0):
        self.tokenizer, self.ids, self.mask_token_id, self.pause = tokenizer, ids, mask_token_id, pause
        self.steps = [self.LATER if token == mask_token_id else -1 for token in ids]
        self.masks, self.events = self.steps.count(self.LATER), 0
        # It is not an import statement: transformers would ask every user of a checkpoint to install IPython.
        display = importlib.import_module("IPython.display").display
        self.handle = display(self._media(), raw=True, display_id=True)
        self.next_update = time.monotonic() + FRAME

    def put_draft(self, canvas: Tensor) -> None:
        """Shows the canvas (1, L) after one more event."""
        self.ids = canvas[0].tolist()
        for position, token in enumerate(self.ids):
            if self.steps[position] == self.LATER and token != self.mask_token_id:
                self.steps[position] = self.events
        self.events += 1
        if self.pause or time.monotonic() >= self.next_update:
            self.handle.update(self._media(), raw=True)
            time.sleep(self.pause)
            self.next_update = time.monotonic() + FRAME

    def put(self, ids: Tensor) -> None:
        pass  # the last draft was the same

    def end(self) -> None:
        self.handle.update(self._media(), raw=True)

    def _media(self) -> dict[str, str]:
        """Returns the text as it is now, by media type."""
        texts, masked = token_texts(self.ids, self.tokenizer), [step == self.LATER for step in self.steps]
        done = not any(masked)
        now = Denoising(
            tuple(GREY_BAR if hidden else text for text, hidden in zip(texts, masked, strict=True)),
            tuple(self.steps),
            logprobs=(math.nan,) * len(texts),
            n_steps=max(self.events if done else self.masks, 1),  # the number of events is known only at the end
            evaluations=self.events,
        )
        if done:
            return {"text/html": to_fragment([now]), "text/plain": "".join(texts)}
        written = f"{self.masks - sum(masked)} of {number_of(self.masks, 'token')}"
        status = f"{number_of(self.events, 'network evaluation')} \u00b7 {written}"
        text = _marked(now, frame=len(now.events) - 1)  # the last "event" stands for the masks that are left
        return {"text/html": _filled(DRAFT, text=text, status=status), "text/plain": status}


DRAFT = f"""<div class="radd-denoising tex2jax_ignore" data-ready="1">
{STYLE}
<div class="radd-text">$text</div>
<div class="radd-bar">$status</div>
</div>
"""

__all__ = ["Denoising", "InPlace", "in_notebook", "in_place", "ramp_color", "to_fragment", "token_texts"]
