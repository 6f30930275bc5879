# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Keeps the rounds of an evaluation in files to continue an interrupted one, and shows a running estimate."""

import glob
import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator
from tqdm import tqdm

from ..settings_radd import shortened

logger = logging.getLogger(__name__)


class RoundsFile:
    """The rounds of an evaluation in files beside its result: `RESULT.rounds.P.jsonl` for process P, a line each.

    The first line is the identity of the evaluation. Every other line has a hash of the identity and its own checksum.
    So each line shows which evaluation it belongs to, and whether it is undamaged. A damaged line is left out, and its
    round is computed again. An interrupt may leave an incomplete last line.

    Two evaluations that write to one result at once do not harm each other. Each ends with its own figures, and the
    later one writes the result. They may only lose rounds kept for `--resume`.

    Args:
        result: the file that the result will be written to.
        identity: everything that the rounds depend on. An evaluation uses only rounds of the same identity.
        sequences, rounds: upper limits. Every sequence number and round number must be below its limit.
        process: P. A process writes its own file, and reads all files.
        resume: whether to continue from the rounds that exist.

    Raises:
        ValueError: if rounds exist without `resume`, or belong to another evaluation.
    """

    def __init__(self, result: Path, identity: dict, process: int, resume: bool, *, sequences: int, rounds: int):
        self.result, self.sequences, self.rounds = result, sequences, rounds
        self.identity = json.loads(json.dumps(identity))
        self.hash = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        self.path = result.with_name(f"{result.name}.rounds.{process}.jsonl")
        self.file: TextIO | None = None
        self.known: dict[tuple[int, int], float] = {}
        contradicted: set[tuple[int, int]] = set()
        for path in self._files():
            if not path.is_file():  # reading a pipe would wait
                raise ValueError(f"{path} must be a file of rounds: remove it.")
            if not resume:
                raise ValueError(f"{path} has the rounds of an interrupted evaluation: pass --resume, or remove it.")
            found, damaged = self._read(path)
            if damaged and process == 0:
                more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
                shown = ", ".join(map(str, damaged[:3])) + more
                logger.warning("%s has damaged lines; their rounds are computed again: %s", path, shown)
            for place, nats in found:
                if self.known.setdefault(place, nats) != nats:
                    contradicted.add(place)
        for sequence, number in sorted(contradicted):
            del self.known[sequence, number]
            if process == 0:
                logger.warning("round %s of sequence %s has two values; it is computed again", number, sequence)

    def _files(self) -> list[Path]:
        return sorted(self.result.parent.glob(f"{glob.escape(self.result.name)}.rounds.*.jsonl"))

    def _read(self, path: Path) -> tuple[list[tuple[tuple[int, int], float]], list[int]]:
        """Returns the rounds in a file, and the numbers of its damaged lines."""
        found, damaged = [], []
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split(
            "\n"
        )  # the last one is empty or incomplete
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if number == 1 and record is not None and "nats" not in record:
                if record != self.identity:
                    names = sorted(record.keys() | self.identity.keys())
                    both = {name: (record.get(name), self.identity.get(name)) for name in names}
                    changed = {name: values for name, values in both.items() if values[0] != values[1]}
                    raise ValueError(f"{path} belongs to another evaluation; (saved, now) differ in {changed}.")
            elif record is not None and record.get("of", self.hash) != self.hash:
                raise ValueError(
                    f"{path} belongs to another evaluation: line {number} has the hash {shortened(record['of'])}, but "
                    f"this one has {self.hash!r}. Pass another output, or remove the file."
                )
            elif record is not None and self._is_round(record):
                found.append(((record["sequence"], record["round"]), record["nats"]))
            else:
                damaged.append(number)
        return found, damaged

    def _is_round(self, record: dict) -> bool:
        places = (("sequence", self.sequences), ("round", self.rounds))
        inside = all(type(record.get(name)) is int and 0 <= record[name] < count for name, count in places)
        nats = record.get("nats")
        sound = isinstance(nats, float) and math.isfinite(nats) and record.get("sum") == checksum_of(record)
        return inside and record.get("of") == self.hash and sound

    def open(self) -> None:
        """Opens this process's file after writing it again with its undamaged rounds only.

        Call it after every process has read all files. A file that a run with more processes left stays.
        """
        mine = dict(self._read(self.path)[0]) if self.path.exists() else {}
        good = [self._line(*place, self.known[place]) for place in mine if place in self.known]
        lines = [json.dumps(self.identity), *good]
        beside = self.path.with_suffix(".partial")
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        beside.replace(self.path)
        self.file = self.path.open("a", encoding="utf-8")

    def _line(self, sequence: int, number: int, nats: float) -> str:
        record = {"of": self.hash, "sequence": sequence, "round": number, "nats": nats}
        return json.dumps(record | {"sum": checksum_of(record)})

    def add(self, sequence: int, number: int, nats: float) -> None:
        assert self.file is not None
        self.file.write(self._line(sequence, number, nats) + "\n")
        self.file.flush()

    def remove(self) -> None:
        """Deletes the files of all processes. Call it after the result is written."""
        for path in self._files():
            path.unlink(missing_ok=True)


def checksum_of(record: dict) -> str:
    """Returns the checksum of a round: twelve hexadecimal digits that change if it is damaged."""
    text = json.dumps([record.get(name) for name in ("of", "sequence", "round", "nats")])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class RunningEstimate:
    """The mean in nats per token, and its standard error, over the sequences scored so far."""

    def __init__(self, n_tokens: list[int]):
        self.n_tokens = n_tokens
        self.rounds: dict[int, list[float]] = {}
        self.nats = self.variance = 0.0  # sums over the sequences so far
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


@contextmanager
def rounds_bar(accelerator: Accelerator, n_tokens: list[int], rounds: int) -> Iterator[Callable[[int, float], None]]:
    """Shows the progress of the first process's share of rounds on standard error, with the estimate so far.

    If that is not a terminal, it prints a line every 30 seconds, and none for a shorter evaluation.

    Args:
        n_tokens: the number of tokens of each sequence.
        rounds: the number of rounds of each sequence.

    Yields:
        A function to call after each round with the number of the sequence and its nats.
    """
    mine = range(accelerator.process_index, len(n_tokens), accelerator.num_processes)
    running, on_terminal = RunningEstimate(n_tokens), sys.stderr.isatty()
    bar = tqdm(
        total=len(mine) * rounds,
        unit="round",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
        mininterval=0.5 if on_terminal else 30,
        delay=0 if on_terminal else 30,
    )

    def show(sequence: int, nats: float) -> None:
        running.add(sequence, nats)
        bar.set_postfix_str(str(running), refresh=False)
        bar.update()

    with bar:
        yield show


def _mean_and_variance(rounds: list[float]) -> tuple[float, float]:
    """Returns the mean of the rounds, and the variance of that mean."""
    mean = math.fsum(rounds) / len(rounds)
    if len(rounds) == 1:
        return mean, 0.0
    return mean, math.fsum((nats - mean) ** 2 for nats in rounds) / (len(rounds) - 1) / len(rounds)
