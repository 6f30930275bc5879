# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Serves a model over HTTP: `radd serve MODEL`.

    request -> host and origin -> body -> handler.read, in a thread -> batcher -> answer

`arguments.py` lists the routes. Errors are JSON, {"error": one line}. This module needs Starlette, uvicorn and
prometheus-client, which the extra `serve` installs.
"""

import argparse
import asyncio
import copy
import itertools
import json
import math
import signal
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor
from transformers.utils.logging import disable_progress_bar
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..endings import Stopped, UsageError, note, reason_of, visible
from ..hub.loading import find_device, load
from ..jobs.batches import tokens_of_a_batch
from ..pipeline_radd import RaddInfillingPipeline
from ..text_radd import BlankedText, decode_span
from ..version import __version__
from .asgi import (
    BODY_SECONDS,
    Message,
    Names,
    Receive,
    Refused,
    Scope,
    Send,
    accepts,
    answer,
    headers_of,
    is_loopback,
    object_of,
    read_body,
)
from .batcher import STOPPING, Batcher, Closed, Full, Job, jobs_of
from .handler import EndpointHandler, Limits, Request

LARGEST_BODY = 2**20  # bytes
# The most requests at once; more get status 503. The most connections; a new one then closes the one that has been
# silent for longest. The most connections that are accepted at once. Together they stay below 1,024, the usual limit of
# open files.
REQUESTS, CONNECTIONS, BACKLOG = 512, 640, 64
# A stream without news sends a comment after this many seconds, because proxies close silent connections.
KEEP_ALIVE = 10.0
# A refused client may try again after this many seconds.
RETRY_AFTER = 1
PATHS = "/", "/generate", "/health", "/info", "/metrics"


class ClientGone(Exception):
    """Says that the client closed its connection before the answer."""


class Metrics:
    """Counts responses and batches, for Prometheus."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        everything: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "radd_requests",
            "Responses. Status 499: the client had gone. A stream that ended with an error has the error's status.",
            ["path", "status"],
            **everything,
        )
        self.seconds = Histogram(
            "radd_request_seconds", "Seconds from a request to its answer, or to the start of its stream", **everything
        )
        self.batches = Counter("radd_batches", "Batches: filled, failed or abandoned", ["outcome"], **everything)
        self.rows = Histogram(
            "radd_batch_rows", "Texts in a batch", buckets=[2**n for n in range(10)] + [math.inf], **everything
        )
        self.batch_seconds = Histogram("radd_batch_seconds", "Seconds that the model takes for a batch", **everything)
        self.tokens = Counter("radd_written_tokens", "Tokens generated, of all samples", **everything)
        Gauge("radd_queue_rows", "Texts that wait", **everything).set_function(lambda: len(batcher.waiting))
        Gauge("radd_running_rows", "Texts in the running batch", **everything).set_function(
            lambda: len(batcher.running)
        )
        batcher.on_batch = self.count_batch

    def count_batch(self, batch: list[Job], seconds: float, outcome: str) -> None:
        self.batches.labels(outcome).inc()
        if outcome != "filled":
            return
        self.rows.observe(len(batch))
        self.batch_seconds.observe(seconds)
        self.tokens.inc(sum(job.samples * int(job.row["spans"].diff().sum()) for job in batch))


class Service:
    """Answers HTTP requests. A handler reads them, and a batcher fills their texts with the model.

    Args:
        model, tokenizer: a model in evaluation mode, and its tokenizer.
        name: name of the model, for clients.
        limits: limits of one request.
        batch_tokens: tokens of a batch; None: the device's default.
        batcher: settings of [`Batcher`].
        max_wait: seconds that a text may wait for its batch.
        debug: log the traceback of a failure.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "radd",
        limits: Limits | None = None,
        batch_tokens: int | None = None,
        max_wait: float = 60.0,
        debug: bool = False,
        **batcher: Any,
    ):
        fill = RaddInfillingPipeline(model=model, tokenizer=tokenizer, device=model.device)
        # Another thread reads requests and decodes drafts while a batch is computed. Each thread needs its tokenizer.
        reader = copy.copy(fill)
        reader.tokenizer = copy.deepcopy(fill.tokenizer)
        self.reader = ThreadPoolExecutor(1, "reader")
        self.batcher = Batcher(fill.fill, batch_tokens=tokens_of_a_batch(batch_tokens, model.device), **batcher)
        limits = limits or Limits()
        limits = limits._replace(inputs=min(limits.inputs, self.batcher.queue))  # the queue never has room for more
        self.handler = EndpointHandler(pipeline=reader, limits=limits, others=["stream"])
        self.metrics = Metrics(self.batcher)
        self.name, self.max_wait, self.debug = name, max_wait, debug

    def app(self, names: Names | None = None, is_crowded: Callable[[], bool] = lambda: False) -> Starlette:
        """Makes the ASGI application.

        Args:
            names: host names that requests may use; by default those of this machine.
            is_crowded: tells whether there are too many requests at once.
        """
        routes = [
            Route("/", self.generate, methods=["POST"]),
            Route("/generate", self.generate, methods=["POST"]),
            Route("/health", self.health),
            Route("/info", self.info),
            Route("/metrics", self.show_metrics),
        ]
        return Starlette(
            routes=routes,
            middleware=[
                Middleware(Counted, metrics=self.metrics),
                Middleware(Guard, names=names or Names(), is_crowded=is_crowded),
            ],
            exception_handlers={HTTPException: _as_json},
        )

    def close(self) -> None:
        """Ends the threads. Waiting and running jobs are abandoned."""
        self.batcher.abandon()
        self.batcher.thread.join()
        self.reader.shutdown()

    # Routes.

    async def health(self, request: HttpRequest) -> Response:
        serves = self.batcher.thread.is_alive() and not self.batcher.closed
        return JSONResponse({"status": "ok" if serves else "stopping"}, status_code=200 if serves else 503)

    async def info(self, request: HttpRequest) -> Response:
        parameters = {
            name: {"type": each.kind.__name__, "default": each.default, "must_be": each.values, "help": each.help}
            for name, each in self.handler.parameters.items()
        }
        limits = self.handler.limits._asdict() | {"queue": self.batcher.queue, "max_wait": self.max_wait}
        return JSONResponse({"model": self.name, "radd_hf": __version__, "parameters": parameters, "limits": limits})

    async def show_metrics(self, request: HttpRequest) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def generate(self, request: HttpRequest) -> Response:
        try:
            return await self._generate(request)
        except asyncio.CancelledError:  # a second Ctrl-C cancels
            refusal = self._refusal(Closed(STOPPING))
        except Exception as error:
            refusal = self._refusal(error)
        headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
        return JSONResponse({"error": str(refusal)}, status_code=refusal.status, headers=headers)

    async def _generate(self, request: HttpRequest) -> Response:
        receive: Any = request.receive
        headers = headers_of(cast(Scope, request.scope))
        data = object_of(await read_body(receive, headers, LARGEST_BODY))
        stream = data.get("stream", accepts(headers, "text/event-stream"))
        if not isinstance(stream, bool):
            raise Refused(400, f"stream={visible(json.dumps(stream))[:80]} must be true or false.")
        asked: Request = await self._in_reader(self.handler.read, data)
        if stream:
            return self._stream(asked, request)
        jobs = jobs_of(asked)
        self.batcher.submit(jobs)
        return JSONResponse(asked.answer(await self._results(jobs, receive)))

    async def _in_reader(self, work: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.reader, work, *arguments)

    async def _results(self, jobs: list[Job], receive: Receive) -> list[list[dict[str, Any]]]:
        """Waits for the samples of all jobs. However it ends, the jobs leave the queue."""
        done: Any = asyncio.gather(*(asyncio.wrap_future(job.result) for job in jobs))
        done.add_done_callback(_hear)
        gone: Any = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({done, gone}, timeout=self.max_wait, return_when=asyncio.FIRST_COMPLETED)
            if not (done.done() or gone.done()):
                if self.batcher.withdraw(jobs):
                    raise Refused(503, f"The request waited for more than {self.max_wait:g} s.", RETRY_AFTER)
                await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientGone
            return done.result()
        finally:
            gone.cancel()
            done.cancel()
            self.batcher.forget(jobs)

    # Streams.

    def _stream(self, asked: Request, request: HttpRequest) -> Response:
        """Sends drafts and the answer as server-sent events. Errors before the stream begins are raised."""
        loop, newest, news = asyncio.get_running_loop(), dict[int, Tensor](), asyncio.Event()

        def keep(number: int, draft: Tensor) -> None:
            newest[number] = draft
            news.set()

        def on_draft(number: int, draft: Tensor) -> None:
            loop.call_soon_threadsafe(keep, number, draft)

        jobs = jobs_of(asked, on_draft)
        self.batcher.submit(jobs)
        results = asyncio.ensure_future(self._results(jobs, cast(Any, request.receive)))
        results.add_done_callback(_hear)
        results.add_done_callback(lambda _: news.set())

        async def events() -> AsyncIterator[str]:
            try:
                while not results.done():
                    try:
                        async with asyncio.timeout(KEEP_ALIVE):
                            await news.wait()
                    except TimeoutError:
                        yield ": no news\n\n"
                    news.clear()
                    # If drafts come faster than the client reads, only the newest one is sent.
                    while newest and not results.done():
                        number, draft = newest.popitem()
                        texts = await self._in_reader(self._texts_of, asked.rows[number], draft)
                        yield event("draft", {"input": number, "texts": texts})
                yield event("done", asked.answer(results.result()))
            except Exception as error:
                refusal = self._refusal(error)
                request.scope["status"] = refusal.status  # for Counted
                yield event("error", {"error": str(refusal), "status": refusal.status})
            finally:
                results.cancel()  # `_results` then forgets the jobs

        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    def _texts_of(self, row: dict[str, Any], draft: Tensor) -> list[str]:
        """Decodes a draft (samples, L)."""
        mask_token_id = self.handler.model.config.mask_token_id
        return [draft_text(row, ids, self.handler.pipeline.tokenizer, mask_token_id) for ids in draft.tolist()]

    def _refusal(self, error: Exception) -> Refused:
        """Returns the refusal that reports an error to the client. The server's own errors are logged."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, ClientGone):
            return Refused(499, "The client has gone.")
        if isinstance(error, Full):
            return Refused(429, str(error), RETRY_AFTER)
        if isinstance(error, Closed):
            return Refused(503, str(error), RETRY_AFTER)
        if isinstance(error, ValueError):
            return Refused(400, visible(" ".join(str(error).split())))
        note(f"radd serve: error: {reason_of(error)}")
        if self.debug:
            traceback.print_exception(error)
        return Refused(500, "The server failed at this request. Its log has the reason.")


class Counted:
    """Counts every response by path and status, as ASGI middleware. scope["status"] replaces the response's status."""

    def __init__(self, app: Any, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, path = time.perf_counter(), scope["path"] if scope["path"] in PATHS else "other"
        status, whole = 499, False

        async def counted(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                if path in ("/", "/generate"):
                    self.metrics.seconds.observe(time.perf_counter() - started)
            elif not message.get("more_body", False):
                whole = True
                self.metrics.requests.labels(path, scope.get("status", status)).inc()
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            if not whole:
                self.metrics.requests.labels(path, 499).inc()


class Guard:
    """Refuses requests with other host names, from other sites, and above the limit of requests, as ASGI middleware."""

    def __init__(self, app: Any, names: Names, is_crowded: Callable[[], bool]):
        self.app, self.names, self.is_crowded = app, names, is_crowded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.names.check_sender(headers_of(scope))
                if self.is_crowded():
                    raise Refused(503, "The server has too many requests at once: try again later.", RETRY_AFTER)
            except Refused as refusal:
                await answer(send, refusal)
                return
        await self.app(scope, receive, send)


async def _as_json(request: HttpRequest, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


def _hear(future: asyncio.Future) -> None:
    """Retrieves the exception of a future. Otherwise asyncio reports it as never retrieved."""
    if not future.cancelled():
        future.exception()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(name: str, data: dict[str, Any]) -> str:
    """Returns a server-sent event. Its data has no line breaks, because JSON escapes them."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def draft_text(row: dict[str, Any], ids: Sequence[int], tokenizer: Any, mask_token_id: int) -> str:
    """Returns the text of a row in which some masks are left. n adjacent masks become the blank [MASK:n]."""

    def fill(begin: int, end: int) -> str:
        text = ""
        for masked, run in itertools.groupby(range(begin, end), lambda place: ids[place] == mask_token_id):
            places = list(run)
            if masked:
                text += f"{' ' if places[0] else ''}[MASK:{len(places)}]"
            else:
                text += decode_span(ids, places[0], places[-1] + 1, tokenizer)
        return text

    spans = row["spans"][0].tolist()
    return BlankedText([], spans, row["pieces"]).filled([fill(begin, end) for begin, end in spans])


# ---------------------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------------------


class Connection(H11Protocol):
    """Closes a connection that has not sent a whole header within BODY_SECONDS, or twice as many after an answer.

    If there are too many connections, it closes the oldest of those that wait for a header.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.answered: Any = None  # the cycle of the last request, as of the last check
        self.began = self.loop.time()
        self.timer = self.loop.call_later(BODY_SECONDS, self.close_if_silent)
        connections = [cast(Connection, each) for each in self.connections if not each.transport.is_closing()]
        silent = [each for each in connections if each.waits()]
        if len(connections) > CONNECTIONS and silent:
            min(silent, key=lambda each: each.began).transport.close()

    def waits(self) -> bool:
        """Tells whether the connection has no open request: none has come, or the last is answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)

    def close_if_silent(self) -> None:
        if self.waits() and self.cycle is self.answered:
            self.transport.close()
            return
        self.answered = self.cycle if self.waits() else None
        self.timer = self.loop.call_later(BODY_SECONDS, self.close_if_silent)


class Server(uvicorn.Server):
    """Runs uvicorn and stops in order: it refuses new requests, waits `grace` seconds, then answers the rest with 503.

    A second Ctrl-C stops at once.

    stopped_by: number of the signal that stopped the server; 0 for none.
    """

    def __init__(self, service: Service, names: Names, grace: float):
        config = uvicorn.Config(
            service.app(names, lambda: len(self.server_state.tasks) > REQUESTS),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # the service logs each reason in one line
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=math.ceil(grace) + 10,
        )
        super().__init__(config)
        self.service, self.grace, self.stopped_by = service, grace, 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(REQUESTS)  # the system queues so many; the server accepts BACKLOG at once

    def handle_exit(self, sig: int, frame: Any) -> None:
        # uvicorn's own method raises the signals again at the end, while the rest of the program closes.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit, self.stopped_by = True, sig

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.batcher.close()
        asyncio.get_running_loop().call_later(self.grace, self.service.batcher.abandon)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """Binds a port; 0 means a free one. Clients are refused until the server listens.

    Raises:
        ValueError: if the address or the port cannot be used.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server may linger
    try:
        listener.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(f"cannot listen at host={host!r} and port={port}: {error}") from error
    return listener


def serve(
    service: Service, listener: socket.socket, host: str, allowed_hosts: Iterable[str] = (), grace: float = 30.0
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        listener: the socket that [`bind`] returned for `host`.
        allowed_hosts: host names to accept besides `host`, see [`Names`].
        grace: seconds that requests get after the signal.

    Raises:
        Stopped: after a signal.
    """
    bare = host.strip("[]")
    alone = is_loopback(bare)
    server = Server(service, Names([bare, *allowed_hosts], addresses_allowed=not alone), grace)
    place = f"[{bare}]" if ":" in bare else bare
    listener.listen(REQUESTS)  # clients that connect from now on get an answer when the server runs
    note(f"{visible(service.name)} is served at http://{place}:{listener.getsockname()[1]}/generate")
    if not alone:
        note(
            f"warning: host={host!r} lets every machine that reaches this one use the server, unencrypted and without "
            "a password."
        )
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
    if server.stopped_by:
        raise Stopped("stopped", 128 + server.stopped_by)


def main(args: argparse.Namespace) -> None:
    """Serves with the arguments from `parse_arguments`.

    Raises:
        UsageError: for a device that cannot be used. ValueError: for a model that cannot be loaded, a port in use.
        Stopped: after a signal.
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped("stopped", 128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        try:
            device = find_device(args.device)
        except ValueError as error:
            raise UsageError(str(error)) from error
        with bind(args.host, args.port) as listener:
            disable_progress_bar()
            model, tokenizer = load(args.model, args.tokenizer, device=device, dtype=getattr(torch, args.dtype))
            service = Service(
                model,
                tokenizer,
                name=Path(args.model).resolve().name if Path(args.model).is_dir() else args.model,
                limits=Limits(args.max_inputs, args.max_number, args.max_length, args.max_steps, args.max_tokens),
                batch_tokens=args.batch_tokens,
                max_wait=args.max_wait,
                debug=args.debug,
                queue=args.max_queue,
                gather=args.gather,
            )
            serve(service, listener, args.host, args.allowed_host, args.grace)
    finally:
        signal.signal(signal.SIGTERM, before)
