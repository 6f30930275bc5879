# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The web page on which a model writes: how it looks, and how it is served.

What it does is in `live.py`, who has the model when in `turns.py`, what a request may ask for in `gate.py`.

It needs gradio, the extra `demo`.
"""

import argparse
import contextlib
import html
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

from ..endings import note
from ..hub.runs import newest_model
from ..options import OneLineParser
from ..serving.asgi import is_loopback, visitor_at
from ..settings_radd import ADAPTIVE_ORDERS, GROUP_SCHEDULES, METHODS, ORDERS, TEXT_SETTINGS
from .gate import CONNECTIONS, Gate
from .live import BLANKS, ENDS, FORMS, GIVEN_ALL_OTHERS, describe, judge, load_for_page, number_of, write
from .turns import Job, Limits, Turns

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: nothing is reported to anybody
# Nor is a table of the last calls made anew after each of them.
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**31)}
try:
    import gradio as gr
    from starlette.middleware import Middleware
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    raise ModuleNotFoundError("the page needs gradio: pip install 'radd_hf[demo]'", name="gradio") from error

TITLE = "RADD: text by filling in masks"
INTRODUCTION = """
<h1>RADD</h1>
<p>A language model that writes by filling in masks, in any order, with text on both sides if you like.
<span class="radd-mask"></span> is a mask: it becomes what the model expects there, given all that is visible.</p>
"""
EXAMPLES = (
    "It was [MASK:12] of spring",
    "She [MASK:3] the letter, and [MASK:14] to her sister.",
    "[MASK:24] said Elizabeth, [MASK:24]",
)
PASSAGE = "It was a very fine day, and every body was delighted with the prospect of walking to the sea."

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#introduction h1 { font-size: 1.9rem; margin: 0; letter-spacing: .02em; }
#introduction p { color: var(--body-text-color-subdued); margin: .1rem 0 0; max-width: 46rem; }
#canvas, #heat, #judged { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 1rem 1.2rem;
    background: var(--block-background-fill); }
.radd-text { font: 1.2rem/1.85 Georgia, "Times New Roman", "DejaVu Serif", serif; white-space: pre-wrap;
    overflow-wrap: anywhere; color: var(--body-text-color); }
.radd-mask { display: inline-block; width: 1.7em; height: .95em; margin: 0 .12em; border-radius: 3px;
    vertical-align: -.12em; background: var(--body-text-color-subdued); opacity: .35; }
.radd-written { border-radius: 3px; background: rgba(20, 184, 166, .16); }
.radd-fresh { background: rgba(245, 158, 11, .6); }
#line, #judged-line, #about { color: var(--body-text-color-subdued); font-size: .92rem; min-height: 1.5em; }
.radd-map { position: relative; padding-bottom: 2rem; }
.radd-heat { border-radius: 3px; background: rgba(225, 29, 72, calc(var(--heat) * .72)); outline: none; }
.radd-heat:hover, .radd-heat:focus { box-shadow: 0 0 0 2px var(--color-accent); }
.radd-heat:hover::after, .radd-heat:focus::after { content: attr(data-note); position: absolute; left: 0; bottom: 0;
    font: .9rem/1.5 system-ui, sans-serif; color: var(--body-text-color); }
.radd-legend { color: var(--body-text-color-subdued); font-size: .85rem; }
.radd-scale { display: inline-block; width: 5rem; height: .7em; border-radius: 3px; margin: 0 .3em;
    background: linear-gradient(to right, rgba(225, 29, 72, 0), rgba(225, 29, 72, .72));
    border: 1px solid var(--border-color-primary); }
"""


def build_page(models: Sequence[str], any_model: bool = True, turns: Turns | None = None) -> gr.Blocks:
    """The page, not yet served.

    Args:
        models: to choose from; the first is what the page begins with.
        any_model: whether a visitor may name any other folder or repository, and a tokenizer.
        turns: who has the model when.
    """
    turns = turns or Turns()
    longest = load_for_page(models[0], "")[0].config.max_position_embeddings
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(INTRODUCTION, elem_id="introduction")
        paths = {} if any_model else paths_of(models)
        chosen = _add_models(turns, models, paths)
        with gr.Tab("Write"):
            fields = chosen | _add_sampling()
            with gr.Row(equal_height=False):
                with gr.Column(scale=5, min_width=320):
                    fields |= _add_text(longest)
                    buttons = _add_buttons("Write", "write")
                with gr.Column(scale=6, min_width=320):
                    canvas = gr.HTML(elem_id="canvas", min_height=120)
                    line = gr.HTML(elem_id="line")
                    gr.Markdown("#### How unlikely each word was when it was written")
                    heat = gr.HTML(elem_id="heat", min_height=60)
            _connect(turns, buttons, at_path(write, paths), fields, [canvas, line, heat])
        with gr.Tab("Likelihood of a text"), gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                text = gr.Textbox(PASSAGE, label="Text", lines=4, elem_id="passage")
                order = gr.Dropdown([*ORDERS, GIVEN_ALL_OTHERS], label="Order", elem_id="judge-order")
                buttons = _add_buttons("Score", "judge")
            with gr.Column(scale=6, min_width=320):
                heat = gr.HTML(elem_id="judged", min_height=120)
                line = gr.HTML(elem_id="judged-line")
            _connect(turns, buttons, at_path(judge, paths), chosen | {"text": text, "order": order}, [heat, line])

        async def forget(request: gr.Request):
            turns.stop(session_of(request))

        page.unload(forget)
    return page


def paths_of(models: Sequence[str]) -> dict[str, str]:
    """The models by names for visitors, who need not know the folders of the server."""
    short = Counter(Path(name).name for name in models)
    return {
        Path(name).name if short[Path(name).name] == 1 else f"{Path(name).name} ({number})": name
        for number, name in enumerate(models, 1)
    }


def at_path(run: Callable, paths: dict[str, str]) -> Callable:
    """`run` with the model that a name stands for."""

    @wraps(run)
    def run_at_path(stop: Any, *, model: str, **fields: Any) -> Any:
        return run(stop, model=paths.get(model, model), **fields)

    return run_at_path


def _add_models(turns: Turns, models: Sequence[str], paths: dict[str, str]) -> dict[str, Any]:
    """`paths`: the models by name, of which alone a visitor may choose; empty: any model."""
    any_model = not paths
    with gr.Accordion("Model", open=False):
        with gr.Row():
            model = gr.Dropdown(
                [(name, name) for name in paths] or [(Path(path).name, path) for path in models],
                value=next(iter(paths), models[0]),
                label="Model",
                info="a folder, or a repository of the Hub" if any_model else None,
                allow_custom_value=any_model,
                elem_id="model",
            )
            if any_model:
                tokenizer = gr.Textbox(
                    value="",
                    label="Tokenizer",
                    info="empty: the model's; gpt2 for the authors' releases",
                    elem_id="tokenizer",
                )
            else:
                tokenizer = gr.State("")
            choose = gr.Button("Load", scale=0, elem_id="load")
        about = gr.HTML(describe(models[0], ""), elem_id="about")

    async def load_it(model, tokenizer, request: gr.Request):
        async with _turn(turns, "load", request) as job:
            async for before in turns.wait(job):
                yield f"Waiting: {number_of(before, 'run')} before this one"
            about_it = (describe(paths.get(model, model), tokenizer) for _ in range(1))  # in the thread of the run
            async for shown in turns.run(job, about_it):
                yield shown

    choose.click(load_it, [model, tokenizer], about, concurrency_limit=None, api_visibility="private")
    return {"model": model, "tokenizer": tokenizer}


def _add_text(longest: int) -> dict[str, Any]:
    form = gr.Radio(FORMS, value=BLANKS, show_label=False, container=False, elem_id="form")
    with gr.Column() as blanks:
        text = gr.Textbox(
            EXAMPLES[0],
            label="Text",
            info="[MASK:12] is a blank of twelve tokens; a backslash before it makes it text",
            lines=3,
            elem_id="text",
        )
        gr.Examples([[example] for example in EXAMPLES], [text], label="Try", api_visibility="private")
    with gr.Column(visible=False) as ends:
        prefix = gr.Textbox("It was a very", label="Beginning", lines=2, elem_id="prefix")
        suffix = gr.Textbox(" of spring.", label="End", lines=2, elem_id="suffix")
        length = gr.Number(min(32, longest), label="Tokens in all", precision=0, elem_id="length")

    async def show_form(form):
        return gr.update(visible=form == BLANKS), gr.update(visible=form == ENDS)

    form.change(
        show_form,
        form,
        [blanks, ends],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return {"form": form, "text": text, "prefix": prefix, "suffix": suffix, "length": length}


# Settings of `generate` that have no field: the length stands with the text, the reader can stop a run, and visitors
# watch tokens come one after the other.
WITHOUT_FIELD = ("length", "exact", "speculate", "stop_on_eos", "max_time")


def _add_sampling() -> dict[str, Any]:
    """The fields "seed" and "pause", and one for each setting of `generate` that is not in WITHOUT_FIELD."""

    def number(name: str, value: float | None, info: str = "") -> Any:
        """A whole number; its text is that of the setting."""
        label, elem_id = name.replace("_", " ").capitalize(), name.replace("_", "-")
        return gr.Number(value, label=label, info=info or TEXT_SETTINGS[name].help, precision=0, elem_id=elem_id)

    with gr.Accordion("How it writes", open=False, elem_id="sampling"):
        with gr.Row():
            method = gr.Dropdown(METHODS, value="tweedie", label="Method", elem_id="method")
            schedule = gr.Dropdown(
                [("by the method", ""), *GROUP_SCHEDULES], value="", label="Tokens an event", elem_id="schedule"
            )
            steps = number("steps", 0, "0: as many as tokens")
            order = gr.Dropdown(ORDERS, value="forward", label="Order", visible=False, elem_id="order")
            seed = gr.Number(-1, label="Seed", info="-1: a new one each time", precision=0, elem_id="seed")
        with gr.Row():
            temperature = gr.Slider(
                0, 2, 0.7, step=0.05, label="Temperature", info=TEXT_SETTINGS["temperature"].help, elem_id="temperature"
            )
            top_p = gr.Slider(0.01, 1, 1, step=0.01, label="Top-p", info=TEXT_SETTINGS["top_p"].help, elem_id="top-p")
            top_k = number("top_k", 0)
        with gr.Row(visible=False) as bounds:
            entropy_bound, threshold = (
                gr.Number(None, label=label, info=TEXT_SETTINGS[name].help, elem_id=name.replace("_", "-"))
                for name, label in (
                    ("entropy_bound", "Entropy bound"),
                    ("confidence_threshold", "Confidence threshold"),
                )
            )
        with gr.Row():
            refresh = number("refresh_interval", 1)
            window = number("refresh_window", TEXT_SETTINGS["refresh_window"].default)
            pause = gr.Slider(0, 1, 0.1, step=0.05, label="Seconds between events", elem_id="pause")

    async def show_settings(method, order):
        adaptive = method == "ordered" and order in ADAPTIVE_ORDERS
        shown = method != "first_hitting", method == "ordered", adaptive
        return [gr.update(visible=each) for each in shown]

    gr.on(
        [method.change, order.change],
        show_settings,
        [method, order],
        [steps, order, bounds],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    fields = {"method": method, "steps": steps, "order": order, "temperature": temperature, "top_k": top_k}
    fields |= {"entropy_bound": entropy_bound, "confidence_threshold": threshold, "schedule": schedule}
    fields |= {"top_p": top_p, "refresh_interval": refresh, "refresh_window": window}
    assert fields.keys() == TEXT_SETTINGS.keys() - set(WITHOUT_FIELD), "a setting of generate has no field"
    return fields | {"seed": seed, "pause": pause}


def _add_buttons(label: str, name: str) -> tuple[Any, Any]:
    with gr.Row():
        start = gr.Button(label, variant="primary", min_width=120, elem_id=name)
        stop = gr.Button("Stop", interactive=False, min_width=120, elem_id=f"stop-{name}")
    return start, stop


def _connect(turns: Turns, buttons: tuple[Any, Any], run: Callable, fields: dict[str, Any], outputs: list) -> None:
    """`run` on the values of the fields, between the two buttons.

    Waiting and stopping are our own and not gradio's, so that visitors take turns and the page shows how far a run
    came. `outputs` are what `run` yields; while it waits, the line among them says so.
    """
    (start, stop), name = buttons, run.__name__
    line = next(output for output in outputs if str(output.elem_id).endswith("line"))

    async def go(values: dict, request: gr.Request):
        named = {key: values[field] for key, field in fields.items()}
        async with _turn(turns, name, request) as job:
            async for before in turns.wait(job):
                yield {line: f"Waiting: {number_of(before, 'run')} before this one"}
            async for shown in turns.run(job, run(job.stop, **named)):
                yield dict(zip(outputs, shown, strict=True))

    async def halt(request: gr.Request):
        turns.stop(session_of(request), name)

    # Coroutines need no thread, of which gradio has a few.
    async def begin():
        return gr.update(interactive=False), gr.update(interactive=True)

    async def end():
        return gr.update(interactive=True), gr.update(interactive=False)

    at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    begun = start.click(begin, None, [start, stop], **at_once)
    ended = begun.then(
        go, set(fields.values()), outputs, concurrency_limit=None, show_progress="hidden", api_visibility="private"
    )
    # Not `then`, which gradio 6 does not trigger where the run has raised.
    ended.success(end, None, [start, stop], **at_once)
    ended.failure(end, None, [start, stop], **at_once)
    stop.click(halt, None, None, **at_once)


class Kept:
    """Is what gradio keeps for each session: answers until they are read, events, values of the page.

    gradio drops some of it after an hour, and the rest never. Its stores are no interface of gradio's, so they are
    looked up here alone, and a release that renamed one fails as the page begins.
    """

    def __init__(self, page: gr.Blocks):
        self.page, self.queue = page, page._queue
        self.stores = [self.queue.pending_messages_per_session, self.queue.pending_event_ids_session]

    def unread(self, session: str) -> int | None:
        if session not in self.queue.pending_messages_per_session:
            return None
        return len(self.queue.pending_event_ids_session.get(session, ()))

    async def forget(self, session: str) -> None:
        await self.queue.clean_events(session_hash=session)  # a run of the session writes to nobody
        for store in (*self.stores, self.page.state_holder.session_data, self.page.state_holder.time_last_used):
            store.pop(session, None)


def checks_of(page: gr.Blocks) -> dict[int, Callable[[list], None]]:
    """For each function of a page: what raises an exception for inputs that gradio would fail at, and log."""

    def check(inputs: Sequence[Any], data: list) -> None:
        if len(data) != len(inputs):
            raise ValueError(f"{len(data)} inputs must be {len(inputs)}")
        for component, value in zip(inputs, data, strict=True):
            if not isinstance(component, gr.State):
                component.preprocess(value)

    return {index: partial(check, function.inputs) for index, function in page.fns.items()}


def session_of(request: gr.Request) -> str:
    return str(request.session_hash)


@contextlib.asynccontextmanager
async def _turn(turns: Turns, button: str, request: gr.Request) -> AsyncIterator[Job]:
    """A job of who pressed a button; what is wrong with it is shown."""
    address = visitor_at(request.client.host) if request.client else ""
    with _errors_shown():
        async with turns.job(session_of(request), address, button) as job:
            yield job


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """A ValueError is the visitor's to read, not the server's to log. What it quotes must not become HTML."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


def make_theme() -> Any:
    """Fonts of the reader's machine; colours that can be read, where the theme's own are too pale for small text."""
    theme = gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    return theme.set(
        body_background_fill="*neutral_50",
        block_background_fill="white",
        input_border_width="1px",
        input_border_color="*neutral_300",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
        block_title_background_fill="transparent",
        block_title_padding="0",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


def serve(
    models: Sequence[str],
    host: str = "127.0.0.1",
    port: int | None = None,
    any_model: bool | None = None,
    allowed_hosts: Sequence[str] = (),
    seconds: float | None = None,
    trust_visitors: bool = False,
) -> None:
    """Serves the page until it is interrupted.

    Args:
        port: default: the first free one from 7860.
        any_model: see [`build_page`]. Default: only where no other machine can reach the page.
        allowed_hosts: names by which the page may be called, beside `host`, numbers, and the name of a Space.
        seconds: of one run. Default: two minutes, or an hour where no other machine can reach the page.
        trust_visitors: needed for any_model where another machine can reach the page.

    Raises:
        ValueError: for a first model that cannot be loaded, and for any_model where it may not be.
    """
    of_space = [name.strip() for name in os.environ.get("SPACE_HOST", "").split(",") if name.strip()]
    # A page with a name has a proxy in front of it, by which others reach it.
    alone = is_loopback(host) and not (allowed_hosts or of_space)
    any_model = alone if any_model is None else any_model
    names = [*allowed_hosts, *of_space]
    named = f" and the names {', '.join(names)}" if names else ""
    if any_model and not (alone or trust_visitors):
        raise ValueError(
            f"any_model=True with host={host!r}{named}: whoever reaches the page could have this machine download and "
            "read any model. List the models by --model instead, or pass --trust-visitors, too."
        )
    if seconds is None:
        seconds = 3600.0 if alone else Limits().seconds
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds={seconds!r} must be a positive number, of one run.")
    streams = Counter[str]()
    # To a Space, all visitors come by way of the Hub's proxy.
    limits = Limits(seconds=seconds, of_address=None) if of_space else Limits(seconds=seconds)
    page = build_page(models, any_model, Turns(limits, streams))
    page.queue(api_open=False, max_size=2 * limits.in_all, default_concurrency_limit=None)
    gate = Middleware(
        Gate,
        hosts=[host.strip("[]"), *names],
        addresses_allowed=not is_loopback(host),
        functions=checks_of(page),
        streams=streams,
        sessions=Kept(page),
        shared_address=bool(of_space),
    )
    if not alone:
        note(
            f"warning: host={host!r}{named} lets every machine that can reach this one use the page, unencrypted and "
            f"without a password; models: {'any' if any_model else ', '.join(models)}."
        )
    page.launch(
        server_name=host,
        server_port=port,
        state_session_capacity=CONNECTIONS,
        # gradio gives a place among so many to each run, also to one that waits for its turn. The other half is for
        # what takes a moment: the refusal of a run, and the other buttons.
        max_threads=2 * limits.in_all,
        share=False,
        theme=make_theme(),
        css=CSS,
        footer_links=[],
        run_history=False,  # it can be sent elsewhere
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=False,  # of what is not meant for visitors
        max_file_size=0,
        app_kwargs={"middleware": [gate]},
    )


def make_parser(model: str = "") -> OneLineParser:
    """The command line of the page; `model` is what it begins with unless another is named."""
    parser = OneLineParser(description="A web page on which a RADD model writes.")
    parser.add_argument("--model", nargs="+", default=[model], help="to choose from, the first to begin with")
    # What a Space sets, and gradio itself would take.
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT"), help="default: 7860 or above")
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a name by which the page is called, too"
    )
    parser.add_argument(
        "--seconds", type=float, help="of one run; default: 120, or 3600 if the host is this machine alone"
    )
    parser.add_argument(
        "--any-model",
        action=argparse.BooleanOptionalAction,
        help="visitors may name any model; default: only if the host is this machine alone",
    )
    parser.add_argument(
        "--trust-visitors", action="store_true", help="allow --any-model where other machines reach the page"
    )
    return parser


def main(arguments: Sequence[str], model: str) -> None:
    """Serves the page as a command line says.

    Raises:
        ValueError, OSError: for a model that cannot be loaded, and a port that is taken.
    """
    args = make_parser(model).parse_args(arguments)
    models = [newest_model(name) for name in args.model]
    serve(models, args.host, args.port, args.any_model, args.allowed_host, args.seconds, args.trust_visitors)
