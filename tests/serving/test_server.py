# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""`radd serve` with a tiny model and real connections: none is lost, and every answer is the one that it is alone."""

import contextlib
import gc
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from radd_hf import RaddInfillingPipeline
from radd_hf.app import cli
from radd_hf.serving import server as server_module
from radd_hf.serving.arguments import parse_arguments
from radd_hf.serving.asgi import Names, accepts
from radd_hf.serving.handler import EndpointHandler, Limits
from radd_hf.serving.server import Server, Service, bind, draft_text, main
from support.paths import ROOT
from support.toys import random_model

LENGTH, WAIT = 64, 60.0  # tokens; seconds, for what takes milliseconds
TEXT = "It is [MASK:5] truth"


@pytest.fixture(scope="module")
def fill(tiny_tokenizer) -> RaddInfillingPipeline:
    model = random_model(vocab_size=300, max_position_embeddings=LENGTH)
    return RaddInfillingPipeline(model=model, tokenizer=tiny_tokenizer, device="cpu")


@pytest.fixture
def alone(fill):
    """The answer to a request of somebody who has the model for himself."""
    return EndpointHandler(pipeline=fill)


class Running:
    """A service at a port of this machine.

    A batch waits before its first evaluation while `open` is not set, and after each event while `drafts` is not.
    """

    def __init__(self, fill: RaddInfillingPipeline, grace: float = WAIT, **settings):
        self.service = Service(fill.model, fill.tokenizer, name="toy", **settings)
        self.open, self.drafts, self.begun, self.batches = (
            threading.Event(),
            threading.Event(),
            threading.Semaphore(0),
            [],
        )
        self.open.set()
        self.drafts.set()
        work = self.service.batcher.fill

        def held(rows, *, streamer, **settings):
            put_draft = streamer.put_draft
            streamer.put_draft = lambda canvas: put_draft(canvas) or self.drafts.wait(WAIT)
            self.batches.append(len(rows))
            self.begun.release()
            assert self.open.wait(WAIT)
            return work(rows, streamer=streamer, **settings)

        self.service.batcher.fill = held
        listener = bind("127.0.0.1", 0)
        listener.listen()
        self.port = listener.getsockname()[1]
        self.server = Server(self.service, Names(), grace)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def end(self) -> None:
        self.server.should_exit = True
        self.open.set()
        self.drafts.set()
        self.thread.join(WAIT)
        self.service.close()
        assert not self.thread.is_alive()

    def wait_until(self, condition) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ask(self, method: str = "POST", path: str = "/generate", data=None, **headers):
        """The status, the headers, and the JSON or text of the answer."""
        body = data if isinstance(data, (bytes, type(None))) else json.dumps(data).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            text = answer.read().decode()
        is_json = answer.headers.get("content-type") == "application/json"
        return answer.status, answer.headers, json.loads(text) if is_json else text

    def fill(self, inputs, **parameters):
        status, _, answer = self.ask(data={"inputs": inputs, "parameters": parameters})
        assert status == 200, answer
        return answer

    def connect(self, data) -> socket.socket:
        """A client that sends a request and reads nothing yet."""
        body = json.dumps(data).encode()
        client = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        client.sendall(
            b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        return client


@pytest.fixture
def run(fill):
    running = []

    def start(**settings) -> Running:
        running.append(Running(fill, **settings))
        return running[-1]

    yield start
    for each in running:
        each.end()


def counted(path: str, status: int) -> str:
    """The line of the metrics that says that one such response was given."""
    return f'radd_requests_total{{path="{path}",status="{status}"}} 1.0'


def texts_of(answer) -> list:
    """The texts of an answer; scores may differ by the rounding of a batch."""
    outputs = answer["outputs"] if isinstance(answer["outputs"][0], list) else [answer["outputs"]]
    return [[sample["text"] for sample in samples] for samples in outputs]


# ---------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------


def test_the_answer_is_that_of_the_handler(run, alone):
    data = {"inputs": [TEXT, {"prefix": "It", "length": 9}], "parameters": {"seed": 3, "num_return_sequences": 2}}
    running = run()
    for path in ("/generate", "/"):
        assert running.ask(path=path, data=data)[::2] == (200, json.loads(json.dumps(alone(data))))


def test_without_a_seed_the_answer_names_one_that_gives_the_same_text(run):
    running = run()
    answer = running.fill(TEXT)
    assert running.fill(TEXT, seed=answer["seed"]) == answer


def test_of_32_clients_at_once_none_is_lost_and_each_has_the_answer_that_it_has_alone(run, alone):
    running = run()
    inputs = [[f"It is [MASK:{4 + number % 3}] truth", {"prefix": "A", "max_new_tokens": 6}] for number in range(32)]
    expected = [alone({"inputs": each, "parameters": {"seed": n}}) for n, each in enumerate(inputs)]
    running.open.clear()
    with ThreadPoolExecutor(32) as clients:
        answers = [clients.submit(running.fill, each, seed=number) for number, each in enumerate(inputs)]
        running.wait_until(lambda: len(running.service.batcher.waiting) + sum(running.batches) == 64)
        running.open.set()
        assert [texts_of(each.result(WAIT)) for each in answers] == [texts_of(each) for each in expected]
    assert len(running.batches) <= 5, "rows of one shape that wait are filled together"


@pytest.mark.parametrize("asked", [{"stream": True}, {}], ids=["by a field", "by a header"])
def test_drafts_are_streamed_and_lead_to_the_answer(run, alone, asked):
    data = {"inputs": TEXT, "parameters": {"seed": 3, "method": "ordered", "num_return_sequences": 2}}
    running, events, name = run(), [], ""
    running.drafts.clear()
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=WAIT)
    headers = {} if asked else {"accept": "text/event-stream"}
    connection.request("POST", "/generate", json.dumps(data | asked), headers)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    while line := answer.readline().decode():
        if line.startswith("data: "):
            events.append((name, json.loads(line.removeprefix("data: "))))
            running.drafts.set()  # the first draft is read before the second is written
        name = line.strip().removeprefix("event: ")
    *drafts, last = events
    assert last == ("done", alone(data))
    assert [name for name, _ in drafts] == ["draft"] * len(drafts)
    blanks = [sum(map(int, re.findall(r"\[MASK:(\d+)\]", draft["texts"][0]))) for _, draft in drafts]
    assert blanks[0] == 4
    assert blanks == sorted({*blanks}, reverse=True)
    assert all(draft["input"] == 0 and len(draft["texts"]) == 2 for _, draft in drafts)


def test_a_draft_is_a_text_with_blanks_that_reads_as_the_same_canvas(fill):
    mask = fill.model.config.mask_token_id
    for text in ("It is [MASK:5] truth, in [MASK:2]", "[MASK:3] truth"):
        row = fill.encode(text, 1)
        ids = row["input_ids"][0].tolist()
        for place in [place for place, token in enumerate(ids) if token == mask][1::2]:
            ids[place] = fill.tokenizer(" truth", add_special_tokens=False)["input_ids"][0]
        assert fill.encode(draft_text(row, ids, fill.tokenizer, mask), 1)["input_ids"][0].tolist() == ids


def test_health_facts_and_metrics_are_told(run):
    running = run(limits=Limits(inputs=3))
    running.fill([TEXT, TEXT])
    assert running.ask("GET", "/health")[::2] == (200, {"status": "ok"})
    facts = running.ask("GET", "/info")[2]
    assert (facts["model"], facts["limits"]["inputs"], facts["limits"]["length"]) == ("toy", 3, LENGTH)
    assert facts["parameters"]["temperature"]["default"] == 1.0
    lines = running.ask("GET", "/metrics")[2].splitlines()
    counts = {"radd_batch_rows_sum 2.0", "radd_written_tokens_total 10.0", 'radd_batches_total{outcome="filled"} 1.0'}
    assert counts | {counted("/generate", 200), counted("/info", 200), "radd_queue_rows 0.0"} <= {*lines}


def test_every_response_is_counted_and_a_batch_that_failed(run):
    running = run()

    def fails(rows, *, streamer, **settings):
        streamer.put_draft(torch.zeros(1, rows[0]["input_ids"].shape[1], dtype=torch.long))
        raise RuntimeError

    running.ask("GET", "/models")
    running.ask("GET", "/generate")
    running.ask("GET", "/health", host="evil.com")
    running.open.clear()
    client = running.connect({"inputs": TEXT, "stream": True})
    assert running.begun.acquire(timeout=WAIT)
    client.close()
    expected = {counted("other", 404), counted("/generate", 405), counted("/health", 421), counted("/generate", 499)}
    running.wait_until(lambda: expected <= {*running.ask("GET", "/metrics")[2].splitlines()})
    running.open.set()
    running.wait_until(lambda: not running.service.batcher.running)
    running.service.batcher.fill = fails
    assert '"status": 500' in running.ask(data={"inputs": TEXT, "stream": True})[2]
    expected = {counted("/generate", 500), 'radd_batches_total{outcome="failed"} 1.0'}
    assert expected <= {*running.ask("GET", "/metrics")[2].splitlines()}


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "no blank": ({"data": {"inputs": "A"}}, 400, "has no blank"),
    "no JSON": ({"data": b'{\n"a" 3}'}, 400, "must be a JSON object: line 2, column 5: Expecting"),
    "a list": ({"data": b"[]"}, 400, "must be a JSON object: it is a list."),
    "no UTF-8": ({"data": b'{"\xff'}, 400, "must be a JSON object: byte 2 is not UTF-8."),
    "not a number": ({"data": b'{"top_p": NaN}'}, 400, "JSON object: NaN is not a number in JSON."),
    "a long number": ({"data": b'{"a": %s}' % (b"1" * 5000)}, 400, "must be a JSON object: an integer has 5000 digits"),
    "a deep one": ({"data": b"[" * 100_000}, 400, "must be a JSON object: lists or objects are nested too deep."),
    "a model": ({"data": {"inputs": TEXT, "model": "/etc/passwd"}}, 400, "it may have inputs, parameters, stream."),
    "many tokens": ({"data": {"inputs": "[MASK:65]"}}, 400, "65 tokens; it must have at most 64"),
    "a stream": ({"data": {"inputs": TEXT, "stream": "yes"}}, 400, "must be true or false"),
    "settings that do not fit": (
        {"data": {"inputs": TEXT, "parameters": {"method": "first_hitting", "steps": 3}}},
        400,
        "leave steps out",
    ),
    "a large body": ({"data": b" " * (2**20 + 1)}, 413, "at most 1,048,576 bytes"),
    "a body of many buffers": ({"data": b" " * 2**23}, 413, "at most 1,048,576 bytes"),
    "another path": ({"path": "/models"}, 404, "Not Found"),
    "another method": ({"method": "GET"}, 405, "Method Not Allowed"),
    "another's name": ({"data": {"inputs": TEXT}, "host": "evil.com"}, 421, "Nothing is served here"),
    "another's page": ({"data": {"inputs": TEXT}, "origin": "http://evil.com"}, 403, "Only a page of this server"),
}


@pytest.fixture(scope="module")
def idle(fill):
    running = Running(fill)
    yield running
    running.end()


@pytest.mark.parametrize(("asked", "status", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_in_one_line_of_json(idle, asked, status, reason):
    found, _, answer = idle.ask(**asked)
    assert found == status
    assert reason in answer["error"]
    assert "\n" not in answer["error"]


def test_a_silent_connection_is_closed_also_after_an_answer_and_in_a_header(run, monkeypatch):
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.2)
    port = run().port
    for said in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea"):
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as client:
            client.sendall(said)
            while client.recv(4096):
                pass


def test_a_text_that_takes_longer_than_a_header_may_is_waited_for(run, monkeypatch):
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.05)
    running = run()
    running.open.clear()
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(running.fill, TEXT)
        time.sleep(0.5)
        running.open.set()
        assert answer.result(WAIT)["outputs"]


def test_silent_connections_make_room_for_new_ones_the_oldest_first(run, monkeypatch):
    monkeypatch.setattr(server_module, "CONNECTIONS", 2)
    running = run()
    first, second = (socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) for _ in range(2))
    running.wait_until(lambda: len(running.server.server_state.connections) == 2)
    assert running.ask("GET", "/health")[0] == 200
    assert first.recv(1) == b"", "it is closed"
    second.sendall(b"GET /health HTTP/1.0\r\nhost: localhost\r\n\r\n")
    assert second.recv(4096).startswith(b"HTTP/1.1 200")


def test_beyond_the_most_requests_at_once_one_is_refused_until_there_is_room(run, monkeypatch):
    monkeypatch.setattr(server_module, "REQUESTS", 1)
    running = run()
    running.open.clear()
    client = running.connect({"inputs": TEXT})
    assert running.begun.acquire(timeout=WAIT)
    status, headers, answer = running.ask("GET", "/health")
    assert (status, headers["retry-after"]) == (503, "1")
    assert "too many requests at once" in answer["error"]
    client.close()
    running.wait_until(lambda: running.ask("GET", "/health")[0] == 200)


def test_the_header_accept_is_read_whatever_its_letters_and_weights():
    def wants(accept: str) -> bool:
        return accepts({"accept": [accept]}, "text/event-stream")

    assert all(map(wants, ("text/event-stream", "application/json, Text/Event-Stream; q=0.5")))
    assert not any(map(wants, ("", "*/*", "text/event-stream;q=0", "text/event-stream; q=0.00", "text/event-streams")))


def test_a_full_queue_refuses_and_says_when_to_try_again(run):
    running = run(queue=1)
    running.open.clear()
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(running.fill, TEXT)]
        assert running.begun.acquire(timeout=WAIT)
        answers.append(clients.submit(running.fill, TEXT))
        running.wait_until(lambda: running.service.batcher.waiting)
        for stream in (False, True):
            status, headers, answer = running.ask(data={"inputs": TEXT, "stream": stream})
            assert (status, headers["retry-after"]) == (429, "1")
            assert "1 texts wait, and the most is" in answer["error"]
        running.open.set()
        assert all(answer.result(WAIT)["outputs"] for answer in answers)


def test_a_request_that_would_never_find_a_place_is_refused(run):
    status, _, answer = run(queue=2).ask(data={"inputs": [TEXT] * 3})
    assert (status, answer) == (400, {"error": "inputs has 3 texts; it must have 1 to 2."})


def test_who_waits_too_long_is_told_and_leaves_the_queue(run):
    running = run(max_wait=0.2)
    running.open.clear()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(running.fill, TEXT)
        assert running.begun.acquire(timeout=WAIT)
        status, headers, answer = running.ask(data={"inputs": TEXT})
        assert (status, headers["retry-after"]) == (503, "1")
        assert "waited for more than 0.2 s" in answer["error"]
        assert running.service.batcher.waiting == []
        running.open.set()
        assert first.result(WAIT)["outputs"], "a text whose batch has begun is waited for"


def test_a_failure_of_the_server_is_told_without_its_reason_and_logged(run, monkeypatch, capsys):
    running = run()

    def fails(rows, **settings):
        raise RuntimeError("secret \x1b of\nthe server")

    running.service.batcher.fill = fails
    status, _, answer = running.ask(data={"inputs": TEXT})
    assert (status, answer) == (500, {"error": "The server failed at this request. Its log has the reason."})
    assert capsys.readouterr().err.count("\n") == 1
    assert running.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place_and_leaves_no_noise(run, stream, caplog):
    running = run(queue=1)
    running.open.clear()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(running.fill, TEXT)
        assert running.begun.acquire(timeout=WAIT)
        client = running.connect({"inputs": TEXT, "stream": stream})
        running.wait_until(lambda: running.service.batcher.waiting)
        client.close()
        running.wait_until(lambda: not running.service.batcher.waiting)
        running.open.set()
        assert first.result(WAIT)["outputs"]
    running.end()
    gc.collect()
    assert caplog.records == []


# ---------------------------------------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------------------------------------


def test_a_server_that_stops_answers_what_it_has_and_takes_nothing_new(run):
    running = run()
    running.open.clear()
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(running.fill, TEXT) for _ in range(2)]
        running.wait_until(lambda: len(running.service.batcher.waiting) + sum(running.batches) == 2)
        running.server.should_exit = True
        running.wait_until(lambda: running.service.batcher.closed)
        with pytest.raises(ConnectionError):
            running.wait_until(lambda: running.ask("GET", "/health")[0] is None)
        running.open.set()
        assert all(answer.result(WAIT)["outputs"] for answer in answers)
    running.thread.join(WAIT)
    assert not running.thread.is_alive()


def test_after_the_grace_period_those_who_wait_are_refused(run):
    running = run(grace=0.2)
    running.open.clear()
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(running.ask, data={"inputs": TEXT})]
        assert running.begun.acquire(timeout=WAIT)
        answers.append(clients.submit(running.ask, data={"inputs": TEXT}))
        running.wait_until(lambda: running.service.batcher.waiting)
        running.server.should_exit = True
        assert answers[1].result(WAIT)[::2] == (503, {"error": "The server is stopping."})
        running.open.set()
        assert answers[0].result(WAIT)[::2] == (503, {"error": "The server is stopping."})


def test_a_second_interrupt_refuses_those_who_wait_at_once(run):
    running = run()
    running.open.clear()
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(running.ask, data={"inputs": TEXT})
        assert running.begun.acquire(timeout=WAIT)
        for _ in range(2):
            running.server.handle_exit(signal.SIGINT, None)
        assert answer.result(WAIT)[::2] == (503, {"error": "The server is stopping."})


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_serves_until_a_signal_ends_it(fill, alone, tmp_path, number, status):
    fill.model.save_pretrained(tmp_path)
    fill.tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "radd_hf", "serve", str(tmp_path), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        line = process.stderr.readline()
        port = int(re.search(r" is served at http://127\.0\.0\.1:(\d+)/generate\n", line)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        data = {"inputs": TEXT, "parameters": {"seed": 1}}
        connection.request("POST", "/generate", json.dumps(data))
        assert json.loads(connection.getresponse().read()) == alone(data)
        process.send_signal(number)
        rest = process.communicate(timeout=WAIT)[1]
    assert (process.returncode, rest) == (status, "radd: stopped\n")


def test_a_package_that_is_missing_is_named_with_what_installs_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "radd_hf.serving.server")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["serve", "--help"])
    assert "routes:" in capsys.readouterr().out
    assert cli.main(["serve", "mine"]) == 1
    assert capsys.readouterr().err == "radd: error: the server needs its packages: pip install 'radd_hf[serve]'\n"


def test_a_port_that_is_taken_and_a_limit_of_nothing_are_refused_before_a_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(server_module, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at host='127.0.0.1' and port={port}"):
            main(parse_arguments(["toy", "--port", str(port)]))
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["toy", "--max-queue", "0"])
    assert "--max-queue 0 must be a number in 1 .. 2147483647." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"), [("--port", "65536"), ("--host", ""), ("--host", "[::1"), ("--host", "::1]")]
)
def test_an_address_that_is_none_is_a_fault_of_the_command_line(capsys, flag, value):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["serve", "toy", flag, value])
    assert f"{flag} {value if flag == '--port' else repr(value)} must be" in capsys.readouterr().err
