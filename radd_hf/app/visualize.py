# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws how a text was generated: when each token was revealed, and how many network evaluations it took.

    output = model.generate(..., output_history=True, return_dict_in_generate=True)
    denoising = Denoising.of(output, tokenizer)
    save_picture(denoising, "text.html")             # a page that plays; .gif plays too; .png is its last frame
    plot_reveal_order(output.reveal_step)            # a heat map, a row for each text
    plot_evaluations({64: nfe, 128: ...}, config)    # network evaluations against steps, and their expectation

An event is a network evaluation that reveals tokens. `Denoising` comes from `display_radd.py`; in a notebook it shows
itself. The page needs only this package. GIF, PNG and plots need Pillow and matplotlib: `pip install 'radd_hf[viz]'`.

Shapes: R rows, L length.
"""

import html
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..display_radd import INK, RAMP, RETURN, Denoising, milliseconds, mix, ramp_color, to_fragment, token_texts
from ..figure_style import label_log, label_values
from ..noise_radd import expected_evaluations, get_noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

FORMATS = (".html", ".gif", ".png")

# Colours of a picture, besides those of the steps.
PAPER, FAINT, MASK, NEWEST = "#ffffff", "#7b808c", "#e4e6eb", "#1d1f24"


def save_picture(denoising: Denoising, path: str | Path, title: str = "") -> Path:
    """Writes a picture in the format of the file's name: .html and .gif play, .png is the last frame.

    Raises:
        ValueError: for any other ending, or if the packages for it are missing.
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
    """Raises the errors of [`save_picture`], except for a full disk. Call it before a long computation."""
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
    """Returns a page in one file: the text after every event, a slider, a button to play.

    Pointing at a token shows its step and the probability with which it was drawn.
    """
    return Template(PAGE).substitute(
        title=html.escape(title or "RADD, masked diffusion"),
        text=to_fragment([denoising], plays=True),
        paper=PAPER,
        ink=INK,
    )


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; background: $paper; color: $ink; }
@media (prefers-color-scheme: dark) { :root { background: #16181d; color: #e8e9ed; } }
body { max-width: 46em; margin: 2em auto; padding: 0 1em; }
h1 { font: 600 15px/1.4 system-ui, sans-serif; margin: 0 0 1.2em; }
</style>
</head>
<body>
<h1>$title</h1>
$text</body>
</html>
"""


# ---------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------

WIDTH, MARGIN, SIZE, LINE = 860, 32, 21, 36  # pixels: width of an image, its margin, size of letters, height of lines
OVERSAMPLING = 2  # Pillow draws corners without smoothing them
MAX_FRAMES = 120
TRANSPARENT = 255  # index of a pixel that does not change from one frame to the next


@dataclass(frozen=True)
class Box:
    """Holds a piece of text and its place, the top left corner of its line."""

    index: int  # of the token
    text: str
    x: float
    y: float
    width: float


def to_image(
    denoising: Denoising, title: str = "", frame: int | None = None, scale: float = 2, font: str | None = None
) -> "Image":
    """Draws the text after `frame` events (None: all), with each generated token on the colour of its step.

    Args:
        scale: factor of the size; at 1 the image is 860 pixels wide.
        font: a font file, for a script that DejaVu Serif lacks.
    """
    last = len(denoising.events)
    if frame is not None and not 0 <= frame <= last:
        raise ValueError(f"frame={frame} must lie in 0 .. {last}, the number of events.")
    return _Painter(denoising, title, scale, font).paint(last if frame is None else frame)


def save_gif(
    denoising: Denoising, path: str | Path, title: str = "", scale: float = 1.5, font: str | None = None
) -> None:
    """Writes an endless animation: a second of masks, then the events, then four seconds of the final text.

    If there are more than 120 events, a frame shows several. Each frame is written as soon as it is painted, so the
    memory holds only a few.
    """
    painter, last = _Painter(denoising, title, scale, font), len(denoising.events)
    stride = max(math.ceil(last / MAX_FRAMES), 1)
    shown = [*range(0, last, stride), last]
    frames = (painter.paint(frame, since=max(frame - stride, 0)) for frame in shown)
    durations = [1000, *[milliseconds(len(shown))] * (len(shown) - 2), 4000][: len(shown)]
    with Path(path).open("wb") as file:
        file.writelines(_encode_gif(frames, durations))


def _encode_gif(frames: Iterable["Image"], durations: Iterable[int]) -> Iterator[bytes]:
    """Yields the parts of an endless animation. Pillow's own writer would keep all frames in memory.

    Each frame after the first stores only the rectangle that changes, with unchanged pixels transparent.

    Args:
        frames: images of one size, in colours of the [`_palette`]. durations: milliseconds of each frame.
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
    """Lists the red, green and blue values of up to 255 colours: each background, and its mixtures with letters.

    All frames of every text share this palette. With a palette for each frame, unchanged tokens would flicker. A
    palette from a few frames would lack some backgrounds.
    """
    ramp = [ramp_color(place / 31) for place in range(32)]
    letters = [mix(ground, INK, share / 5) for ground in (*ramp, MASK) for share in range(6)]
    greys = [mix(PAPER, ink, share / 10) for ink in (INK, FAINT) for share in range(11)]
    corners = [mix(PAPER, ground, 0.5) for ground in (*ramp[::2], MASK)]
    colors = list(dict.fromkeys([*greys, *letters, *corners]))[:TRANSPARENT]
    return [int(color[at : at + 2], 16) for color in colors for at in (1, 3, 5)]


class _Painter:
    """Draws frames. It places each token once, where it stands in the final text."""

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
        """Returns the boxes, and the height at which the text ends."""
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
        """Draws the text after `frame` events. Tokens of the events after `since` are marked; None: of the last one."""
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
    """Groups pieces (token, text) that stay on one line. A line break in the text is a group of its own."""
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
    """Draws a heat map of the step that revealed each position. Given tokens are grey.

    Args:
        reveal_step: (R, L), as `generate` returns it.

    Raises:
        ValueError: for a tensor of another shape, or if matplotlib is missing.
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
    """Plots network evaluations against the steps of the time grid: measured, expected, and one per step.

    Args:
        measured: for each number of steps the `num_function_evaluations` (R,) of texts generated with it. With more
            than one text the plot also shows the standard error of the mean.
        config: configuration of the model, for its noise.
        n_masked: masks of each text; None: the model's length.
        method: "tweedie" or "euler".

    Raises:
        ValueError: for no measurement, for another method, or if matplotlib is missing.
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
    """Returns the given axes, or new ones of a new figure. pyplot would keep the figure, so it is not used."""
    if axes is not None:
        return axes
    require_viz("a plot")
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").add_subplot()


def save_plot(axes: "Axes", path: str | Path) -> None:
    """Writes the figure of a plot to a file, in the format that its name says."""
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
