# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of how a text came to be: which token was revealed when, and what it cost.

    output = model.generate(..., output_history=True, return_dict_in_generate=True)
    denoising = Denoising.of(output, tokenizer)
    save_picture(denoising, "text.html")             # a page that plays; .gif plays too; .png is its last frame
    plot_reveal_order(output.reveal_step)            # a heat map, a row for each text
    plot_evaluations({64: nfe, 128: ...}, config)    # network evaluations against steps, and their expectation

In absorbing diffusion a token is revealed once and then stays (arXiv:2406.03736, section 2.1). So the final text and
the step of each position are the whole story: frame k shows the tokens of the first k events, and masks elsewhere.

The page needs nothing but this package; GIF, PNG and plots need Pillow and matplotlib: `pip install 'radd_hf[viz]'`.

Shapes: R rows, L length.
"""

import html
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..figure_style import label_log, label_values
from ..noise_radd import expected_evaluations, get_noise
from ..text_radd import decode_after_text, decode_span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

FORMATS = (".html", ".gif", ".png")

# Colours from the first step to the last, each the background of near-black text; and those of the rest of a picture.
RAMP = ("#7d86e8", "#57b5e6", "#4cc9a9", "#a8cf5a", "#f4bd4f", "#f08a5d")
PAPER, INK, FAINT, MASK, NEWEST = "#ffffff", "#1d1f24", "#7b808c", "#e4e6eb", "#1d1f24"
RETURN = "\u21b5"  # a line break that the model wrote: it would not show otherwise


# ---------------------------------------------------------------------------------------------------------
# What happened
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denoising:
    """One text of `generate`, position by position.

    texts: what each token adds to the text. steps: the step that revealed it, -1 where the token was given.
    logprobs: of each token when it was drawn, in nats; 0 where given. n_steps: of the grid, or the events of a method
    without one. evaluations: NFE.
    """

    texts: tuple[str, ...]
    steps: tuple[int, ...]
    logprobs: tuple[float, ...]
    n_steps: int
    evaluations: int

    @classmethod
    def of(cls, output: Any, tokenizer: Any, row: int = 0, n_steps: int | None = None) -> "Denoising":
        """Row `row` of what `generate` returns with return_dict_in_generate=True; n_steps: of its grid.

        Raises:
            ValueError: if `output` lacks the steps, has no such row, or a step beyond `n_steps`.
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
        return cls(
            texts=tuple(token_texts(output.sequences[row].tolist(), tokenizer)),
            steps=tuple(steps),
            logprobs=tuple(output.token_logprobs[row].tolist()),
            n_steps=n_steps or max(last, 1),
            evaluations=int(output.num_function_evaluations[row]),
        )

    @cached_property
    def revealed(self) -> list[int]:
        """Lists the step of each generated token, in ascending order."""
        return sorted(step for step in self.steps if step >= 0)

    @cached_property
    def events(self) -> list[int]:
        """The steps that revealed something, in order. Frame k of a picture is the canvas after k of them."""
        return sorted(set(self.revealed))

    def color(self, step: int) -> str:
        return ramp_color(step / max(self.n_steps - 1, 1))

    def caption(self, frame: int) -> str:
        """Where frame `frame` stands."""
        reached = self.events[frame - 1] if frame else -1
        shown, generated = bisect_right(self.revealed, reached), len(self.revealed)
        # Without caching the empty steps are evaluated, too.
        evaluations = frame if self.evaluations == len(self.events) else reached + 1
        return (
            f"step {reached + 1} of {self.n_steps} \u00b7 {evaluations} network evaluation{'s' * (evaluations != 1)} "
            f"\u00b7 {shown} of {generated} tokens"
        )


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text: L ids to L strings, which together are the text.

    A character that several tokens spell is the last one's, and the others' strings are empty. Special tokens are, too.
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
    """The colour at `fraction` of the way from the first step (0) to the last (1), as "#rrggbb"."""
    place = min(max(fraction, 0.0), 1.0) * (len(RAMP) - 1)
    left = min(int(place), len(RAMP) - 2)
    return _mix(RAMP[left], RAMP[left + 1], place - left)


def _mix(first: str, second: str, share: float) -> str:
    channels = (
        round((1 - share) * int(first[at : at + 2], 16) + share * int(second[at : at + 2], 16)) for at in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def save_picture(denoising: Denoising, path: str | Path, title: str = "") -> Path:
    """Writes the picture that the name of `path` asks for: .html or .gif, which play, or .png, the last frame.

    Raises:
        ValueError: for any other ending, or where the packages for it are missing.
    """
    path = Path(path)
    check_picture(path)
    if path.suffix == ".html":
        path.write_text(to_html(denoising, title), encoding="utf-8")
    elif path.suffix == ".png":
        to_image(denoising, title).save(path)
    else:
        save_gif(denoising, path, title)
    return path


def check_picture(path: str | Path, formats: Sequence[str] = FORMATS) -> None:
    """Raises what [`save_picture`] would, but for a full disk; for asking before a long computation."""
    path = Path(path)
    if path.suffix not in formats:
        raise ValueError(f"path={str(path)!r} must end in {' or '.join(formats)}.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}.")
    if path.suffix != ".html":
        require_viz(f"path={str(path)!r}")


def require_viz(what: str) -> None:
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{what} needs matplotlib and Pillow ({error.name} is missing): pip install 'radd_hf[viz]'"
        ) from error


# ---------------------------------------------------------------------------------------------------------
# A page that plays
# ---------------------------------------------------------------------------------------------------------


def to_html(denoising: Denoising, title: str = "") -> str:
    """A page that needs nothing from elsewhere: the text at every event, a slider, a button to play.

    Hovering over a token shows its step and the probability it was drawn with.
    """
    spans = []
    for text, step, logprob in zip(denoising.texts, denoising.steps, denoising.logprobs, strict=True):
        shown = html.escape(text).replace("\n", f"<i>{RETURN}</i>\n" if step >= 0 else "\n")
        if step < 0:
            spans.append(f"<span>{shown}</span>")
            continue
        # White space before a word stays outside of its box, so that lines break there.
        core = shown.lstrip(" ") or shown
        fact = f"step {step + 1}, probability {math.exp(logprob):.3g}"
        spans.append(
            f'{shown[: len(shown) - len(core)]}<b data-step="{step}" style="--c:{denoising.color(step)}" '
            f'title="{fact}">{core}</b>'
        )
    frames = range(len(denoising.events) + 1)
    return Template(PAGE).substitute(
        title=html.escape(title or "RADD, masked diffusion"),
        text="".join(spans),
        steps=[-1, *denoising.events],
        captions=json.dumps([denoising.caption(frame) for frame in frames]),
        last=len(frames) - 1,
        interval=_milliseconds(len(frames)),
        ramp=", ".join(RAMP),
        paper=PAPER,
        ink=INK,
        faint=FAINT,
        mask=MASK,
    )


def _milliseconds(frames: int) -> int:
    """How long a frame is shown: the whole about eight seconds, but no frame too short or too long to see."""
    return min(max(8000 // frames, 50), 400)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --paper: $paper; --ink: $ink; --faint: $faint; --mask: $mask; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --ink: #e8e9ed; --faint: #8f94a1; --mask: #30343d; } }
body { background: var(--paper); color: var(--ink); max-width: 46em; margin: 2em auto; padding: 0 1em;
  font: 18px/1.75 Georgia, "Times New Roman", serif; }
h1 { font: 600 15px/1.4 system-ui, sans-serif; margin: 0 0 1.2em; }
#text { white-space: pre-wrap; overflow-wrap: break-word; }
b { font-weight: normal; color: $ink; background: var(--c); border-radius: 4px; padding: 1px 2px; margin: 0 -1px; }
b.masked { color: transparent; background: var(--mask); user-select: none; }
b.newest { color: var(--paper); background: var(--ink); }
i { font-style: normal; opacity: .6; }
#bar { font: 13px/1.4 system-ui, sans-serif; color: var(--faint); margin-top: 1.6em; }
#bar div { display: flex; gap: 1em; align-items: center; }
#bar input { flex: 1; accent-color: var(--ink); }
button { font: inherit; width: 6em; padding: .3em 0; cursor: pointer; }
#ramp { display: inline-block; width: 9em; height: .7em; border-radius: 4px;
  background: linear-gradient(90deg, $ramp); }
</style>
</head>
<body>
<h1>$title</h1>
<div id="text">$text</div>
<div id="bar">
<div><button id="play">Play</button><input id="frame" type="range" min="0" max="$last" value="$last"
  aria-label="event"></div>
<div style="justify-content: space-between"><output id="caption"></output>
<span>first step <span id="ramp"></span> last step</span></div>
</div>
<script>
const steps = $steps, captions = $captions;
const slider = document.getElementById("frame"), button = document.getElementById("play");
const revealed = new Map(steps.map(step => [step, []]));  // the tokens of each step
for (const token of document.querySelectorAll("b[data-step]")) revealed.get(Number(token.dataset.step)).push(token);
let timer = null, shown = $last;
function show(frame) {
  slider.value = frame;
  document.getElementById("caption").textContent = captions[frame];
  // Only the tokens of the events between the two frames look otherwise; the newest of the old frame, too.
  for (let event = Math.min(frame, shown); event <= Math.max(frame, shown); event++) {
    for (const token of revealed.get(steps[event])) {
      token.classList.toggle("masked", event > frame);
      token.classList.toggle("newest", event === frame && frame < $last);
    }
  }
  shown = frame;
}
function pause() { clearInterval(timer); timer = null; button.textContent = "Play"; }
function play() {
  if (Number(slider.value) === $last) show(0);
  button.textContent = "Pause";
  timer = setInterval(() => {
    show(Number(slider.value) + 1);
    if (Number(slider.value) === $last) pause();
  }, $interval);
}
button.addEventListener("click", () => timer === null ? play() : pause());
slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
show(0);
if ($last) play();
</script>
</body>
</html>
"""


# ---------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------

WIDTH, MARGIN, SIZE, LINE = 860, 32, 21, 36  # of an image, its border, its letters and its lines, in pixels
OVERSAMPLING = 2  # Pillow draws corners without smoothing them
MAX_FRAMES = 120
TRANSPARENT = 255  # index of a pixel that stays as it is from one frame to the next


@dataclass(frozen=True)
class Box:
    """A piece of text at its place, the top left corner of its line."""

    index: int  # of the token
    text: str
    x: float
    y: float
    width: float


def to_image(
    denoising: Denoising, title: str = "", frame: int | None = None, scale: float = 2, font: str | None = None
) -> "Image":
    """The canvas after `frame` events (all when None), the tokens on the colour of their step.

    Args:
        scale: pixels for each of the 860 of the width.
        font: a font file, for a script that DejaVu Serif lacks.
    """
    last = len(denoising.events)
    if frame is not None and not 0 <= frame <= last:
        raise ValueError(f"frame={frame} must lie in 0 .. {last}, the number of events.")
    return _Painter(denoising, title, scale, font).paint(last if frame is None else frame)


def save_gif(
    denoising: Denoising, path: str | Path, title: str = "", scale: float = 1.5, font: str | None = None
) -> None:
    """An animation of the events, a second of masks before and four of the text after; endless.

    More than 120 events are shown several at a time. A frame is written as soon as it is painted, so that the memory is
    that of a few frames.
    """
    painter, last = _Painter(denoising, title, scale, font), len(denoising.events)
    stride = max(math.ceil(last / MAX_FRAMES), 1)
    shown = [*range(0, last, stride), last]
    frames = (painter.paint(frame, since=max(frame - stride, 0)) for frame in shown)
    durations = [1000, *[_milliseconds(len(shown))] * (len(shown) - 2), 4000][: len(shown)]
    with Path(path).open("wb") as file:
        file.writelines(_encode_gif(frames, durations))


def _encode_gif(frames: Iterable["Image"], durations: Iterable[int]) -> Iterator[bytes]:
    """Yields the parts of an endless animation; Pillow itself would keep all frames to the end.

    After the first frame only the rectangle that changes is stored, transparent where it does not.

    Args:
        frames: of one size and colours of the [`_palette`]. durations: of each, in milliseconds.
    """
    from PIL import GifImagePlugin, Image, ImageChops

    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette())
    before = None
    for rgb, duration in zip(frames, durations, strict=True):
        frame = rgb.quantize(palette=palette, dither=Image.Dither.NONE)
        if before is None:
            yield from GifImagePlugin.getheader(frame.copy(), info={"loop": 0})[0]
            yield from GifImagePlugin.getdata(frame.copy(), duration=duration)
        else:
            changed = ImageChops.difference(frame, before).point(lambda index: 255 if index else 0, "L")
            box = changed.getbbox() or (0, 0, 1, 1)  # a frame has at least a pixel
            part = Image.new("P", (box[2] - box[0], box[3] - box[1]), TRANSPARENT)
            part.paste(frame.crop(box), mask=changed.crop(box))
            yield from GifImagePlugin.getdata(part, box[:2], duration=duration, transparency=TRANSPARENT)
        before = frame
    yield b";"


def _palette() -> list[int]:
    """Up to 255 colours, flat: every ground and what smooth letters make of it.

    One for all frames and for any text: with a palette chosen for each frame a still token flickers, and one chosen
    from some of them does not have each ground as it is.
    """
    ramp = [ramp_color(place / 31) for place in range(32)]
    letters = [_mix(ground, INK, share / 5) for ground in (*ramp, MASK) for share in range(6)]
    greys = [_mix(PAPER, ink, share / 10) for ink in (INK, FAINT) for share in range(11)]
    corners = [_mix(PAPER, ground, 0.5) for ground in (*ramp[::2], MASK)]
    colors = list(dict.fromkeys([*greys, *letters, *corners]))[:TRANSPARENT]
    return [int(color[at : at + 2], 16) for color in colors for at in (1, 3, 5)]


class _Painter:
    """Places each token where it stands in the final text, once; then draws frames."""

    def __init__(self, denoising: Denoising, title: str, scale: float, font: str | None):
        from matplotlib import font_manager
        from PIL import ImageFont

        if not denoising.texts:
            raise ValueError("denoising has no tokens.")
        self.denoising, self.title = denoising, title
        self.scale = scale = scale * OVERSAMPLING  # pixels drawn for each of the 860
        self.font, self.small, self.bold = (
            ImageFont.truetype(font or font_manager.findfont(name), round(size * scale))
            for name, size in (("DejaVu Serif", SIZE), ("DejaVu Sans", 13), ("DejaVu Sans:bold", 13))
        )
        self.boxes, bottom = self._place()
        self.size = (round(WIDTH * scale), round(bottom + (LINE + 1.5 * MARGIN) * scale))

    def _place(self) -> tuple[list[Box], float]:
        """The boxes, and where the text ends."""
        left, right, line = MARGIN * self.scale, (WIDTH - MARGIN) * self.scale, LINE * self.scale
        x, y = left, left + (line if self.title else 0)
        boxes: list[Box] = []
        for word in _words(self.denoising.texts):
            width = sum(self.font.getlength(text) for _, text in word if text != "\n")
            if x > left and x + width > right and word[0][1] != "\n":
                x, y = left, y + line
            for index, text in word:
                if text == "\n":
                    boxes.append(Box(index, RETURN, x, y, self.font.getlength(RETURN)))
                    x, y = left, y + line
                    continue
                core = text.lstrip(" ") or text
                x += 0 if x == left else self.font.getlength(text[: len(text) - len(core)])
                width = self.font.getlength(core)
                if x > left and x + width > right:  # a word that is longer than a line
                    x, y = left, y + line
                boxes.append(Box(index, core, x, y, width))
                x += width
        return boxes, y + line

    def paint(self, frame: int, since: int | None = None) -> "Image":
        """The canvas after `frame` events; those after the first `since` are the newest, the last one when None."""
        from PIL import Image, ImageDraw

        denoising, events, scale = self.denoising, self.denoising.events, self.scale
        since = max(frame - 1, 0) if since is None else since
        reached = events[frame - 1] if frame else -1
        before = events[since - 1] if since else -1
        image = Image.new("RGB", self.size, PAPER)
        draw = ImageDraw.Draw(image)
        if self.title:
            draw.text((MARGIN * scale, MARGIN * scale), self.title, font=self.bold, fill=INK)
        for box in self.boxes:
            step = denoising.steps[box.index]
            newest = before < step <= reached and frame < len(events)
            if step >= 0:
                fill = MASK if step > reached else NEWEST if newest else denoising.color(step)
                corners = (box.x - scale, box.y + 3 * scale, box.x + box.width + scale, box.y + (LINE - 3) * scale)
                draw.rounded_rectangle(corners, radius=4 * scale, fill=fill)
            elif box.text == RETURN:
                continue
            if step <= reached:
                ink = PAPER if newest else INK
                draw.text((box.x, box.y + LINE * scale / 2), box.text, font=self.font, fill=ink, anchor="lm")
        self._paint_legend(draw, frame)
        return image.reduce(OVERSAMPLING)

    def _paint_legend(self, draw: Any, frame: int) -> None:
        scale, (width, height) = self.scale, self.size
        y = height - (MARGIN + 2) * scale
        draw.text((MARGIN * scale, y), self.denoising.caption(frame), font=self.small, fill=FAINT, anchor="lm")
        right = width - MARGIN * scale
        draw.text((right, y), "last step", font=self.small, fill=FAINT, anchor="rm")
        right -= self.small.getlength("last step") + 8 * scale
        bar = 120 * scale
        for offset in range(round(bar)):
            x = right - bar + offset
            draw.line((x, y - 5 * scale, x, y + 5 * scale), fill=ramp_color(offset / bar))
        draw.text((right - bar - 8 * scale, y), "first step", font=self.small, fill=FAINT, anchor="rm")


def _words(texts: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Pieces (token, text) that a line break must not part; a line break in the text is a piece of its own."""
    words: list[list[tuple[int, str]]] = []
    for index, text in enumerate(texts):
        for part in re.split(r"(\n)", re.sub(r"[^\S\n]", " ", text)):
            if not part:
                continue
            begins = part[0].isspace() or not words or words[-1][-1][1] == "\n"
            if begins:
                words.append([])
            words[-1].append((index, part))
    return words


# ---------------------------------------------------------------------------------------------------------
# Plots
# ---------------------------------------------------------------------------------------------------------


def plot_reveal_order(reveal_step: Tensor, axes: "Axes | None" = None) -> "Axes":
    """A heat map of the step that revealed each position, grey where the token was given; reveal_step (R, L).

    Raises:
        ValueError: for a tensor of another shape, or without matplotlib.
    """
    if reveal_step.ndim != 2:
        raise ValueError(
            f"reveal_step has shape {tuple(reveal_step.shape)}; it must be (R, L), as generate returns it."
        )
    axes = _make_axes(axes, (9, 1.6 + 0.22 * min(len(reveal_step), 24)))
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("radd", RAMP).with_extremes(bad=MASK)
    steps = reveal_step.cpu().double()
    image = axes.imshow(
        steps.masked_fill(steps < 0, math.nan).numpy(), aspect="auto", cmap=colors, vmin=0, interpolation="nearest"
    )
    axes.figure.colorbar(image, ax=axes, label="step")
    axes.set(xlabel="position", ylabel="text", title="the step that revealed each token (grey: given)")
    if len(steps) <= 24:
        axes.set_yticks(range(len(steps)))
    return axes


def plot_evaluations(
    measured: Mapping[int, Tensor],
    config: Any,
    n_masked: int | None = None,
    method: str = "tweedie",
    axes: "Axes | None" = None,
    color: str = "C0",
) -> "Axes":
    """Network evaluations against the steps of the grid: measured, expected, and one a step.

    Args:
        measured: the steps of a grid to the `num_function_evaluations` (R,) of texts written with it. More than one
            text shows the standard error of the mean, too.
        config: the model's, for its noise.
        n_masked: masks of each text; the model's length when None.
        method: "tweedie" or "euler".

    Raises:
        ValueError: for no measurement, another method, or without matplotlib.
    """
    if not measured:
        raise ValueError(
            "measured is empty; it must map steps to evaluations, e.g. {64: output.num_function_evaluations}."
        )
    n_masked = n_masked or config.max_position_embeddings
    grid = sorted(measured)
    expected = [expected_evaluations(get_noise(config), method, steps, n_masked) for steps in grid]
    axes = _make_axes(axes, (6, 4.2))
    counts = [measured[steps].double() for steps in grid]
    errors = [float(count.std() / len(count) ** 0.5) if len(count) > 1 else 0.0 for count in counts]
    name = f"{config.noise_type} noise"
    axes.errorbar(
        grid, [float(c.mean()) for c in counts], yerr=errors, fmt="o", color=color, capsize=3, label=f"{name}, measured"
    )
    axes.plot(grid, expected, color=color, label="expected")
    axes.plot(grid, grid, ":", color="0.5", label="one a step (no caching)")
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="evaluations", title=f"evaluations, {n_masked} masks")
    label_values(axes.xaxis, grid)
    label_log(axes.yaxis)
    axes.legend(fontsize=8)
    return axes


def _make_axes(axes: "Axes | None", size: tuple[float, float]) -> "Axes":
    """Those given, or those of a figure of their own, without pyplot, which would keep it."""
    if axes is not None:
        return axes
    require_viz("a plot")
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").add_subplot()


def save_plot(axes: "Axes", path: str | Path) -> None:
    """The figure of a plot as a file of the format that the name says."""
    cast(Any, axes.figure).savefig(path, dpi=110, metadata={"Software": None})


__all__ = [
    "Denoising",
    "plot_evaluations",
    "plot_reveal_order",
    "save_gif",
    "save_picture",
    "save_plot",
    "to_html",
    "to_image",
    "token_texts",
]
