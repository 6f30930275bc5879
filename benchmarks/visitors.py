# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tests the web page with visitors who generate, score, stop, leave or send garbage, and one who asks for 300 runs.

    make visitors
    .browser/bin/python -m benchmarks.visitors --visitors 50 --seconds 60

Each visitor has its own address, 127.0.0.x, and speaks HTTP like the page in a browser. The benchmark counts how runs
ended. A run is lost if its visitor got neither an answer nor a reason. The benchmark needs Linux, since only there a
visitor can choose its address.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from radd_hf.endings import note, run_program

API = "/gradio_api"
FILL, SCORE = "fill", "score_text"  # names of the page's functions
GARBAGE = (
    b"[" * 100_000,
    b"{}",
    b"\0" * 1000,
    b'{"data": [{"path": "/etc/passwd"}], "fn_index": 5, "session_hash": "x"}',
)
# Clients close a connection before the server does, after 5 s. Otherwise a call could meet a closing connection.
CONNECTIONS = httpx.Limits(max_connections=100, keepalive_expiry=1)
# Longer than any run may wait: the whole queue, and the time of a run.
PATIENCE = 300.0


class Page:
    """The page as a program sees it: its address, and for each function its index and the values of its fields."""

    def __init__(self, address: str):
        config = httpx.get(f"{address}/config").json()
        values = {part["id"]: part["props"].get("value") for part in config["components"]}
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self.address = address
        self.calls = {each["api_name"]: each for each in config["dependencies"]}
        self.fields = {name: [names[part] for part in each["inputs"]] for name, each in self.calls.items()}
        self.values = {name: [values[part] for part in each["inputs"]] for name, each in self.calls.items()}

    def call(self, function: str, session: str, **fields: object) -> dict:
        data = list(self.values[function])
        for name, value in fields.items():
            data[self.fields[function].index(name)] = value
        return {"data": data, "fn_index": self.calls[function]["id"], "session_hash": session}


async def ask(
    page: Page, client: httpx.AsyncClient, function: str, session: str, leave: bool = False, **fields: object
) -> str:
    """Presses a button of an open page and waits. Returns how it ended: done, stopped, busy, refused, left or lost."""
    async with asyncio.timeout(PATIENCE), client.stream("GET", f"{API}/heartbeat/{session}") as heartbeat:
        if heartbeat.status_code != 200:
            return "busy" if heartbeat.status_code == 503 else "lost"
        joined = await client.post(f"{API}/queue/join", json=page.call(function, session, **fields))
        if joined.status_code != 200:
            return "busy" if joined.status_code == 503 else "refused"
        line = ""
        async with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as events:
            async for text in events.aiter_lines():
                if not text.startswith("data:"):
                    continue
                event = json.loads(text[5:])
                line += text
                if leave and event["msg"] == "process_generating":
                    return "left"
                if event["msg"] == "process_completed":
                    if event["success"]:
                        return "stopped" if "Stopped" in line else "done"
                    return "busy" if re.search("unfinished runs|such a run already", line) else "refused"
    return "lost"


async def visit(page: Page, number: int, until: float, ended: Counter[str], waits: list[float]) -> None:
    """Acts as a visitor who does one thing after another until the time is over."""
    chance = random.Random(number)
    transport = httpx.AsyncHTTPTransport(local_address=f"127.0.0.{number + 2}", limits=CONNECTIONS)
    async with httpx.AsyncClient(base_url=page.address, transport=transport, timeout=PATIENCE) as client:
        while time.monotonic() < until:
            session = f"{number}-{chance.getrandbits(60):x}"  # the page is loaded again
            kind = chance.choice(["fill", "fill", "score", "stop", "leave", "garbage", "reload"])
            started = time.monotonic()
            how = "done"
            try:
                if kind == "reload":
                    how = "done" if (await client.get("/")).status_code == 200 else "lost"
                elif kind == "garbage":
                    answer = await client.post(f"{API}/queue/join", content=chance.choice(GARBAGE))
                    how = "refused" if 400 <= answer.status_code < 500 else "lost"
                elif kind == "score":
                    how = await ask(page, client, SCORE, session)
                elif kind == "stop":
                    run = asyncio.create_task(ask(page, client, FILL, session, text="[MASK:100]", pause=0.5))
                    while not run.done():
                        await asyncio.sleep(1)
                        await client.post(f"{API}/run/predict", json=page.call("halt", session))
                    how = run.result()
                else:
                    how = await ask(page, client, FILL, session, leave=kind == "leave", pause=0)
            except (httpx.HTTPError, TimeoutError):
                how = "lost"
            ended[f"{kind}: {how}"] += 1
            waits.append(time.monotonic() - started)
            await asyncio.sleep(chance.uniform(0, 2))


async def be_greedy(page: Page, runs: int, ended: Counter[str]) -> None:
    """Acts as a visitor who asks for many runs, each in its own session, as many at once as connections allow."""
    places = asyncio.Semaphore(40)  # each run needs two connections, and sometimes one for a call

    async def ask_in(session: str) -> str:
        async with places:
            return await ask(page, client, FILL, session, text="[MASK:100]", pause=0)

    transport = httpx.AsyncHTTPTransport(local_address="127.0.1.1", limits=CONNECTIONS)
    async with httpx.AsyncClient(base_url=page.address, transport=transport, timeout=PATIENCE) as client:
        asked = (ask_in(f"greedy-{run}") for run in range(runs))
        for how in await asyncio.gather(*asked, return_exceptions=True):
            ended[f"greedy: {'lost' if isinstance(how, BaseException) else how}"] += 1


def megabytes_of(process: int, field: str) -> int:
    """Returns a field of a process in MB: VmRSS, its memory, or VmHWM, the peak."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) // 1024


async def measure(page: Page, args: argparse.Namespace) -> tuple[Counter[str], list[float]]:
    ended, waits = Counter[str](), list[float]()
    until = time.monotonic() + args.seconds
    visits = (visit(page, number, until, ended, waits) for number in range(args.visitors))
    await asyncio.gather(be_greedy(page, args.greedy, ended), *visits)
    return ended, waits


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--visitors", type=int, choices=range(1, 201), metavar="N", default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--greedy", type=int, default=300, help="runs that one further visitor asks for at once")
    args = parser.parse_args(argv)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        command = [sys.executable, "app.py", "--port", str(port), "--seconds", "20"]
        app = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while app.poll() is None and time.monotonic() < deadline:
                log.seek(0)
                if "Running on" in log.read():
                    break
                time.sleep(0.2)
            page = Page(f"http://127.0.0.1:{port}")
            begin = megabytes_of(app.pid, "VmRSS")
            ended, waits = asyncio.run(measure(page, args))
            end, peak = megabytes_of(app.pid, "VmRSS"), megabytes_of(app.pid, "VmHWM")
        finally:
            app.terminate()
            app.wait(30)
        log.seek(0)
        failures = log.read().count("Traceback")
    for kind, count in sorted(ended.items()):
        note(f"  {kind:<20}{count:>5}")
    lost = sum(count for kind, count in ended.items() if kind.endswith("lost"))
    print(f"{args.visitors} visitors and one who asked for {args.greedy} runs, {args.seconds:g} s")
    print(f"{ended.total()} requests, {lost} lost, {failures} tracebacks; longest wait {max(waits):.1f} s")
    print(f"memory of the server: {begin} MB at the beginning, {peak} MB at most, {end} MB at the end")
    if lost or failures:
        raise ValueError(f"{lost} requests were lost, and the server's log has {failures} tracebacks.")


if __name__ == "__main__":
    run_program(main, "visitors")
