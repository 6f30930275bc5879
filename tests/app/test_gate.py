# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What the gate of the page lets through, called as a server would call it, without one."""

import asyncio
import json
from collections import Counter

import pytest

from radd_hf.app.gate import CONNECTIONS_OF_ADDRESS, LARGEST_BODY, UNREAD, Gate
from radd_hf.serving.asgi import is_loopback, visitor_at

JOIN = "/gradio_api/queue/join"
CALL = {"data": ["text", 1, None], "fn_index": 3, "session_hash": "abc"}


def three_inputs(data):
    text, number, _ = data
    str(text) + "", number + 1


class Kept:
    """Sessions of an application: the calls without an answer of each, and those it was told to forget."""

    def __init__(self, **unread):
        self.calls, self.forgotten = unread, []

    def unread(self, session):
        return self.calls.get(session)

    async def forget(self, session):
        self.forgotten.append(session)


def ask(method="GET", path="/", body=b"", host="localhost:7860", query="", headers=(), **settings):
    """The status of the answer, and what the application behind the gate was given, None if nothing."""
    passed, statuses = [], []
    streams = settings.setdefault("streams", Counter(abc=1))  # the page of CALL is open

    async def application(scope, receive, send):
        passed.append((scope, (await receive())["body"], dict(streams)))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        statuses.append(message.get("status", message.get("code")))

    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "client": ("10.0.0.9", 1)}
    scope["headers"] = [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in headers)]
    asyncio.run(Gate(application, functions={3: three_inputs}, **settings)(scope, receive, send))
    return statuses[0], passed[0] if passed else None


def call(**changes) -> bytes:
    return json.dumps(CALL | changes).encode()


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/index-x1.js", "/gradio_api/heartbeat/abc"])
def test_what_shows_the_page_passes(path):
    assert ask(path=path)[0] == 200


def test_a_page_that_lost_its_connection_learns_that_the_server_is_back():
    assert ask(path="/gradio_api/app_id")[0] == 200
    assert ask("POST", "/gradio_api/app_id", call()) == (404, None)


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
    "host",
    [
        *("evil.com", "localhost.evil.com", "evil.com:7860", "", "localhost@evil.com", "10.0.0.1"),
        *("[::1].evil.com", "[::1]evil.com:80", "localhost..", "localhost:x"),
    ],
)
def test_on_this_machine_alone_the_page_has_the_names_of_this_machine(host):
    assert ask(host=host) == (421, None)
    assert ask(host="127.0.0.1:9")[0] == ask(host="[::1]:9")[0] == ask(host="LOCALHOST.")[0] == 200


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
        b"[" * 60_000,
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
        call(data=[]),
        call(data=["text", 1, None, None]),
        call(data=["text", "no number", None]),
        call(data=["text", float("nan"), None]),
        call(data=["text", float("inf"), None]),
        call().replace(b"1,", b"1e999,"),
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
    streams, kept = Counter(), Kept(abc=0)
    data = {"path": "/gradio_api/queue/data", "query": "session_hash=abc", "streams": streams, "sessions": kept}
    assert ask(**data)[1][2] == {"abc": 1}
    assert (streams, kept.forgotten) == (Counter(), ["abc"])
    streams["abc"] = 1  # another connection of the same page
    ask(**data)
    assert kept.forgotten == ["abc"]


def test_answers_are_sent_to_a_session_that_there_is():
    for path, status in (("/gradio_api/queue/data", 404), ("/gradio_api/heartbeat/new", 200)):
        assert ask(path=path, query="session_hash=new", sessions=Kept(abc=0))[0] == status


def test_a_call_whose_answer_nobody_would_read_is_refused():
    assert ask("POST", JOIN, call(), streams=Counter()) == (409, None)
    assert ask("POST", JOIN, call(), sessions=Kept(abc=UNREAD)) == (429, None)
    assert ask("POST", JOIN, call(), sessions=Kept(abc=UNREAD - 1))[0] == 200
    assert ask("POST", "/gradio_api/run/predict", call(), sessions=Kept(abc=UNREAD))[0] == 200  # such as stop


def test_a_call_that_outlives_its_page_leaves_nothing():
    streams, kept = Counter(abc=1), Kept(abc=0)

    async def application(scope, receive, send):
        streams.clear()

    async def receive():
        return {"type": "http.request", "body": call()}

    scope = {"type": "http", "method": "POST", "path": JOIN, "headers": [(b"host", b"localhost")]}
    gate = Gate(application, functions={3: three_inputs}, streams=streams, sessions=kept)
    asyncio.run(gate(scope, receive, None))
    assert kept.forgotten == ["abc"]


def test_calls_whose_bodies_are_on_their_way_count_among_the_connections_of_an_address():
    statuses = []

    async def run():
        async def never():
            await asyncio.Event().wait()

        async def send(message):
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": JOIN, "client": ("10.0.0.9", 1)}
        scope["headers"] = [(b"host", b"localhost")]
        gate = Gate(None)
        slow = [asyncio.create_task(gate(scope, never, send)) for _ in range(CONNECTIONS_OF_ADDRESS)]
        await asyncio.sleep(0)
        await gate(scope, never, send)
        for task in slow:
            task.cancel()

    asyncio.run(run())
    assert statuses == [503, None]


def test_a_name_from_a_proxy_that_is_none_of_the_pages_is_left_out():
    def passed(name):
        headers = dict(ask(headers=[("x-forwarded-host", name)], hosts=["page.example"])[1][0]["headers"])
        return headers.get(b"x-forwarded-host")

    assert passed("page.example") == b"page.example"
    assert passed("evil.com") is passed("page.example, evil.com") is passed("[::1].evil.com") is None


def test_a_visitor_has_one_ipv4_address_or_one_ipv6_network():
    assert visitor_at("2001:db8::1") == visitor_at("2001:db8::ffff:1") != visitor_at("2001:db8:0:1::1")
    assert visitor_at("::ffff:10.0.0.9") == visitor_at("10.0.0.9") == "10.0.0.9"
    assert visitor_at("testclient") == "testclient"


def test_a_web_socket_is_closed():
    sent = []

    async def send(message):
        sent.append(message["type"])

    asyncio.run(Gate(None)({"type": "websocket"}, None, send))
    assert sent == ["websocket.close"]


def test_loopback_is_told_from_addresses_that_others_reach():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "example.com")))
