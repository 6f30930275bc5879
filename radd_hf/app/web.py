# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Serves the page of `page.py` to browsers.

`turns.py` decides which visitor has the model, and `gate.py` which requests are allowed. The page needs gradio, which
the extra `demo` installs.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..endings import note
from ..hub.runs import newest_model
from ..serving.asgi import is_loopback
from .arguments import make_parser
from .gate import CONNECTIONS, Gate
from .page import build_page, gr
from .turns import Limits, Turns

CSS, JS = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))


class Kept:
    """Finds and drops the data that gradio keeps for each session: unread answers, events, values of the page.

    gradio drops some of it after an hour and the rest never. Its stores are not a public interface, so only this class
    looks them up. If a release of gradio renames one, the page fails at its start.
    """

    def __init__(self, page: gr.Blocks):
        self.page, self.queue = page, page._queue
        self.stores = [self.queue.pending_messages_per_session, self.queue.pending_event_ids_session]

    def unread(self, session: str) -> int | None:
        if session not in self.queue.pending_messages_per_session:
            return None
        return len(self.queue.pending_event_ids_session.get(session, ()))

    async def forget(self, session: str) -> None:
        await self.queue.clean_events(session_hash=session)  # no page reads the runs of the session
        for store in (*self.stores, self.page.state_holder.session_data, self.page.state_holder.time_last_used):
            store.pop(session, None)


def checks_of(page: gr.Blocks) -> dict[int, Callable[[list], None]]:
    """Makes a check for each function of a page. It raises an exception for inputs that gradio would fail at and log.

    Functions that run only in the browser have no check, because no page calls them here.
    """

    def check(inputs: Sequence[Any], data: list) -> None:
        if len(data) != len(inputs):
            raise ValueError(f"{len(data)} inputs must be {len(inputs)}")
        for component, value in zip(inputs, data, strict=True):
            if not isinstance(component, gr.State):
                component.preprocess(value)

    return {index: partial(check, function.inputs) for index, function in page.fns.items() if function.fn is not None}


def make_theme() -> Any:
    """Makes a theme with the reader's own fonts. Colours that are too pale for small text are darker."""
    theme = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        block_background_fill="white",
        input_border_width="1px",
        input_border_color="*neutral_300",
        checkbox_border_color="*neutral_500",
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
        port: by default the first free one from 7860.
        any_model: see [`build_page`]; by default only if no other machine can reach the page.
        allowed_hosts: host names of the page besides `host`, numeric addresses and the name of a Space.
        seconds: time of one run; by default two minutes, or an hour if no other machine can reach the page.
        trust_visitors: allow `any_model` although other machines can reach the page.

    Raises:
        ValueError: for a first model that cannot be loaded, and for `any_model` without `trust_visitors` if other
            machines can reach the page.
    """
    from starlette.middleware import Middleware  # gradio installs it; `page.py` explains a missing gradio

    of_space = [name.strip() for name in os.environ.get("SPACE_HOST", "").split(",") if name.strip()]
    # A page with a name is behind a proxy, through which other machines reach it.
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
        raise ValueError(f"seconds={seconds!r} must be a positive number.")
    streams = Counter[str]()
    # All visitors of a Space come through the Hub's proxy.
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
        # gradio gives each run one of these places, even while it waits for its turn. Half of the places are for runs.
        # The other half is for short calls: the refusal of a run, and the other buttons.
        max_threads=2 * limits.in_all,
        share=False,
        theme=make_theme(),
        css=CSS,
        js=JS,
        footer_links=[],
        run_history=False,  # the history can be sent to another server
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=False,  # unexpected errors are not for visitors
        max_file_size=0,
        app_kwargs={"middleware": [gate]},
    )


def main(arguments: Sequence[str], model: str) -> None:
    """Serves the page with the arguments of a command line.

    Raises:
        ValueError, OSError: for a model that cannot be loaded, and for a port in use.
    """
    args = make_parser(model).parse_args(arguments)
    models = [newest_model(name) for name in args.model]
    serve(models, args.host, args.port, args.any_model, args.allowed_host, args.seconds, args.trust_visitors)
