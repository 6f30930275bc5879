# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What the gate of the page lets through, called as a server would call it, without one."""

import asyncio
import json
from collections import Counter

import pytest

from radd_hf.app.gate import LARGEST_BODY, Gate, is_loopback

JOIN = "/gradio_api/queue/join"
CALL = {"data": ["text", 1, None], "fn_index": 3, "session_hash": "abc"}


def ask(method="GET", path="/", body=b"", host="localhost:7860", query="", headers=(), **settings):
    """The status of the answer, and what the application behind the gate was given, None if nothing."""
    passed, statuses, streams = [], [], settings.setdefault("streams", Counter())

    async def application(scope, receive, send):
        passed.append((scope, (await receive())["body"], dict(streams)))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        statuses.append(message.get("status", message.get("code")))

    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "client": ("10.0.0.9", 1)}
    scope["headers"] = [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in headers)]
    asyncio.run(Gate(application, functions={3}, **settings)(scope, receive, send))
    return statuses[0], passed[0] if passed else None


def call(**changes) -> bytes:
    return json.dumps(CALL | changes).encode()


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/index-x1.js", "/gradio_api/heartbeat/abc"])
def test_what_shows_the_page_passes(path):
    assert ask(path=path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/proxy=http://x/"),
        *("/gradio_api/component_server", "/gradio_api/call/go", "/gradio_api/api/go", "/gradio_api/run/go"),
        *("/gradio_api/info", "/monitoring", "/gradio_api/cancel", "/gradio_api/reset", "/login", "/docs"),
        *("/assets/../../etc/passwd", "/static/../x", "/gradio_api/heartbeat/../x", "//", "/\0", "/svelte/x"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_what_the_page_does_not_use_is_shut(method, path):
    assert ask(method, path, call()) == (404, None)


@pytest.mark.parametrize(
    "host", ["evil.com", "localhost.evil.com", "evil.com:7860", "", "localhost@evil.com", "10.0.0.1"]
)
def test_on_this_machine_alone_the_page_has_the_names_of_this_machine(host):
    assert ask(host=host) == (421, None)
    assert ask(host="127.0.0.1:9")[0] == ask(host="[::1]:9")[0] == ask(host="LOCALHOST")[0] == 200


def test_elsewhere_the_page_has_its_numbers_and_the_names_it_was_given():
    settings = {"hosts": ["Page.example"], "addresses_allowed": True}
    for host in ("192.168.1.7:7860", "[fe80::1]:7860", "page.example", "page.example:443"):
        assert ask(host=host, **settings)[0] == 200
    assert ask(host="other.example", **settings)[0] == 421


def test_another_page_cannot_call_the_functions_of_this_one():
    for origin in ("http://evil.com", "http://localhost:9", "null", "http://127.0.0.1:7860"):
        assert ask("POST", JOIN, call(), headers=[("origin", origin)]) == (403, None)
    assert ask("POST", JOIN, call(), headers=[("origin", "http://localhost:7860")])[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[]",
        b"\xff\xfe",
        b"9" * 10_000,
        call(fn_index=99),
        call(fn_index="3"),
        call(fn_index=True),
        call(session_hash="../x"),
        call(session_hash=None),
        call(session_hash=7),
        call(data={}),
        call(data=None),
        call(data=["x"] * 65),
        call(data=[{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]),
        call(data=[["x"]]),
        call(trigger_id="x"),
    ],
)
def test_a_call_that_the_page_would_not_send_is_refused(body):
    assert ask("POST", JOIN, body) == (400, None)


def test_a_large_body_is_refused_by_its_length_and_by_its_bytes():
    assert ask("POST", JOIN, b" " * (LARGEST_BODY + 1)) == (413, None)
    assert ask("POST", JOIN, call(), headers=[("content-length", str(10**12))]) == (413, None)


def test_only_the_fields_of_a_call_are_passed_on():
    scope, body, _ = ask("POST", JOIN, call(batched=True, event_id="another's", event_data={}))[1]
    assert json.loads(body) == CALL
    assert dict(scope["headers"])[b"content-length"] == str(len(body)).encode()


def test_an_open_page_is_counted_until_its_connection_ends():
    streams = Counter()
    seen = ask(path="/gradio_api/queue/data", query="session_hash=abc", streams=streams)[1][2]
    assert (seen, streams) == ({"abc": 1}, Counter())


def test_a_web_socket_is_closed():
    sent = []

    async def send(message):
        sent.append(message["type"])

    asyncio.run(Gate(None)({"type": "websocket"}, None, send))
    assert sent == ["websocket.close"]


def test_loopback_is_told_from_addresses_that_others_reach():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "example.com")))
