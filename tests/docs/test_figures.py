"""The figures of the docs can be read: every axis has numbers, no text covers another, on light pages and on dark."""

import importlib.util
import itertools
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from transformers import AutoModel, AutoTokenizer

import benchmarks.__main__ as speed
import sudoku_figure
from benchmarks import generation_figure, plots
from radd_hf.evaluation.plots import quality_figure
from radd_hf.figure_style import DOTS_PER_INCH, LIGHT, THEMES, WIDTH, draw_themed, label_log
from radd_hf.hub.loading import load_model, load_tokenizer
from sudoku import Solver, read_puzzles
from support.paths import CHECKPOINT, ROOT, SUDOKU

FIGURES = ROOT / "docs" / "figures"
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]}
NAMES = ["generation", "generative_quality", "memory", "nfe", "partial_caching", "sudoku", "time"]
ALSO = "generative_quality without a judge model"
SHOWN = 700  # pixels: the width of a figure on a page

each_figure = pytest.mark.parametrize("name", [*NAMES, ALSO])
each_theme = pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])


@pytest.fixture(scope="module")
def drawings():
    """What draws each figure, as the commands of `make figures` do."""
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True)
    example = generation_figure.make_example(model, AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True))
    measured = generation_figure.measure_evaluations(generation_figure.GRID, rows=2)
    solver = Solver(load_model(str(SUDOKU), dtype="float32").eval(), load_tokenizer(str(SUDOKU)))
    grids = sudoku_figure.fill(solver, read_puzzles(sudoku_figure.PUZZLES)[0], seed=0)
    quality = json.loads((FIGURES / "generative_quality.json").read_text())
    return {
        **plots.recorded_figures(FIGURES),
        "generation": partial(generation_figure.generation_figure, example, measured),
        "sudoku": partial(sudoku_figure.sudoku_figure, grids),
        ALSO: partial(quality_figure, quality | {"judge": None}),
    }


@pytest.fixture
def draw(drawings):
    def draw_and_place(name: str, theme=LIGHT) -> Figure:
        figure = draw_themed(drawings[name], theme)
        FigureCanvasAgg(figure).draw()  # places all text
        return figure

    return draw_and_place


# ---------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------


def tick_labels(axis) -> list[Text]:
    """Returns the labels that are seen: visible ones, with a text, of ticks within the limits."""
    low, high = sorted(axis.get_view_interval())
    inside = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    labels = [label for tick in inside for label in (tick.label1, tick.label2)]  # on either side of the plot
    return [label for label in labels if label.get_visible() and label.get_text()]


def texts(figure: Figure) -> list[Text]:
    found = []
    for axes in figure.axes:
        found += [axes.title, *axes.texts]
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label, *tick_labels(axes.xaxis), *tick_labels(axes.yaxis)]
    return [text for text in found if text.get_text().strip()]


def legends(figure: Figure) -> list:
    return [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]


def axes_that_show(axes, axis_name: str) -> list:
    """Returns the panels that share an axis: one of them has the labels."""
    shared = axes.get_shared_x_axes() if axis_name == "xaxis" else axes.get_shared_y_axes()
    return shared.get_siblings(axes)


@each_figure
def test_every_axis_has_two_labelled_ticks_and_a_label(draw, name):
    checked = 0
    for axes in draw(name).axes:
        bar = axes.get_label() == "<colorbar>"
        if not axes.axison or (name == "sudoku" and not bar):  # a legend's panel, or a grid of digits
            continue
        for axis_name in ["yaxis"] if bar else ["xaxis", "yaxis"]:
            shown = [getattr(each, axis_name) for each in axes_that_show(axes, axis_name)]
            assert max(len(tick_labels(axis)) for axis in shown) >= 2, (axes.get_title(), axis_name)
            assert any(axis.label.get_text() for axis in shown), (axes.get_title(), axis_name)
            checked += 1
    assert checked


def boxes_of(figure: Figure) -> list[tuple[str, Bbox]]:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    return boxes + [("legend", legend.get_window_extent()) for legend in legends(figure)]


def covering(figure: Figure) -> list[tuple[str, str]]:
    """Returns the pairs of texts that overlap by more than a pixel."""
    pairs = itertools.combinations(boxes_of(figure), 2)
    return [(one, other) for (one, box), (other, beside) in pairs if box.padded(-0.5).overlaps(beside.padded(-0.5))]


@each_theme
@each_figure
def test_no_text_covers_another_or_leaves_the_figure(draw, name, theme):
    figure = draw(name, theme)
    assert len(boxes_of(figure)) > 10
    assert covering(figure) == []
    for text, box in boxes_of(figure):
        assert figure.bbox.contains(*box.min), text
        assert figure.bbox.contains(*box.max), text


@each_figure
def test_no_legend_covers_a_curve(draw, name):
    for axes in draw(name).axes:
        if axes.get_legend() is None:
            continue
        box = axes.get_legend().get_window_extent()
        for line in axes.lines:
            corners = line.get_transform().transform(line.get_xydata())
            for start, end in itertools.pairwise(corners):
                points = np.linspace(start, end, 50)
                assert not any(box.contains(*point) for point in points), line.get_label()


@each_figure
def test_every_letter_can_be_read_on_a_page(draw, name):
    figure = draw(name)
    letters = [*texts(figure), *(text for legend in legends(figure) for text in legend.get_texts())]
    pixels_a_point = SHOWN / figure.get_figwidth() / 72
    assert min(text.get_fontsize() for text in letters) * pixels_a_point >= 10


def test_a_text_that_covers_another_and_an_axis_without_numbers_are_found():
    """Plants both, as the figures had them before."""
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, 2], [34, 480])
    axes.set(yscale="log", xlabel="steps")
    axes.annotate("m=16, w=1", (1, 100))
    axes.annotate("m=16, w=2", (1.01, 101))
    FigureCanvasAgg(figure).draw()
    assert covering(figure) == [("m=16, w=1", "m=16, w=2")]
    assert len(tick_labels(axes.yaxis)) == 1
    label_log(axes.yaxis)
    assert len(tick_labels(axes.yaxis)) >= 2


def test_a_logarithmic_axis_has_two_to_six_numbers_at_any_range():
    rng, axes = np.random.default_rng(0), Figure().add_subplot(yscale="log")
    for decades in (0.01, 0.1, 0.5, 1, 3, 8) * 40:
        low = 10 ** rng.uniform(-6, 6)
        axes.set_ylim(low, low * 10 ** (decades * rng.uniform(0.5, 1)))
        label_log(axes.yaxis)
        labels = [label.get_text() for label in tick_labels(axes.yaxis)]
        assert 2 <= len(labels) <= 6, axes.get_ylim()


# ---------------------------------------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------------------------------------

# What the eye of a colour-blind reader makes of linear RGB (Machado et al. 2009, severity 1).
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Returns the contrast ratio of WCAG, 1 to 21."""
    low, high = sorted(float(TO_XYZ[1] @ linear(color)) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(color: str, vision: str) -> np.ndarray:
    seen = np.clip(np.array(VISIONS[vision]) @ linear(color), 0, 1)
    x, y, z = np.cbrt(TO_XYZ @ seen / TO_XYZ.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@each_theme
def test_text_and_curves_stand_out_from_the_page(theme):
    assert contrast(theme.ink, theme.ground) >= 7
    assert min(contrast(color, theme.ground) for color in (theme.faint, *theme.colors)) >= 3


@each_theme
@pytest.mark.parametrize("vision", VISIONS)
def test_colour_blind_readers_tell_every_two_curves_apart(theme, vision):
    for one, other in itertools.combinations(theme.colors, 2):
        assert np.linalg.norm(lab(one, vision) - lab(other, vision)) > 12, (one, other)


def test_two_colours_that_a_colour_blind_reader_confuses_are_found():
    vermilion, olive = "#d55e00", "#8a6d00"
    assert np.linalg.norm(lab(vermilion, "protanopia") - lab(olive, "protanopia")) < 12


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def test_every_figure_is_a_file_for_light_and_for_dark_pages():
    files = {path.stem for path in FIGURES.glob("*.png")}
    assert files == {f"{name}{theme.suffix}" for name in NAMES for theme in THEMES}
    for name, theme in itertools.product(NAMES, THEMES):
        with Image.open(FIGURES / f"{name}{theme.suffix}.png") as image:
            assert image.width == round(WIDTH * DOTS_PER_INCH)
            corner = "#{:02x}{:02x}{:02x}".format(*image.convert("RGB").getpixel((0, 0)))
            assert corner == theme.ground


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_both_files_of_a_figure_beside_each_other_and_says_which_command_drew_them(name):
    both = re.compile(
        rf"!\[([^\]]+)\]\(figures/{name}\.png#gh-light-mode-only\)\n!\[\1\]\(figures/{name}-dark\.png#gh-dark-mode-only\)\n\n"
        r"\*(?!\*)[^*]*?`(make figures|python [^`]+)`[^*]*\*\n"
    )
    assert any(both.search(text) for text in PAGES.values()), name


def test_every_figure_that_a_page_names_is_there_and_every_one_that_is_there_is_named():
    named = {file for text in PAGES.values() for file in re.findall(r"figures/([\w-]+\.(?:png|gif))", text)}
    assert named == {path.name for ending in ("png", "gif") for path in FIGURES.glob(f"*.{ending}")}


def test_the_figures_of_a_folder_of_results_are_drawn_into_it(tmp_path, capsys):
    shutil.copy(FIGURES / "partial_caching.json", tmp_path)
    plots.main(["--results", str(tmp_path)])
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["partial_caching-dark.png", "partial_caching.png"]
    assert capsys.readouterr().out.count("wrote") == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"results='.*empty' must be a folder with a result"):
        plots.main(["--results", str(tmp_path / "empty")])


def test_plots_without_matplotlib_are_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(speed, "COMMANDS", {})
    with pytest.raises(ValueError, match=r"plots='.*' needs matplotlib, which is not installed: pip install"):
        speed.main(["--plots", str(tmp_path)])
