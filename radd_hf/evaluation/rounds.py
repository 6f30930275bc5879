# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation has computed so far: kept in files, so that an interrupted one goes on, and shown as it grows."""

import json
import math
from pathlib import Path
from typing import TextIO


class RoundsFile:
    """The rounds of an evaluation beside its result: `RESULT.rounds.P.jsonl` for process P, a line for each.

    Args:
        result: where the result will be written.
        identity: what the rounds depend on; an evaluation goes on with rounds of its own alone.
        process: P, which writes its own file; all files are read.
        resume: go on with the rounds that there are.

    Raises:
        ValueError: when there are rounds and `resume` is not set, or when they are of another evaluation.
    """

    def __init__(self, result: Path, identity: dict, process: int, resume: bool):
        self.result = result
        self.known: dict[tuple[int, int], float] = {}
        identity = json.loads(json.dumps(identity))
        for path in self._files():
            first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
            saved = _record(first)
            if not resume:
                raise ValueError(f"{path} has the rounds of an interrupted evaluation: pass --resume, or remove it.")
            if saved is not None and saved != identity:
                changed = {key: (saved.get(key), identity[key]) for key in identity if saved.get(key) != identity[key]}
                raise ValueError(f"{path} is of another evaluation; (saved, now) differ in {changed}.")
            for record in filter(None, map(_record, lines)):
                self.known[record["sequence"], record["round"]] = record["nats"]
        self.path = result.with_name(f"{result.name}.rounds.{process}.jsonl")
        self.identity = identity
        self.file: TextIO | None = None

    def _files(self) -> list[Path]:
        return sorted(self.result.parent.glob(f"{self.result.name}.rounds.*.jsonl"))

    def open(self) -> None:
        """After every process has read the files of all. A file that another number of processes left stays."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a half-written line is computed again
        self.path.write_text(whole or json.dumps(self.identity) + "\n", encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")

    def add(self, sequence: int, number: int, nats: float) -> None:
        assert self.file is not None
        self.file.write(json.dumps({"sequence": sequence, "round": number, "nats": nats}) + "\n")
        self.file.flush()

    def remove(self) -> None:
        """Once the result is written."""
        for path in self._files():
            path.unlink()


def _record(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None  # half-written


class RunningEstimate:
    """Mean and standard error in nats per token of the sequences that have been scored so far, as rounds come in."""

    def __init__(self, n_tokens: list[int]):
        self.n_tokens = n_tokens
        self.rounds: dict[int, list[float]] = {}
        self.nats = self.variance = 0.0  # of all sequences so far
        self.tokens = 0

    def add(self, sequence: int, nats: float) -> None:
        rounds = self.rounds.setdefault(sequence, [])
        if rounds:
            before_nats, before_variance = _mean_and_variance(rounds)
            self.nats -= before_nats
            self.variance -= before_variance
        else:
            self.tokens += self.n_tokens[sequence]
        rounds.append(nats)
        now_nats, now_variance = _mean_and_variance(rounds)
        self.nats += now_nats
        self.variance += now_variance

    def __str__(self) -> str:
        return f"{self.nats / self.tokens:.4f} +- {math.sqrt(max(self.variance, 0.0)) / self.tokens:.4f} nats per token"


def _mean_and_variance(rounds: list[float]) -> tuple[float, float]:
    """Of the rounds' mean."""
    mean = math.fsum(rounds) / len(rounds)
    if len(rounds) == 1:
        return mean, 0.0
    return mean, math.fsum((nats - mean) ** 2 for nats in rounds) / (len(rounds) - 1) / len(rounds)
