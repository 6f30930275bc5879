# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of how a text came to be: each says what `generate` returned."""

import json
import re
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from radd_hf.app import visualize
from radd_hf.app.visualize import (
    MARGIN,
    MASK,
    OVERSAMPLING,
    PAPER,
    RAMP,
    RETURN,
    WIDTH,
    Denoising,
    plot_evaluations,
    plot_reveal_order,
    save_gif,
    save_picture,
    to_html,
    to_image,
    token_texts,
)
from radd_hf.noise_radd import expected_evaluations, get_noise
from support.pages import Page
from support.tokenizer_kinds import KINDS
from support.toys import random_model

STEPS = 16
TITLE = "A title & more"


@pytest.fixture(scope="module")
def output():
    """Two texts of 24 tokens, of which the first 4 were given."""
    model = random_model(vocab_size=300, max_position_embeddings=24)
    return model.generate(
        prefix=[40, 41, 42, 43],
        steps=STEPS,
        num_return_sequences=2,
        generator=torch.Generator().manual_seed(0),
        return_dict_in_generate=True,
    )


@pytest.fixture
def denoising(output, tiny_tokenizer) -> Denoising:
    return Denoising.of(output, tiny_tokenizer, n_steps=STEPS)


def made_of(*texts: str, steps: list[int] | None = None) -> Denoising:
    """A denoising with a token an event, by default all generated in the order of the text."""
    steps = list(range(len(texts))) if steps is None else steps
    events = len({step for step in steps if step >= 0})
    return Denoising(texts, tuple(steps), (0.0,) * len(texts), max(steps) + 1, events)


# ---------------------------------------------------------------------------------------------------------
# What happened
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Metaspace always", "Llama", "T5", "byte-level with a space"])
def test_a_token_of_any_tokenizer_keeps_its_space(kind):
    tokenizer = KINDS[kind]()
    ids = tokenizer("Emma was unable, on a day")["input_ids"]
    assert "".join(token_texts(ids, tokenizer)) == tokenizer.decode(ids)


def test_the_texts_of_the_tokens_make_up_the_text(tiny_tokenizer, output):
    for text in ("A na\u00efve man \u2014 \u65e5\u672c \U0001f642!\n\n  Two", ""):
        ids = tiny_tokenizer(text)["input_ids"]
        assert "".join(token_texts(ids, tiny_tokenizer)) == text
    for row in output.sequences.tolist():  # any ids, among them bytes that are no characters
        assert "".join(token_texts(row, tiny_tokenizer)) == tiny_tokenizer.decode(row, skip_special_tokens=True)


def test_a_character_of_several_tokens_is_the_last_ones(tiny_tokenizer):
    ids = tiny_tokenizer("a\u65e5b")["input_ids"]
    assert token_texts(ids, tiny_tokenizer) == ["a", "", "", "\u65e5", "b"]


def test_special_tokens_have_no_text(tiny_tokenizer):
    for special in tiny_tokenizer.all_special_ids:
        assert token_texts([special], tiny_tokenizer) == [""]


def test_a_denoising_is_the_row_of_the_output(output, tiny_tokenizer):
    for row in range(2):
        found = Denoising.of(output, tiny_tokenizer, row)
        assert found.steps == tuple(output.reveal_step[row].tolist())
        assert found.logprobs == tuple(output.token_logprobs[row].tolist())
        assert len(found.events) == found.evaluations == output.num_function_evaluations[row]
        assert found.n_steps == max(found.steps) + 1


def test_colours_run_from_the_first_step_to_the_last():
    text = made_of("a", "b", "c", steps=[0, 5, 10])
    assert [text.color(step) for step in (0, 4, 10)] == [RAMP[0], RAMP[2], RAMP[-1]]
    assert made_of("a").color(0) == RAMP[0]


def test_the_captions_count_steps_evaluations_and_tokens():
    four = made_of("a", "b", "c", "d", steps=[-1, 6, 2, 6])
    assert [four.caption(frame) for frame in range(3)] == [
        "step 0 of 7 \u00b7 0 network evaluations \u00b7 0 of 3 tokens",
        "step 3 of 7 \u00b7 1 network evaluation \u00b7 1 of 3 tokens",
        "step 7 of 7 \u00b7 2 network evaluations \u00b7 3 of 3 tokens",
    ]


def test_without_caching_the_captions_count_the_empty_steps():
    uncached = Denoising(("a", "b"), (2, 6), (0.0, 0.0), 8, evaluations=8)
    assert "3 network evaluations" in uncached.caption(1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"output": torch.zeros(2, 3)}, "output is a Tensor without reveal_step: pass"),
        ({"row": 2}, r"row=2 must lie in 0 \.\. 1"),
        ({"n_steps": 2}, r"n_steps=2 must be at least \d+"),
    ],
)
def test_what_is_no_denoising_is_refused(output, tiny_tokenizer, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Denoising.of(**{"output": output, "tokenizer": tiny_tokenizer} | arguments)


# ---------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_text_and_the_step_of_each_token(denoising):
    page = Page(to_html(denoising, TITLE))
    assert page.text.replace(RETURN, "") == "".join(denoising.texts)
    assert page.steps == [step for step in denoising.steps if step >= 0]


def test_the_page_needs_nothing_from_elsewhere(denoising):
    page = to_html(denoising, TITLE)
    assert not re.search(r"https?:|url\(|@import|<link|<img", page)
    assert not {"src", "href"} & {name for name, _ in Page(page).attributes}
    assert "<title>A title &amp; more</title>" in page


def test_a_text_cannot_become_part_of_the_page():
    page = to_html(made_of("<script>alert(1)</script>", ' "&$title'), "</title><b>")
    assert page.count("<script>") == 1
    assert page.count("</title>") == 1
    assert Page(page).text == '<script>alert(1)</script> "&$title'


def test_the_page_has_a_caption_for_every_event(denoising):
    attributes = dict(Page(to_html(denoising)).attributes)
    assert json.loads(attributes["data-steps"]) == [-1, *denoising.events]
    frames = range(len(denoising.events) + 1)
    assert json.loads(attributes["data-captions"]) == [denoising.caption(frame) for frame in frames]


# ---------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------


def ground(image: Image.Image, box: visualize.Box, scale: float) -> tuple[int, ...]:
    """The colour at the left end of a box, below its letters."""
    x, y = (place / OVERSAMPLING for place in (box.x, box.y))
    return image.getpixel((round(x + 1.5 * scale), round(y + 30 * scale)))


@pytest.mark.parametrize("frame", [0, 5, None])
def test_each_token_stands_on_the_colour_of_its_step(frame):
    steps = [-1, 7, 3, 3, 11, 0, -1, 9]
    eight = made_of("Given", " seven", " three", " words", " more", "\n", " given", " nine", steps=steps)
    image = to_image(eight, TITLE, frame, scale=2)
    events = eight.events if frame is None else eight.events[:frame]
    newest = None if frame is None or not events else events[-1]
    assert image.size[0] == 2 * WIDTH
    for box in visualize._Painter(eight, TITLE, 2, None).boxes:
        step = steps[box.index]
        expected = PAPER if step < 0 else eight.color(step) if step in events and step != newest else MASK
        if step < 0 or step != newest:
            assert ground(image, box, 2) == pytest.approx(ImageColor.getrgb(expected), abs=2), box


def test_the_newest_tokens_stand_out_until_the_last_frame():
    two = made_of("one", " two")
    box = visualize._Painter(two, "", 1, None).boxes[0]
    assert ground(to_image(two, frame=1, scale=1), box, 1) == pytest.approx(ImageColor.getrgb(visualize.NEWEST), abs=2)
    assert ground(to_image(two, frame=2, scale=1), box, 1) == pytest.approx(ImageColor.getrgb(two.color(0)), abs=2)


@pytest.mark.parametrize("texts", [[" word"] * 60, ["\u00fc"] * 200, [" a", "\n", "\n", "b\tc\r\nd"]])
def test_nothing_is_painted_beyond_the_margins(texts):
    painter = visualize._Painter(made_of(*texts), TITLE, 1, None)
    left, right = MARGIN * OVERSAMPLING, (WIDTH - MARGIN) * OVERSAMPLING
    assert min(box.x for box in painter.boxes) == left
    assert max(box.x + box.width for box in painter.boxes) <= right
    assert "".join(box.text for box in painter.boxes).count(RETURN) == "".join(texts).count("\n")


def test_a_word_of_several_tokens_is_not_parted_at_the_end_of_a_line():
    texts = [text for size in range(30) for text in (" " + "m" * (size % 7 + 1), "inter", "rupted")]
    painter = visualize._Painter(made_of(*texts), "", 1, None)
    lines = [box.y for box in painter.boxes]
    assert len(set(lines)) > 3
    assert lines[0::3] == lines[1::3] == lines[2::3]


def test_an_animation_has_a_frame_for_each_event_and_ends_as_the_picture(denoising, tmp_path):
    save_gif(denoising, tmp_path / "text.gif", TITLE, scale=1)
    with Image.open(tmp_path / "text.gif") as animation:
        assert animation.n_frames == len(denoising.events) + 1
        assert animation.info["loop"] == 0
        frames, durations = [], []
        for number in range(animation.n_frames):
            animation.seek(number)
            durations.append(animation.info["duration"])
            frames.append(np.asarray(animation.convert("RGB"), dtype=int))
    assert durations[0] == 1000
    assert durations[-1] == 4000
    for frame, number in ((frames[0], 0), (frames[5], 5), (frames[-1], None)):
        exact = np.asarray(to_image(denoising, TITLE, number, scale=1), dtype=int)
        assert np.abs(frame - exact).max(axis=2).mean() < 1
        assert (frame[0] == 255).all()  # paper stays paper
    title = [frame[: MARGIN + 20] for frame in frames]
    assert all(np.array_equal(part, title[0]) for part in title)  # what does not change does not flicker


def test_many_events_share_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(visualize, "MAX_FRAMES", 4)
    save_gif(made_of(*[" a"] * 10), tmp_path / "text.gif", scale=0.5)
    with Image.open(tmp_path / "text.gif") as animation:
        assert animation.n_frames == 5  # after 0, 3, 6, 9 and all 10


def test_an_animation_holds_few_frames_at_a_time(tmp_path, monkeypatch):
    painted, most = [], 0
    paint = visualize._Painter.paint

    def counting(self, *args, **kwargs):
        nonlocal most
        image = paint(self, *args, **kwargs)
        painted.append(weakref.ref(image))
        most = max(most, sum(each() is not None for each in painted))
        return image

    monkeypatch.setattr(visualize._Painter, "paint", counting)
    save_gif(made_of(*[" a"] * 40), tmp_path / "text.gif", scale=0.5)
    assert len(painted) == 41
    assert most <= 2


def test_every_frame_of_an_animation_is_the_picture_of_its_events(denoising, tmp_path):
    save_gif(denoising, tmp_path / "text.gif", scale=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette(visualize._palette())
    with Image.open(tmp_path / "text.gif") as animation:
        for number in range(len(denoising.events)):
            animation.seek(number)
            exact = to_image(denoising, frame=number, scale=1).quantize(palette=palette, dither=Image.Dither.NONE)
            assert np.array_equal(np.asarray(animation.convert("RGB")), np.asarray(exact.convert("RGB"))), number


def test_events_that_show_nothing_have_frames_of_their_own(tmp_path):
    save_gif(made_of("a", "", "", "b"), tmp_path / "text.gif", scale=0.5)
    with Image.open(tmp_path / "text.gif") as animation:
        assert animation.n_frames == 5


def test_the_palette_fits_a_gif():
    assert len(visualize._palette()) <= 3 * visualize.TRANSPARENT


def test_the_page_grows_with_its_tokens_and_not_with_their_square():
    few, many = (len(to_html(made_of(*[" a"] * number))) for number in (500, 2000))
    assert many < 4.3 * few


@pytest.mark.parametrize("frame", [-1, 3])
def test_a_frame_that_is_not_there_is_refused(frame):
    with pytest.raises(ValueError, match=rf"frame={frame} must lie in 0 \.\. 2"):
        to_image(made_of("a", "b"), frame=frame)


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def test_the_ending_of_the_name_says_which_picture(denoising, tmp_path):
    beginnings = {".html": b"<!DOCTYPE html>", ".gif": b"GIF89a", ".png": b"\x89PNG"}
    for ending, beginning in beginnings.items():
        assert save_picture(denoising, tmp_path / f"text{ending}").read_bytes().startswith(beginning)


def test_a_file_that_cannot_be_written_is_refused(denoising, tmp_path):
    with pytest.raises(ValueError, match=r"x\.bmp' must end in \.html or \.gif or \.png"):
        save_picture(denoising, tmp_path / "x.bmp")
    with pytest.raises(ValueError, match="there is no folder"):
        save_picture(denoising, tmp_path / "absent" / "x.png")


@pytest.mark.parametrize("package", ["matplotlib", "PIL"])
def test_the_page_needs_no_packages_and_the_images_name_theirs(denoising, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    save_picture(denoising, tmp_path / "text.html")
    with pytest.raises(ValueError, match=rf"{package} is missing\): pip install 'radd_hf\[viz\]'"):
        save_picture(denoising, tmp_path / "text.gif")
    with pytest.raises(ValueError, match="a plot needs matplotlib"):
        plot_reveal_order(torch.zeros(1, 2))


# ---------------------------------------------------------------------------------------------------------
# Plots
# ---------------------------------------------------------------------------------------------------------


def test_the_heat_map_shows_the_steps_and_leaves_out_what_was_given(output):
    axes = plot_reveal_order(output.reveal_step)
    shown, steps = axes.images[0].get_array(), output.reveal_step.numpy()
    assert np.array_equal(shown.mask, steps < 0)
    assert np.array_equal(shown.filled(-1), np.where(steps < 0, -1, steps))
    with pytest.raises(ValueError, match=r"reveal_step has shape \(24,\); it must be \(R, L\)"):
        plot_reveal_order(output.reveal_step[0])


@pytest.mark.parametrize("noise", ["loglinear", "geometric"])
def test_evaluations_stand_beside_their_expectation(noise):
    config = SimpleNamespace(
        noise_type=noise, noise_eps=1e-3, sigma_min=1e-4, sigma_max=20.0, max_position_embeddings=32
    )
    measured = {64: torch.tensor([20, 24]), 8: torch.tensor([8])}
    axes = plot_evaluations(measured, config, 20, "euler")
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    expected = [[steps, expected_evaluations(get_noise(config), "euler", steps, 20)] for steps in (8, 64)]
    assert curves["expected"] == expected
    assert curves["one a step (no caching)"] == [[8, 8], [64, 64]]
    assert [[8, 8], [64, 22]] in [line.get_xydata().tolist() for line in axes.lines]
    assert axes.get_title() == "evaluations, 20 masks"
    assert plot_evaluations(measured, config).get_title() == "evaluations, 32 masks"
    with pytest.raises(ValueError, match="measured is empty"):
        plot_evaluations({}, config)


def test_plots_are_drawn_where_one_says_and_leave_nothing_open(output):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert plot_reveal_order(output.reveal_step, axes) is axes
    plot_reveal_order(output.reveal_step)
    assert pyplot.get_fignums() == []
