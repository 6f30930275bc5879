# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares `radd serve` under concurrent clients with offline batches of as many texts.

    python -m benchmarks.serving
    python -m benchmarks.serving --model checkpoints/radd-austen --clients 32 --blank 32 --rounds 5

In each round the model first fills batches offline, by `pipeline.fill`; a batch has a text for each client. Then the
clients, each in its own thread, ask a server in another process for as many texts. Each asks again as soon as it has an
answer. The benchmark prints the tokens per second of both, as medians over the rounds, and their ratio. It also prints
the ratio by the CPU time of the two processes with the model, which other programs disturb less. It counts lost
answers, and answers that differ from the text of the same request alone.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psutil

from radd_hf import RaddInfillingPipeline
from radd_hf.endings import note, run_program
from radd_hf.hub.loading import load
from radd_hf.serving.handler import EndpointHandler, Limits

from .measure import EXACT

SERVED = re.compile(r" is served at http://127\.0\.0\.1:(\d+)/")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="checkpoints/radd-austen")
    parser.add_argument("--clients", type=int, default=32, help="clients that ask at the same time (default 32)")
    parser.add_argument("--requests", type=int, default=4, help="requests of each client in a round (default 4)")
    parser.add_argument("--blank", type=int, default=32, help="tokens that each request asks for (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to measure (default 5)")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main(argv: list[str]) -> dict[str, Any]:
    args = parse_arguments(argv)
    model, tokenizer = load(args.model, device=args.device)
    fill = RaddInfillingPipeline(model=model, tokenizer=tokenizer, device=model.device)
    alone = EndpointHandler(pipeline=fill, limits=Limits(inputs=args.clients, tokens=2**24))
    tokens, offline, online = args.clients * args.blank * args.requests, list[float](), list[float]()
    seconds, server_seconds = 0.0, 0.0  # CPU time
    lost = different = 0
    expected = dict[int, str]()
    command = [sys.executable, "-m", "radd_hf", "serve", args.model, "--port", "0", "--device", args.device]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            port, watched = port_of(server), psutil.Process(server.pid)
            run_clients(args, port, 0)  # a warm-up
            for number in range(args.rounds + 1):
                batch = alone.read(request_of(args, number, copies=args.clients)).rows
                started, before = time.perf_counter(), time.process_time()
                for _ in range(args.requests):
                    fill.fill(batch)
                if number:  # the first round is a warm-up
                    offline.append(tokens / (time.perf_counter() - started))
                    seconds += time.process_time() - before
                    started, before = time.perf_counter(), sum(watched.cpu_times()[:2])
                    texts = run_clients(args, port, number)
                    online.append(tokens / (time.perf_counter() - started))
                    server_seconds += sum(watched.cpu_times()[:2]) - before
                    for seed, text in texts.items():
                        lost += text is None
                        if number == 1:
                            expected[seed] = alone(request_of(args, seed))["outputs"][0]["text"]
                            different += text not in (None, expected[seed])
            rows = rows_of_a_batch(port)
        finally:
            server.terminate()
    result = {
        "clients": args.clients,
        "tokens_of_a_text": args.blank,
        "offline_tokens_per_second": statistics.median(offline),
        "served_tokens_per_second": statistics.median(online),
        "ratio": statistics.median(online) / statistics.median(offline),
        "ratio_of_rounds": [served / alone for served, alone in zip(online, offline, strict=True)],
        "ratio_by_processor_time": seconds / server_seconds,
        "texts_of_a_batch": rows,
        "answers": args.clients * args.requests * args.rounds,
        "lost": lost,
        "different": different,
        "compared": len(expected),
    }
    print(json.dumps(result, indent=2))
    return result


def request_of(args: argparse.Namespace, seed: int, copies: int = 1) -> dict[str, Any]:
    text = f"It was [MASK:{args.blank}] of spring."
    return {"inputs": text if copies == 1 else [text] * copies, "parameters": {"seed": seed, **EXACT}}


def run_clients(args: argparse.Namespace, port: int, number: int) -> dict[int, str | None]:
    """Returns the text of each request by its seed, or None for a request without an answer."""
    with ThreadPoolExecutor(args.clients) as clients:
        return {
            seed: text
            for texts in clients.map(partial(run_client, args, port, number), range(args.clients))
            for seed, text in texts.items()
        }


def run_client(args: argparse.Namespace, port: int, number: int, client: int) -> dict[int, str | None]:
    texts, connection = dict[int, str | None](), http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    for turn in range(args.requests):
        seed = (number * args.requests + turn) * args.clients + client
        try:
            connection.request("POST", "/generate", json.dumps(request_of(args, seed)))
            answer = connection.getresponse()
            content = json.loads(answer.read())
            texts[seed] = content["outputs"][0]["text"] if answer.status == 200 else None
        except (OSError, http.client.HTTPException) as error:
            note(f"client {client}: {error!r}")
            texts[seed] = None
    return texts


def rows_of_a_batch(port: int) -> float:
    """Returns the mean number of rows of all batches, including those of the warm-up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", "/metrics")
    counts = re.findall(r"^radd_batch_rows_(sum|count) (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
    told = dict(counts)
    return float(told["sum"]) / float(told["count"])


def port_of(server: subprocess.Popen) -> int:
    """Reads the port that a server prints on standard error when it is ready."""
    for line in server.stderr or []:
        if found := SERVED.search(line):
            return int(found[1])
        note(line.rstrip())
    raise ValueError(f"the server ended before it was ready, with status {server.wait()}.")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_program(main, "python -m benchmarks.serving")
