# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Passes requests of the page itself on to the page's server, and refuses all others.

    request -> host and origin -> route -> connections -> body -> the application

gradio serves more than a page needs: uploads, files, a proxy, monitoring, calls of any function by its name. The gate
allows only the few routes of the page. It is an ASGI middleware and does not need gradio.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qs

from ..serving.asgi import (
    Application,
    Message,
    Names,
    Receive,
    Refused,
    Scope,
    Send,
    address_of,
    answer,
    headers_of,
    host_of,
    object_of,
    read_body,
)

API = "/gradio_api"
SESSION = r"[A-Za-z0-9_-]{1,64}"
# Paths that a browser reads to show the page, to get the answers of calls, and to report that the page is open. By
# app_id it notices that a server is back after a lost connection.
READ = re.compile(
    rf"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static)/(?!.*\.\.)[\w./-]+)"
    rf"|{API}/(app_id|theme\.css|startup-events|queue/data|heartbeat/{SESSION})"
)
JOIN = f"{API}/queue/join"
CALLS = (JOIN, f"{API}/run/predict")
QUEUE = f"{API}/queue/data"
STREAMS = re.compile(rf"{QUEUE}|{API}/heartbeat/({SESSION})")

# Bytes. The bodies of all connections together take at most 64 MiB.
LARGEST_BODY = 2**16
# Fields of a call that the page sends. Others are dropped, such as a batch or the event of another page.
FIELDS = ("data", "fn_index", "session_hash", "trigger_id")
SCALARS = (str, int, float, bool, type(None))
CONNECTIONS, CONNECTIONS_OF_ADDRESS = 1024, 128
# Calls of an open page that wait for their answers, or whose answers it has not read.
UNREAD = 4


class Sessions(Protocol):
    """Describes the store of the application, which keeps data for each open page."""

    def unread(self, session: str) -> int | None:
        """Returns the number of calls whose answers the page has not read; None if the page has made no call."""

    async def forget(self, session: str) -> None:
        """Drops the data of a page that has no open connection left."""


class Gate:
    """Passes on the requests of the page, as an ASGI middleware.

    Args:
        hosts, addresses_allowed: the host names of the page, see [`Names`].
        functions: checks of the page's functions, by index. A check takes the list of inputs of a call, and raises any
            exception if the application would fail at them.
        streams: counts the open connections of each session. A page opens one before its first call. A call without one
            is refused, because no page would read the answer.
        sessions: the application's data of each session.
        shared_address: whether all visitors come through one proxy; an address then does not identify a visitor.
    """

    def __init__(
        self,
        app: Application,
        hosts: Iterable[str] = (),
        addresses_allowed: bool = False,
        functions: Mapping[int, Callable[[list], Any]] | None = None,
        streams: Counter[str] | None = None,
        sessions: Sessions | None = None,
        shared_address: bool = False,
    ):
        self.app = app
        self.names = Names(hosts, addresses_allowed)
        self.functions = functions or {}
        self.streams = Counter[str]() if streams is None else streams
        self.sessions = sessions
        self.shared_address = shared_address
        self.connections = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no web socket
            await send({"type": "websocket.close", "code": 1008})
            return
        address = address_of(scope)
        try:
            self.names.check_sender(headers_of(scope))
            session = self.check_route(scope)
            self.check_connections(address)
        except Refused as refusal:
            await answer(send, refusal)
            return
        self.connections[address] += 1
        if session is not None:
            self.streams[session] += 1
        try:
            await self.pass_on(self.without_foreign_host(scope), receive, send)
        finally:
            count_down(self.connections, address)
            if session is not None:
                count_down(self.streams, session)
                await self.forget_if_gone(session)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            call = self.checked_call(await read_body(receive, headers_of(scope), LARGEST_BODY))
            if scope["path"] == JOIN:
                self.check_unread(call["session_hash"])
        except Refused as refusal:
            await answer(send, refusal)
            return
        scope, receive = with_body(scope, json.dumps(call).encode(), receive)
        try:
            await self.app(scope, receive, send)
        finally:
            await self.forget_if_gone(call["session_hash"])  # the page may have been closed meanwhile

    async def forget_if_gone(self, session: str) -> None:
        if session not in self.streams and self.sessions is not None:
            await self.sessions.forget(session)

    def without_foreign_host(self, scope: Scope) -> Scope:
        """Removes an X-Forwarded-Host that is not a name of the page. gradio makes addresses from this header."""
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower() != b"x-forwarded-host" or host_of(f"//{value.decode('latin-1')}") in self.names
        ]
        return scope | {"headers": headers}

    def check_route(self, scope: Scope) -> str | None:
        """Refuses routes that the page does not use. Returns the session of a connection that stays open, else None."""
        method, path = scope["method"], scope["path"]
        if not (
            (method in ("GET", "HEAD") and READ.fullmatch(path))
            or (method == "POST" and path in CALLS)
            or method == "OPTIONS"
        ):
            raise Refused(404, "The page does not use this address.")
        found = STREAMS.fullmatch(path)
        if found is None or method != "GET":
            return None
        if found[1] is not None:
            return found[1]
        given = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=8).get("session_hash", [])
        if len(given) != 1 or not re.fullmatch(SESSION, given[0]):
            raise Refused(400, "session_hash must be the session of the page.")
        if self.sessions is not None and self.sessions.unread(given[0]) is None:
            raise Refused(404, "There is no such session.")
        return given[0]

    def check_connections(self, address: str) -> None:
        mine = 0 if self.shared_address else self.connections[address]
        if mine >= CONNECTIONS_OF_ADDRESS or self.connections.total() >= CONNECTIONS:
            raise Refused(503, "The page is busy: too many connections are open. Try again later.")

    def check_unread(self, session: str) -> None:
        if self.sessions is not None and (self.sessions.unread(session) or 0) >= UNREAD:
            raise Refused(429, f"This page has {UNREAD} calls without an answer: wait for the end of one.")

    def checked_call(self, body: bytes) -> dict[str, Any]:
        """Checks the call of a function, and returns it with only the fields that the page sends."""
        call = object_of(body)
        call = {name: call[name] for name in FIELDS if name in call}
        session, function, trigger = call.get("session_hash"), call.get("fn_index"), call.get("trigger_id")
        if not isinstance(session, str) or not re.fullmatch(SESSION, session):
            raise Refused(400, "session_hash must be the session of the page.")
        if not self.streams[session]:
            raise Refused(409, "This page has no open connection: load it again.")
        if type(function) is not int or function not in self.functions:
            raise Refused(400, "fn_index must be one of the page's functions.")
        if type(trigger) not in (int, type(None)):
            raise Refused(400, "trigger_id must be an integer.")
        data = call.get("data")
        if not isinstance(data, list) or len(data) > 64 or not all(isinstance(value, SCALARS) for value in data):
            raise Refused(400, "data must be a list of texts and numbers.")  # files are not allowed
        if any(isinstance(value, float) and not math.isfinite(value) for value in data):
            raise Refused(400, "data must have finite numbers.")
        try:
            self.functions[function](data)
        except Exception:
            raise Refused(400, "data must have a possible value for each input of the function.") from None
        return call


def count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def with_body(scope: Scope, body: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """Returns the request with `body`, which is JSON, instead of its own."""
    replaced = (b"content-length", b"content-type", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return scope | {"headers": headers}, receive_again
