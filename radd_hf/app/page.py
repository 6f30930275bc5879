# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Lays out the page in the browser: its fields, its buttons, and what each button starts.

`live.py` and `boards.py` do the work of the buttons, `turns.py` decides which visitor has the model, and `web.py`
serves the page. `page.css` has its style, and `page.js` the functions that run in the browser.

The page needs gradio, which the extra `demo` installs.
"""

import contextlib
import html
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial, update_wrapper, wraps
from pathlib import Path
from typing import Any

from ..display_radd import number_of
from ..serving.asgi import visitor_at
from ..settings_radd import ADAPTIVE_ORDERS, GROUP_SCHEDULES, METHODS, ORDERS, TEXT_SETTINGS
from .boards import TITLES, checkpoint_beside, solve
from .live import (
    BLANKS,
    ENDS,
    FORMS,
    GIVEN_ALL_OTHERS,
    MOST_TEXTS,
    describe,
    fill,
    load_for_page,
    own_settings,
    score_text,
)
from .turns import Job, Stop, Turns

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it then reports nothing
# gradio also makes a table of the last calls after each call. These variables avoid that.
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**31)}
try:
    import gradio as gr
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    raise ModuleNotFoundError("the page needs gradio: pip install 'radd_hf[demo]'", name="gradio") from error

TITLE = "RADD: text by filling in masks"
INTRODUCTION = """
<header><h1>RADD</h1><nav aria-label="links">
<a href="https://arxiv.org/abs/2406.03736" target="_blank" rel="noopener">Paper</a>
<a href="https://github.com/ML-GSAI/RADD" target="_blank" rel="noopener">The authors' repository</a>
</nav></header>
<p>A language model that fills masks, in any order, with text on both sides if you like.
<span class="radd-mask"></span> is a mask: the model replaces it by a token that it expects there.</p>
"""
EXAMPLES = (
    "It was [MASK:6] of spring. Elizabeth had [MASK:8] with her sister, and was [MASK:7]; but Mr. Darcy [MASK:9], and "
    "she [MASK:9] think of him.",
    "It was [MASK:12] of spring",
    "She [MASK:3] the letter, and [MASK:14] to her sister.",
    "[MASK:24] said Elizabeth, [MASK:24]",
)
PASSAGE = "It was a very fine day, and every body was delighted with the prospect of walking to the sea."
FIRST_SEED = 96  # seed of the results that the page opens with; also the seed of the README's GIF
# By number of clues, from `examples/sudoku_puzzles.csv`.
PUZZLES = {
    "28 clues": "000003400700100280492700010000008000950400006041000320000040001083020060000301000",
    "34 clues": "730012900508769030106045070049203000010004600000091000080907000070006004300400200",
}

# Settings of events that change only the page: they do not wait for the runs.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_page(models: Sequence[str], any_model: bool = True, turns: Turns | None = None) -> gr.Blocks:
    """Builds the page without serving it. The page opens with results of the first model.

    Args:
        models: models that a visitor can choose.
        any_model: whether a visitor may name any other folder or repository, and a tokenizer.
        turns: decides which visitor has the model.
    """
    turns = turns or Turns()
    paths = {} if any_model else paths_of(models)
    sudoku = checkpoint_beside(models[0])
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(INTRODUCTION, elem_id="introduction")
        about = gr.HTML(describe(models[0], ""), elem_id="about")
        chosen = _make_model_fields(models, paths)
        with gr.Tab("Fill a text"):
            settings = _add_generation(turns, models[0], paths, chosen)
        if sudoku is not None:
            with gr.Tab("Sudoku"):
                _add_sudoku(turns, sudoku)
        with gr.Tab("Score a text"):
            _add_scoring(turns, paths, chosen)
        _add_models(turns, paths, chosen, about, settings)

        async def forget(request: gr.Request):
            turns.stop(session_of(request))

        page.unload(forget)
    return page


# ---------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------


def paths_of(models: Sequence[str]) -> dict[str, str]:
    """Returns the models by names for visitors. The names do not show the folders of the server."""
    short = Counter(Path(name).name for name in models)
    return {
        Path(name).name if short[Path(name).name] == 1 else f"{Path(name).name} ({number})": name
        for number, name in enumerate(models, 1)
    }


def at_path(run: Callable, paths: dict[str, str]) -> Callable:
    """Makes `run` accept a model's name for visitors instead of its path."""

    @wraps(run)
    def run_at_path(stop: Any, *, model: str, **fields: Any) -> Any:
        return run(stop, model=paths.get(model, model), **fields)

    return run_at_path


def _make_model_fields(models: Sequence[str], paths: dict[str, str]) -> dict[str, Any]:
    """Makes the fields that name a model, without placing them. `paths`: see [`_add_models`]."""
    any_model = not paths
    model = gr.Dropdown(
        [(name, name) for name in paths] or [(Path(path).name, path) for path in models],
        value=next(iter(paths), models[0]),
        label="Model",
        info="Choose a folder, or a repository of the Hub." if any_model else None,
        allow_custom_value=any_model,
        elem_id="model",
        render=False,
    )
    tokenizer = gr.Textbox(
        value="",
        label="Tokenizer",
        info="Empty: the model's own. The authors' models need gpt2.",
        elem_id="tokenizer",
        render=False,
    )
    return {"model": model, "tokenizer": tokenizer if any_model else gr.State("")}


def _add_models(
    turns: Turns, paths: dict[str, str], chosen: dict[str, Any], about: gr.HTML, settings: dict[str, Any]
) -> None:
    """Adds the choice of a model. Loading a model fills in the settings that are saved with it.

    paths: the models that a visitor may choose, by name; empty: any model.
    """
    with gr.Accordion("Another model", open=False, visible=not paths or len(paths) > 1), gr.Row():
        for field in chosen.values():
            if not field.is_rendered:
                field.render()
        choose = gr.Button("Load", scale=0, elem_id="load")

    def load(model: str, tokenizer: str) -> Iterator[dict]:
        """Yields the new values once. It runs in the thread of the run."""
        path = paths.get(model, model)
        text = describe(path, tokenizer)
        own = own_settings(load_for_page(path, tokenizer)[0])
        yield {about: text} | {field: gr.update(value=own[name]) for name, field in settings.items()}

    async def load_it(model, tokenizer, request: gr.Request):
        async with _turn(turns, "load", request) as job:
            async for before in turns.wait(job):
                yield {about: f"Waiting: {number_of(before, 'run')} before this one"}
            async for shown in turns.run(job, load(model, tokenizer)):
                yield shown

    outputs = [about, *settings.values()]
    choose.click(load_it, [*chosen.values()], outputs, concurrency_limit=None, api_visibility="private")


# ---------------------------------------------------------------------------------------------------------
# The tab that generates
# ---------------------------------------------------------------------------------------------------------


def _add_generation(turns: Turns, model: str, paths: dict[str, str], chosen: dict[str, Any]) -> dict[str, Any]:
    """Adds the tab. Returns the fields of the settings of `generate`."""
    network, _ = load_for_page(model, "")
    own = own_settings(network)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            fields = _add_text(network.config.max_position_embeddings)
            with gr.Row():
                texts = gr.Slider(1, MOST_TEXTS, 1, step=1, label="Texts", elem_id="texts")
                exact = gr.Checkbox(
                    False,
                    label="Exact sampling",
                    info="Draw from the network's whole distribution. Texts vary more and read less well.",
                    elem_id="exact",
                )
            buttons = _add_buttons("Generate", "fill")
            gr.Examples([[each] for each in EXAMPLES], [fields["text"]], label="Examples", api_visibility="private")
            settings, free = _add_settings(own, exact)
        with gr.Column(scale=6, min_width=320):
            opening: dict[str, Any] = {"model": model, "tokenizer": "", "form": BLANKS, "text": EXAMPLES[0]}
            opening |= {"prefix": "", "suffix": "", "length": None, "texts": 1, "seed": FIRST_SEED, "pause": 0}
            opening |= {"exact": False} | {name: own[name] for name in settings}
            page, told = _opening(fill(Stop(), **opening))
            canvas = gr.HTML(page, elem_id="canvas", min_height=120)
            line = gr.HTML(told, elem_id="line")
    fields |= chosen | settings | free | {"texts": texts, "exact": exact}
    _connect(turns, buttons, at_path(fill, paths), fields, [canvas, line])
    return settings


def _opening(run: Iterator[tuple[str, str]]) -> tuple[str, str]:
    """Returns the last results of a run, or an empty result and the reason if the model cannot do it."""
    try:
        *_, shown = run
        return shown
    except ValueError as error:
        return "", html.escape(str(error))


def _add_text(longest: int) -> dict[str, Any]:
    form = gr.Radio(FORMS, value=BLANKS, show_label=False, container=False, elem_id="form")
    with gr.Column() as blanks:
        text = gr.Textbox(
            EXAMPLES[0],
            label="Text",
            info="[MASK:12] is a blank of twelve tokens. A token is a short word or a part of one.",
            lines=3,
            elem_id="text",
        )
        with gr.Row(elem_id="blank"):
            insert = gr.Button("Insert a blank of", size="md", scale=0, min_width=160, elem_id="insert-blank")
            size = gr.Number(
                8,
                label="Tokens of the blank",
                show_label=False,
                container=False,
                precision=0,
                minimum=1,
                scale=0,
                min_width=80,
                elem_id="blank-size",
            )
            gr.HTML("tokens", elem_id="blank-unit")
        insert.click(None, size, None, js="size => { window.radd.insertBlank(size); return []; }")
    with gr.Column(visible=False) as ends:
        prefix = gr.Textbox("It was a very", label="Beginning", lines=2, elem_id="prefix")
        suffix = gr.Textbox(" of spring.", label="End", lines=2, elem_id="suffix")
        length = gr.Number(
            min(32, longest),
            label="Length",
            info="Tokens of the whole text.",
            precision=0,
            elem_id="length",
        )

    async def show_form(form):
        return gr.update(visible=form == BLANKS), gr.update(visible=form == ENDS)

    form.change(show_form, form, [blanks, ends], **AT_ONCE)
    return {"form": form, "text": text, "prefix": prefix, "suffix": suffix, "length": length}


# Settings of `generate` without a field in the list. The length is beside the text, and `exact` beside the button. A
# visitor can stop a run by hand, and watches the tokens come one after the other.
WITHOUT_FIELD = ("length", "exact", "speculate", "stop_on_eos", "max_time")


def _add_settings(own: dict[str, Any], exact: gr.Checkbox) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adds a field for each setting of `generate` that is not in WITHOUT_FIELD, and the fields "seed" and "pause".

    own: values that the page opens with. While `exact` is ticked, the settings that it replaces are hidden.
    """

    def named(name: str, info: str = "", **more: Any) -> dict[str, Any]:
        return {
            "value": own[name],
            "label": name.replace("_", " ").replace("top ", "top-").capitalize(),
            "info": info or sentence(TEXT_SETTINGS[name].help),
            "elem_id": name.replace("_", "-"),
        } | more

    adaptive = own["method"] == "ordered" and own["order"] in ADAPTIVE_ORDERS
    with gr.Accordion("Settings", open=False, elem_id="sampling"):
        with gr.Column(visible=True) as replaced:
            temperature = gr.Slider(0, 2, step=0.05, **named("temperature"))
            top_p = gr.Slider(0.01, 1, step=0.01, **named("top_p"))
            with gr.Row():
                method = gr.Dropdown(METHODS, **named("method"))
                order = gr.Dropdown(ORDERS, **named("order", visible=own["method"] == "ordered"))
                shown = own["method"] != "first_hitting"
                steps = gr.Number(
                    precision=0,
                    **named("steps", f"{sentence(TEXT_SETTINGS['steps'].help)} 0: the default.", visible=shown),
                )
            with gr.Row(visible=adaptive) as bounds:
                entropy_bound = gr.Number(**named("entropy_bound"))
                threshold = gr.Number(**named("confidence_threshold"))
            with gr.Row():
                top_k = gr.Number(precision=0, **named("top_k"))
                schedule = gr.Dropdown([("none", ""), *GROUP_SCHEDULES], **named("schedule"))
            with gr.Row():
                refresh = gr.Number(precision=0, **named("refresh_interval"))
                window = gr.Number(precision=0, **named("refresh_window"))
        pause = gr.Slider(
            0, 1, 0.1, step=0.05, label="Pause", info="Seconds between two network evaluations.", elem_id="pause"
        )
        seed = gr.Number(-1, label="Seed", info="-1: a new one each time.", precision=0, elem_id="seed")

    async def show_settings(method, order):
        adaptive = method == "ordered" and order in ADAPTIVE_ORDERS
        shown = method != "first_hitting", method == "ordered", adaptive
        return [gr.update(visible=each) for each in shown]

    async def show_replaced(exact):
        return gr.update(visible=not exact)

    gr.on([method.change, order.change], show_settings, [method, order], [steps, order, bounds], **AT_ONCE)
    exact.change(show_replaced, exact, replaced, **AT_ONCE)
    fields = {"method": method, "steps": steps, "order": order, "temperature": temperature, "top_k": top_k}
    fields |= {"entropy_bound": entropy_bound, "confidence_threshold": threshold, "schedule": schedule}
    fields |= {"top_p": top_p, "refresh_interval": refresh, "refresh_window": window}
    assert fields.keys() == TEXT_SETTINGS.keys() - set(WITHOUT_FIELD), "a setting of generate has no field"
    return fields, {"seed": seed, "pause": pause}


def sentence(help: str) -> str:
    """Returns a help text as a sentence."""
    return f"{help[0].upper()}{help[1:]}."


# ---------------------------------------------------------------------------------------------------------
# The other tabs
# ---------------------------------------------------------------------------------------------------------


def _add_sudoku(turns: Turns, checkpoint: str) -> None:
    first = next(iter(PUZZLES.values()))
    orders = [(title, order) for order, title in TITLES.items()]
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            puzzle = gr.Textbox(
                first,
                label="Puzzle",
                info="81 cells, row after row. 0 or . is an empty cell; spaces and line breaks are skipped.",
                lines=3,
                elem_id="puzzle",
            )
            gr.Examples(
                [[each] for each in PUZZLES.values()],
                [puzzle],
                label="Examples",
                example_labels=list(PUZZLES),
                api_visibility="private",
            )
            buttons = _add_buttons("Solve", "solve")
            with gr.Accordion("Settings", open=False, elem_id="sudoku-settings"):
                # One below the other: beside each other they are too narrow for their values.
                info = "Which empty cell is filled next."
                left = gr.Dropdown(orders, value="random", label="Order on the left", info=info, elem_id="left")
                right = gr.Dropdown(orders, value="confidence", label="Order on the right", info=info, elem_id="right")
                bound = gr.Number(
                    None,
                    label="Entropy bound",
                    info=f"{sentence(TEXT_SETTINGS['entropy_bound'].help)} Empty: one cell each. Try 0.01.",
                    elem_id="sudoku-bound",
                )
        with gr.Column(scale=7, min_width=320):
            given: dict[str, Any] = {"puzzle": first, "left": "random", "right": "confidence", "entropy_bound": None}
            page, told = _opening(solve(Stop(), model=checkpoint, seed=FIRST_SEED, **given))
            boards = gr.HTML(page, elem_id="boards", min_height=120)
            line = gr.HTML(told, elem_id="boards-line")
            gr.HTML(
                "The same network fills both boards, each cell with its likeliest digit. It learnt grids, not rules: "
                "nothing checks a digit, and no digit is taken back. The colour of a cell tells when it was filled, "
                "from first (blue) to last (red). A wrong digit is crossed out.",
                elem_id="boards-note",
            )
    fields = {"puzzle": puzzle, "left": left, "right": right, "entropy_bound": bound}
    _connect(turns, buttons, update_wrapper(partial(solve, model=checkpoint), solve), fields, [boards, line])


def _add_scoring(turns: Turns, paths: dict[str, str], chosen: dict[str, Any]) -> None:
    run = at_path(score_text, paths)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            text = gr.Textbox(PASSAGE, label="Text", lines=4, elem_id="passage")
            order = gr.Dropdown(
                [*ORDERS, GIVEN_ALL_OTHERS],
                label="Order",
                info="Each token is scored given those before it in this order.",
                elem_id="score-order",
            )
            buttons = _add_buttons("Score", "score_text")
        with gr.Column(scale=6, min_width=320):
            opening = {"model": chosen["model"].value, "tokenizer": "", "text": PASSAGE, "order": ORDERS[0]}
            page, told = _opening(run(Stop(), **opening))
            heat = gr.HTML(page, elem_id="scored", min_height=120)
            line = gr.HTML(told, elem_id="scored-line")
    _connect(turns, buttons, run, chosen | {"text": text, "order": order}, [heat, line])


# ---------------------------------------------------------------------------------------------------------
# Buttons and turns
# ---------------------------------------------------------------------------------------------------------


def _add_buttons(label: str, name: str) -> tuple[Any, Any]:
    with gr.Row():
        start = gr.Button(label, variant="primary", min_width=120, elem_id=name)
        stop = gr.Button("Stop", interactive=False, min_width=120, elem_id=f"stop-{name}")
    return start, stop


def _connect(turns: Turns, buttons: tuple[Any, Any], run: Callable, fields: dict[str, Any], outputs: list) -> None:
    """Connects the two buttons to `run`, which gets the values of the fields.

    Waiting and stopping are our own and not gradio's. So visitors take turns, and a stopped run shows how far it came.
    `outputs` show what `run` yields: the result, and a line about it. The line also says how many runs come before.
    """
    (start, stop), name, (result, line) = buttons, run.__name__, outputs

    async def go(values: dict, request: gr.Request):
        named = {key: values[field] for key, field in fields.items()}
        async with _turn(turns, name, request) as job:
            async for before in turns.wait(job):
                yield {line: f"Waiting: {number_of(before, 'run')} before this one"}
            async for shown in turns.run(job, run(job.stop, **named)):
                yield dict(zip(outputs, shown, strict=True))

    async def halt(request: gr.Request):
        turns.stop(session_of(request), name)

    # Coroutines need none of gradio's few threads.
    async def begin():
        return gr.update(interactive=False), gr.update(interactive=True)

    async def end():
        return gr.update(interactive=True), gr.update(interactive=False)

    begun = start.click(begin, None, [start, stop], **AT_ONCE)
    ended = begun.then(
        go,
        set(fields.values()),
        outputs,
        api_name=name,
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )
    # Not `then`, which gradio 6 does not trigger after an exception.
    ended.success(end, None, [start, stop], **AT_ONCE)
    ended.failure(end, None, [start, stop], **AT_ONCE)
    stop.click(halt, None, None, **AT_ONCE)
    # A phone shows only the fields. It scrolls to the result when the run begins, and again when the run ends.
    show = f"() => {{ window.radd.show('{result.elem_id}'); return []; }}"
    start.click(None, None, None, js=show)
    ended.success(None, None, None, js=show)


def session_of(request: gr.Request) -> str:
    return str(request.session_hash)


@contextlib.asynccontextmanager
async def _turn(turns: Turns, button: str, request: gr.Request) -> AsyncIterator[Job]:
    """Makes a job for a press of a button, and shows its errors."""
    address = visitor_at(request.client.host) if request.client else ""
    with _errors_shown():
        async with turns.job(session_of(request), address, button) as job:
            yield job


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """Shows a ValueError to the visitor instead of logging it. Escaping keeps its quotations from becoming HTML."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
