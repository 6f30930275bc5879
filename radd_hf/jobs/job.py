# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs work on all rows of a file, with several processes if a launcher starts them. An interrupted job resumes.

    rows  ->  windows of 16,384 rows  ->  batches of like length  ->  shards of a few batches  ->  the output

Each process computes some shards and writes each shard to a file in the folder `OUTPUT.shards`. When all are there,
the first process joins them in the order of the rows and removes the folder. The content of a batch depends only on the
input file. So neither the number of processes nor an interruption changes a result.

The file of a shard gets its name when it is whole and on the disk. A killed job loses only the shards in progress. Run
the same command again to resume it.
"""

import hashlib
import json
import logging
import math
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from accelerate import Accelerator
from tqdm import tqdm

from ..endings import Stopped, note, visible
from ..kernels_radd import packed_weights
from ..processes import on_main
from ..randomness_radd import check_seed
from ..results import replace_text, sync, to_json, write_synced
from ..training.lock import acquire, release
from ..version import __version__
from .batches import Encoder, Task, batches_of_rows
from .rows import RowsFile, RowsWriter, json_line, windows_of

logger = logging.getLogger(__name__)

# The most batches of a shard: a process computes them and then writes the shard. The fewest shards of a window, if it
# has enough batches: several processes share even a small file.
SHARD, FEWEST_SHARDS = 8, 16
# If each process has at least this many windows, one process computes a whole window. Others do not encode its rows.
MANY = 4


class Work(Encoder, Protocol):
    """Computes the results of rows, like `RowFiller` and `RowScorer`.

    `summed` returns the numbers of a result that are summed over all results; `summary` describes the sums.
    """

    number: int  # results of a row

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def results(self) -> dict[str, pa.DataType]: ...

    def compute(self, batch: Sequence[Task]) -> list[dict[str, Any]]: ...

    def summed(self, result: Mapping[str, Any]) -> dict[str, float]: ...

    def summary(self, totals: Mapping[str, float]) -> str: ...


@dataclass
class Report:
    """Holds the numbers of a finished job. totals: sums over the results."""

    rows: int = 0
    results: int = 0
    refused: int = 0
    first_refusal: str = ""
    finished_before: bool = False
    totals: dict[str, float] = field(default_factory=dict)

    def add(self, result: Mapping[str, Any], summed: Mapping[str, float]) -> None:
        self.results += 1
        if result.get("error") is not None:
            self.refused += 1
            self.first_refusal = self.first_refusal or f"row {result['row']}: {result['error']}"
        for name, value in summed.items():
            self.totals[name] = self.totals.get(name, 0) + value


class Job:
    """Manages the folder of a job, which lies beside its output.

    Args:
        output: the file to write. identity: everything that the results depend on.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]):
        self.output, self.identity = output, json.loads(to_json(dict(identity)))
        self.folder = output.with_name(f"{output.name}.shards")
        self.record = output.with_name(f"{output.name}.job.json")
        self.lock: int | None = None
        self.mark = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def begin(self) -> Report | None:
        """Makes the folder of the job, or finds it after an interruption, and locks it.

        Returns:
            The report of a finished job, else None.

        Raises:
            ValueError: if the output or its folder belongs to another job or to no job, or is in use.
        """
        making, removed = self._hidden("partial"), self._hidden("removed")
        for left in (making, removed):  # left by a job that was killed while it made or removed its folder
            shutil.rmtree(left, ignore_errors=True)
        if self.output.exists() and not self.folder.exists():
            return self._report_of_finished()
        if not self.folder.exists():
            if self.record.exists():
                read_record(self.record)  # raises an error for a foreign file, which the job would replace
            making.mkdir()
            write_synced(making / "job.json", to_json({"job": self.identity}, indent=2))
            making.rename(self.folder)
            sync(self.folder.parent)
        self._check(read_record(self.folder / "job.json"), self.folder)
        self.lock = acquire(self.folder, "output")
        if not (self.folder / "job.json").exists():  # the job that held the lock has finished
            self.end()
            return self.begin()
        self._remove_damaged()
        return None

    def _hidden(self, what: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{what}")

    def _report_of_finished(self) -> Report:
        if not self.record.is_file():
            raise ValueError(f"output={str(self.output)!r} exists: remove it, or name another output.")
        record = read_record(self.record)
        self._check(record, self.output)
        if record.get("bytes") != self.output.stat().st_size:
            raise ValueError(f"output={str(self.output)!r} was changed since it was written: name another output.")
        return Report(**record["report"] | {"finished_before": True})

    def end(self) -> None:
        """Unlocks the folder for another job."""
        if self.lock is not None:
            release(self.lock)
            self.lock = None

    def _check(self, record: dict[str, Any], of: Path) -> None:
        """Raises a ValueError if a record is that of another job."""
        if changed := differences(record["job"], self.identity):
            raise ValueError(
                f"output: {of} belongs to another job: (saved, now) differ in {changed}. Name another output, or "
                "remove this one."
            )

    def _remove_damaged(self) -> None:
        for file in self.folder.glob("shard-*.jsonl"):
            if self.read(file) is None:
                logger.warning("%s is damaged. It is computed again.", visible(str(file)))
                file.unlink()

    def shard_file(self, window: int, shard: int, shards: int) -> Path:
        return self.folder / f"shard-{window:06}-{shard:05}-of-{shards:05}.jsonl"

    def files_of(self, window: int) -> list[Path]:
        """Returns the files of the finished shards of a window."""
        return sorted(self.folder.glob(f"shard-{window:06}-*.jsonl"))

    def complete(self, window: int) -> bool:
        """Tells whether all shards of a window are there."""
        found = [file.stem for file in self.files_of(window)]
        return bool(found) and len(found) == int(found[0].rsplit("-", 1)[1])

    def write(self, file: Path, results: Sequence[Mapping[str, Any]]) -> None:
        body = "".join(map(json_line, results))
        head = {"job": self.mark, "sha256": hashlib.sha256(body.encode()).hexdigest()}
        replace_text(file, to_json(head) + "\n" + body)

    def read(self, file: Path) -> list[dict[str, Any]] | None:
        """Returns the results of a shard, or None if its file was changed after it was written."""
        try:
            head, _, body = file.read_text(encoding="utf-8").partition("\n")
            whole = {"job": self.mark, "sha256": hashlib.sha256(body.encode()).hexdigest()}
            return [json.loads(line) for line in body.splitlines()] if json.loads(head) == whole else None
        except (OSError, ValueError):
            return None

    def finish(self, source: RowsFile, work: Work) -> Report:
        """Joins all shards in the order of the rows, and removes them.

        Raises:
            OSError: for missing shards, for example if processes do not share a folder.
        """
        source.check_unchanged()
        report, partial = Report(rows=source.rows), self.folder / f"output{self.output.suffix}"
        with RowsWriter(self.output, work.results, source, partial) as writer:
            for window, (first, rows) in enumerate(_with_first_row(windows_of(source.path))):
                found: dict[int, list[dict[str, Any]]] = {}
                for file in self.files_of(window):
                    for result in self.read(file) or ():
                        found.setdefault(result["row"], []).append(result)
                lacking = [number for number in range(first, first + len(rows)) if number not in found]
                if lacking or not self.complete(window):
                    raise OSError(
                        f"{self.folder} lacks results of {len(lacking)} rows from row {min(lacking, default=first)}: "
                        "all processes must see the same folder, and no other program may change it. Run the command "
                        "again."
                    )
                ordered = [
                    (row, result)
                    for number, row in enumerate(rows, start=first)
                    for result in sorted(found[number], key=lambda each: each.get("sample", 0))
                ]
                for _, result in ordered:
                    report.add(result, work.summed(result))
                writer.add(ordered)
        record = {"job": self.identity, "report": asdict(report), "bytes": self.output.stat().st_size}
        replace_text(self.record, to_json(record, indent=2) + "\n")
        removed = self._hidden("removed")
        self.folder.rename(removed)  # a half-removed folder must not look like the folder of a job
        shutil.rmtree(removed)
        return report


def read_record(file: Path) -> dict[str, Any]:
    """Reads the record of a job. Raises a ValueError for a file that is no such record."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record["job"], dict) or not isinstance(record.get("report", {}), dict):
            raise TypeError("it holds no job")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"output: {file} does not describe a job ({error}): remove it, or name another output."
        ) from error
    return record


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the entries that differ, by name. Entries of mappings inside have names like "settings.steps"."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(saved.keys() | now.keys()):
        before, after = saved.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= {f"{name}.{inner}": both for inner, both in differences(before, after).items()}
        elif before != after:
            found[name] = before, after
    return found


def _with_first_row(windows: Iterator[list]) -> Iterator[tuple[int, list]]:
    """Yields each window with the number of its first row."""
    first = 0
    for window in windows:
        yield first, window
        first += len(window)


def run_job(work: Work, source: RowsFile, job: Job, accelerator: Accelerator, unit: str, quiet: bool = False) -> Report:
    """Runs a job to its end with all processes together, and returns its report.

    Args:
        unit: unit of the progress bar of the first process, such as "text".
        quiet: show no bar.

    Raises:
        ValueError, OSError: in all processes, where `Job.begin` and `Job.finish` do.
    """
    try:
        done = on_main(accelerator, job.begin)
        if done is None:
            _compute_share(work, source, job, accelerator, unit, quiet)
            accelerator.wait_for_everyone()
            done = on_main(accelerator, lambda: job.finish(source, work))
        return done
    finally:
        job.end()


def _compute_share(work: Work, source: RowsFile, job: Job, accelerator: Accelerator, unit: str, quiet: bool) -> None:
    """Computes the missing shards of this process."""
    index, processes = accelerator.process_index, accelerator.num_processes
    by_window = source.windows >= MANY * processes
    bar = tqdm(
        total=math.ceil(source.rows * work.number / processes),  # of this process, approximately
        unit=unit,
        dynamic_ncols=True,
        disable=quiet or not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )

    def skip(results: int) -> None:
        """Counts results that were there already, without their time."""
        if not bar.disable:
            bar.initial += results
            bar.update(results)

    with bar, packed_weights():  # from the first batch to the last
        for window, (first, rows) in enumerate(_with_first_row(windows_of(source.path))):
            if by_window and window % processes != index:
                continue
            if job.complete(window):
                skip(len(rows) * work.number // (1 if by_window else processes))
                continue
            refusals, batches = batches_of_rows(work, enumerate(rows, start=first))
            shards = max(math.ceil(len(batches) / SHARD), min(len(batches), FEWEST_SHARDS), 1)
            for shard in range(shards):
                if not by_window and (window + shard) % processes != index:
                    continue
                file, mine = job.shard_file(window, shard, shards), batches[shard::shards]
                results = refusals if shard == 0 else []
                if file.exists():
                    skip(len(results) + sum(map(len, mine)))
                    continue
                bar.update(len(results))
                for batch in mine:
                    results = results + work.compute(batch)
                    bar.update(len(batch))
                job.write(file, results)
        bar.total = bar.n  # the exact number


class RowsRefused(ValueError):
    """Says that some rows of a file have an error instead of a result."""

    exit_status = 1

    def __init__(self, report: Report):
        super().__init__(
            f"{report.refused} of {report.rows} rows have an error in the output; the first is {report.first_refusal}"
        )


def run_on_file(
    accelerator: Accelerator,
    source: RowsFile,
    output: Path,
    make_work: Callable[[int], Work],
    identity: Mapping[str, Any],
    seed: int | None,
    *,
    unit: str,
    quiet: bool,
) -> Report:
    """Runs the job of a command line.

    Args:
        make_work: makes the work for a seed.
        identity: facts about the model and its computation that the results depend on.
        seed: seed of the job; None: the seed of the interrupted job, or a new one.

    Raises:
        ValueError, OSError: where `run_job` does, in all processes.
        RowsRefused: for a finished job with refused rows; it sets the exit status.
    """
    whole = {**identity, "rows": source.rows, "input": source.sha256, "radd_hf": __version__}
    seed = on_main(accelerator, lambda: _saved_seed(output) if seed is None else seed)
    started = time.perf_counter()
    work = make_work(seed)
    job = Job(output, {**whole, **work.identity, "seed": seed, "batch_tokens": work.batch_tokens})
    report = run_job(work, source, job, accelerator, unit, quiet)
    seconds = time.perf_counter() - started
    if accelerator.is_main_process and not quiet:
        units = unit if report.results == 1 else f"{unit}s"
        done = f"{report.results:,} {units}, {work.summary(report.totals)}, seed {seed}"
        when = "finished before" if report.finished_before else f"{seconds:.1f} s"
        note(visible(f"{output}: {done}, {when}"))
    if report.refused:
        # Only the first process prints the reason.
        raise RowsRefused(report) if accelerator.is_main_process else Stopped("", RowsRefused.exit_status)
    return report


def _saved_seed(output: Path) -> int:
    job = Job(output, {})
    for file in [job.folder / "job.json"] + [job.record] * output.exists():
        with suppress(OSError, ValueError, KeyError, TypeError):
            return check_seed(json.loads(file.read_text(encoding="utf-8"))["job"]["seed"])
    return secrets.randbelow(2**31)
