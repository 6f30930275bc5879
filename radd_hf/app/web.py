# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The web page on which a model writes: how it looks, and who may stop what; what it does is in `live.py`.

It needs gradio, the extra `demo`.
"""

import argparse
import contextlib
import html
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..settings_radd import METHODS, ORDERS, TEXT_SETTINGS
from .live import BLANKS, ENDS, FORMS, GIVEN_ALL_OTHERS, describe, judge, load_for_page, write

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: nothing is reported to anybody
try:
    import gradio as gr
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


class Runs:
    """What stops the run of a button on an open page (its session), and no other."""

    def __init__(self) -> None:
        self._stop: dict[tuple[str, str], threading.Event] = {}

    def begin(self, session: str, button: str) -> None:
        self._stop[session, button] = threading.Event()

    def get(self, session: str, button: str) -> threading.Event | None:
        """None if the page was closed meanwhile."""
        return self._stop.get((session, button))

    def stop(self, session: str, button: str) -> None:
        if (stop := self.get(session, button)) is not None:
            stop.set()

    def forget(self, session: str) -> None:
        for key in [key for key in self._stop if key[0] == session]:
            self._stop.pop(key).set()


def build_page(models: Sequence[str], any_model: bool = True) -> gr.Blocks:
    """The page, not yet served.

    Args:
        models: to choose from; the first is what the page begins with.
        any_model: whether a visitor may name any other folder or repository, and a tokenizer.
    """
    longest = load_for_page(models[0], "")[0].config.max_position_embeddings
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(INTRODUCTION, elem_id="introduction")
        chosen = _add_models(models, any_model)
        runs = Runs()
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
            _connect(runs, buttons, write, fields, [canvas, line, heat])
        with gr.Tab("Likelihood of a text"), gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                text = gr.Textbox(PASSAGE, label="Text", lines=4, elem_id="passage")
                order = gr.Dropdown([*ORDERS, GIVEN_ALL_OTHERS], label="Order", elem_id="judge-order")
                buttons = _add_buttons("Score", "judge")
            with gr.Column(scale=6, min_width=320):
                heat = gr.HTML(elem_id="judged", min_height=120)
                line = gr.HTML(elem_id="judged-line")
            _connect(runs, buttons, judge, chosen | {"text": text, "order": order}, [heat, line])

        def forget(request: gr.Request):
            runs.forget(request.session_hash)

        page.unload(forget)
    return page


def _add_models(models: Sequence[str], any_model: bool) -> dict[str, Any]:
    with gr.Accordion("Model", open=False):
        with gr.Row():
            model = gr.Dropdown(
                [(Path(name).name, name) for name in models],
                value=models[0],
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

    def load_it(model, tokenizer):
        with _errors_shown():
            return describe(model, tokenizer)

    choose.click(load_it, [model, tokenizer], about, concurrency_id="model", api_visibility="private")
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
    form.change(
        lambda form: [gr.update(visible=form == BLANKS), gr.update(visible=form == ENDS)],
        form,
        [blanks, ends],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return {"form": form, "text": text, "prefix": prefix, "suffix": suffix, "length": length}


# Settings of `generate` that have no field: the length stands with the text, and the reader can stop a run.
WITHOUT_FIELD = ("length", "stop_on_eos", "max_time")


def _add_sampling() -> dict[str, Any]:
    """The fields "seed" and "pause", and one for each setting of `generate` that is not in WITHOUT_FIELD."""

    def number(name: str, value: float | None, info: str = "") -> Any:
        """A whole number; its text is that of the setting."""
        label, elem_id = name.replace("_", " ").capitalize(), name.replace("_", "-")
        return gr.Number(value, label=label, info=info or TEXT_SETTINGS[name].help, precision=0, elem_id=elem_id)

    with gr.Accordion("How it writes", open=False, elem_id="sampling"):
        with gr.Row():
            method = gr.Dropdown(METHODS, value="tweedie", label="Method", elem_id="method")
            steps = number("steps", 0, "0: as many as tokens")
            order = gr.Dropdown(ORDERS, label="Order", visible=False, elem_id="order")
            seed = gr.Number(-1, label="Seed", info="-1: a new one each time", precision=0, elem_id="seed")
        with gr.Row():
            temperature = gr.Slider(
                0, 2, 0.7, step=0.05, label="Temperature", info=TEXT_SETTINGS["temperature"].help, elem_id="temperature"
            )
            top_p = gr.Slider(0.01, 1, 1, step=0.01, label="Top-p", info=TEXT_SETTINGS["top_p"].help, elem_id="top-p")
            top_k = number("top_k", 0)
        with gr.Row():
            refresh = number("refresh_interval", 1)
            window = number("refresh_window", TEXT_SETTINGS["refresh_window"].default)
            pause = gr.Slider(0, 1, 0.1, step=0.05, label="Seconds between events", elem_id="pause")

    method.change(
        lambda method: [gr.update(visible=method != "first_hitting"), gr.update(visible=method == "ordered")],
        method,
        [steps, order],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    fields = {"method": method, "steps": steps, "order": order, "temperature": temperature, "top_k": top_k}
    fields |= {"top_p": top_p, "refresh_interval": refresh, "refresh_window": window}
    assert fields.keys() == TEXT_SETTINGS.keys() - set(WITHOUT_FIELD), "a setting of generate has no field"
    return fields | {"seed": seed, "pause": pause}


def _add_buttons(label: str, name: str) -> tuple[Any, Any]:
    with gr.Row():
        start = gr.Button(label, variant="primary", min_width=120, elem_id=name)
        stop = gr.Button("Stop", interactive=False, min_width=120, elem_id=f"stop-{name}")
    return start, stop


def _connect(runs: Runs, buttons: tuple[Any, Any], run: Callable, fields: dict[str, Any], outputs: list) -> None:
    """`run` on the values of the fields, between the two buttons.

    Stopping is our own and not gradio's cancelling, so that the page shows how far the run came; both ends and the
    stop go past the queue, in which the run itself waits for its turn.
    """

    def begin(request: gr.Request):
        runs.begin(request.session_hash, name)
        return gr.update(interactive=False), gr.update(interactive=True)

    def go(values: dict, request: gr.Request):
        named = {key: values[field] for key, field in fields.items()}
        with _errors_shown():
            if (stop_it := runs.get(request.session_hash, name)) is not None:
                yield from run(stop_it, **named)

    def end():
        return gr.update(interactive=True), gr.update(interactive=False)

    def halt(request: gr.Request):
        runs.stop(request.session_hash, name)

    (start, stop), name = buttons, run.__name__
    at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    begun = start.click(begin, None, [start, stop], **at_once)
    ended = begun.then(
        go, set(fields.values()), outputs, concurrency_id="model", show_progress="hidden", api_visibility="private"
    )
    # Not `then`, which gradio 6 does not trigger where the run has raised.
    ended.success(end, None, [start, stop], **at_once)
    ended.failure(end, None, [start, stop], **at_once)
    stop.click(halt, None, None, **at_once)


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
    models: Sequence[str], host: str = "127.0.0.1", port: int | None = None, any_model: bool | None = None
) -> None:
    """Serves the page until it is interrupted.

    Args:
        port: default: the first free one from 7860.
        any_model: see [`build_page`]. Default: only where no other machine can reach the page.

    Raises:
        ValueError: for a first model that cannot be loaded.
    """
    if any_model is None:
        any_model = host in ("127.0.0.1", "localhost", "::1")
    page = build_page(models, any_model)
    page.queue(api_open=False).launch(
        server_name=host,
        server_port=port,
        share=False,
        theme=make_theme(),
        css=CSS,
        footer_links=[],
        run_history=False,  # it can be sent elsewhere
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
    )


def main(arguments: Sequence[str], model: str) -> None:
    """The command line of the page; `model` is what it begins with unless another is named."""
    parser = argparse.ArgumentParser(description="A web page on which a RADD model writes.")
    parser.add_argument("--model", nargs="+", default=[model], help="to choose from, the first to begin with")
    # What a Space sets, and gradio itself would take.
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT"), help="default: 7860 or above")
    parser.add_argument(
        "--any-model",
        action=argparse.BooleanOptionalAction,
        help="visitors may name any model; default: only if the host is this machine alone",
    )
    settings = parser.parse_args(arguments)
    try:
        serve(settings.model, settings.host, settings.port, settings.any_model)
    except (ValueError, OSError) as error:  # a model that cannot be loaded; a port that is taken
        parser.error(str(error))
