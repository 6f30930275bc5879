# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A job on a file ends with the same file, however many processes share it and however often it is killed.

`RADD_KILLS` is how often it is killed: a few times in `make test`, more in `make torture`.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from accelerate import Accelerator

from radd_hf import __version__
from radd_hf.jobs import job as job_module
from radd_hf.jobs.filling import RowFiller
from radd_hf.jobs.job import Job, Report, RowsRefused, run_on_file
from radd_hf.jobs.rows import RowsFile
from support.commands import save_model
from support.launches import QUIET, command
from support.paths import ROOT
from support.toys import random_model

KILLS = int(os.environ.get("RADD_KILLS", "10"))

# Fills a file in children that have all modules, each killed before its n-th change of the file system, and goes on.
KILLED = """
import json, os, random, signal, sys
from pathlib import Path
from radd_hf.app import cli
from radd_hf.jobs import job, rows
from tests.support.kills import watch_changes

model, source, folder, kills = sys.argv[1:]
rows.WINDOW, job.SHARD = 16, 2

def start(name, last=None):
    output = folder + "/" + name
    child = os.fork()
    if not child:
        changes = watch_changes(output, last, everywhere=True)
        arguments = [model, "--input", source, "--output", output, "--seed", "3", "--batch-tokens", "64", "--quiet"]
        status = cli.main(["generate", *arguments])
        Path(folder, "changes").write_text(str(len(changes)))
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if os.path.exists(output):  # then it is whole
        assert Path(output).read_bytes() == Path(folder, "whole.jsonl").read_bytes(), (name, last)
    return status

assert start("whole.jsonl") == 0
changes, chance = int(Path(folder, "changes").read_text()), random.Random(0)
killed = 0
while killed < int(kills):  # one job, further and further on
    assert start("killed.jsonl", chance.randint(1, 2 * changes // int(kills))) in (0, -signal.SIGKILL)
    killed += 1
assert start("killed.jsonl") == 0
for number in range(changes - 11, changes + 1):  # while the shards are put together
    assert start(f"{number}.jsonl", number) == -signal.SIGKILL
    assert start(f"{number}.jsonl") == 0
print(changes)
"""


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=300, max_position_embeddings=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tiny_tokenizer) -> str:
    return save_model(tmp_path_factory.mktemp("model"), model, tiny_tokenizer)


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "in.jsonl"
    texts = [f"It is {'a ' * (number % 5)}[MASK:{1 + number % 7}] truth" for number in range(70)]
    file.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    return file


@pytest.fixture
def run(model, tiny_tokenizer, source, monkeypatch):
    """Fills the file in this process, by windows of 16 rows and shards of 2 batches; counts the batches."""
    monkeypatch.setattr("radd_hf.jobs.rows.WINDOW", 16)
    monkeypatch.setattr(job_module, "SHARD", 2)

    def fill(output, file=source, seed=3, fail_after=None, **settings):
        computed = []

        def make(chosen: int) -> RowFiller:
            filler = RowFiller(model, tiny_tokenizer, seed=chosen, batch_tokens=64, **settings)
            compute = filler.compute

            def counted(batch):
                if len(computed) == fail_after:
                    raise KeyboardInterrupt
                computed.append(len(batch))
                return compute(batch)

            filler.compute = counted
            return filler

        examined = RowsFile.examine("input", str(file), output)
        accelerator = Accelerator(cpu=True)
        report = run_on_file(accelerator, examined, output, make, {"weights": "w"}, seed, unit="text", quiet=True)
        return report, computed

    return fill


def test_an_interrupted_job_goes_on_where_it_was_and_ends_with_the_same_file(run, tmp_path):
    report, batches = run(tmp_path / "whole.jsonl")
    assert (report.rows, report.results, report.refused, report.totals["tokens"]) == (70, 70, 0, 280)
    again = []
    for fail_after in (1, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "o.jsonl", seed=None if again else 3, fail_after=fail_after)
        again.append(len(list((tmp_path / "o.jsonl.shards").glob("shard-*"))))
    report, rest = run(tmp_path / "o.jsonl", seed=None)
    assert again == sorted(again)
    assert again[-1] > 2
    assert len(rest) < len(batches)
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"in.jsonl", *(f"{name}.jsonl{end}" for name in ("o", "whole") for end in ("", ".job.json"))}


def test_a_finished_job_is_not_done_again(run, tmp_path):
    report, _ = run(tmp_path / "o.jsonl")
    again, nothing = run(tmp_path / "o.jsonl", seed=None)
    assert nothing == []
    assert (again.results, again.totals, again.finished_before) == (report.results, report.totals, True)


def test_what_is_of_another_job_is_refused_and_stays(run, tmp_path, source):
    output = tmp_path / "o.jsonl"
    output.write_text("mine\n")
    with pytest.raises(ValueError, match=r"o\.jsonl' exists: remove it, or name another"):
        run(output)
    assert output.read_text() == "mine\n"
    output.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(output, fail_after=3)
    for settings, reason in (
        ({"seed": 4}, r"differ in \{'seed': \(3, 4\)\}"),
        ({"top_k": 5}, r"differ in \{'settings\.top_k': \(0, 5\)\}"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(output, **settings)
    source.write_text(source.read_text() + '{"text": "[MASK]"}\n')
    with pytest.raises(ValueError, match=r"'rows': \(70, 71\)"):
        run(output)
    source.write_text(source.read_text().removesuffix('{"text": "[MASK]"}\n'))
    run(output)
    with pytest.raises(ValueError, match="belongs to another job"):
        run(output, seed=5)
    output.write_text("changed\n")
    with pytest.raises(ValueError, match="was changed since it was written"):
        run(output)


def test_an_input_that_changes_while_the_job_runs_is_refused_and_the_work_is_kept(run, tmp_path, source):
    text = source.read_text()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "o.jsonl", fail_after=2)
    examined = RowsFile.examine("input", str(source), tmp_path / "o.jsonl")
    source.write_text("".join(reversed(text.splitlines(keepends=True))))
    with pytest.raises(ValueError, match=r"in\.jsonl' was changed while the job ran"):
        examined.check_unchanged()
    source.write_text(text)
    examined.check_unchanged()


def test_files_of_others_beside_the_output_are_left_alone(run, tmp_path):
    for name, content in (("o.jsonl.job.json", "mine"), ("o.jsonl.shards", "mine"), ("o.jsonl.job.json", '{"job": 3}')):
        (tmp_path / name).write_text(content)
        with pytest.raises((ValueError, OSError), match=r"o\.jsonl"):
            run(tmp_path / "o.jsonl")
        assert (tmp_path / name).read_text() == content
        (tmp_path / name).unlink()
    (tmp_path / "o.jsonl.partial").write_text("mine")
    run(tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl.partial").read_text() == "mine"


def test_a_second_command_that_waited_for_the_first_finds_it_finished(run, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "o.jsonl", fail_after=2)
    acquire = job_module.acquire

    def after_the_first(folder, argument):
        monkeypatch.setattr(job_module, "acquire", acquire)
        lock = acquire(folder, argument)
        job_module.release(lock)
        run(tmp_path / "o.jsonl")
        folder.mkdir()
        lock = acquire(folder, argument)
        shutil.rmtree(folder)
        return lock

    monkeypatch.setattr(job_module, "acquire", after_the_first)
    report, batches = run(tmp_path / "o.jsonl")
    assert report.finished_before
    assert batches == []


def test_a_small_file_has_shards_for_several_processes(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "o.jsonl", fail_after=3)
    assert len(list((tmp_path / "o.jsonl.shards").glob("shard-*"))) == 3


def test_a_damaged_shard_is_computed_again(run, tmp_path, caplog):
    run(tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "o.jsonl", fail_after=7)
    shards = sorted((tmp_path / "o.jsonl.shards").glob("shard-*"))
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    text = shards[1].read_text()
    shards[1].write_text(text.replace('"tokens": 2', '"tokens": 3', 1) if '"tokens": 2' in text else text + "\n{}")
    run(tmp_path / "o.jsonl")
    assert caplog.text.count("is damaged. It is computed again.") == 2
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_refused_rows_stand_in_the_file_and_end_the_job_with_an_error(run, tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("It [MASK:2] is\nno blank\n\n[MASK:3]\n")
    with pytest.raises(RowsRefused, match=r"2 of 4 rows have an error in the output; the first is row 1: text='no"):
        run(tmp_path / "o.jsonl", file=file)
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert [row["error"] is None for row in rows] == [True, False, False, True]
    with pytest.raises(RowsRefused):
        run(tmp_path / "o.jsonl", file=file)


def test_two_jobs_do_not_write_one_output(run, tmp_path, monkeypatch):
    monkeypatch.setattr("radd_hf.training.lock.PATIENCE", 0.1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "o.jsonl", fail_after=2)
    record = json.loads((tmp_path / "o.jsonl.shards" / "job.json").read_text())["job"]
    assert record["radd_hf"] == __version__
    first = Job(tmp_path / "o.jsonl", record)
    assert first.begin() is None
    try:
        with pytest.raises(ValueError, match=r"o\.jsonl\.shards' is in use by process \d+"):
            run(tmp_path / "o.jsonl")
    finally:
        first.end()
    run(tmp_path / "o.jsonl")


def test_a_row_has_as_many_results_as_are_asked_for(run, tmp_path):
    run(tmp_path / "o.jsonl", number=3)
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(row["row"], row["sample"]) for row in rows] == [(row, sample) for row in range(70) for sample in range(3)]
    run(tmp_path / "one.jsonl")
    ones = [json.loads(line)["text"] for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows if row["sample"] == 0] == ones


def test_a_job_that_is_killed_again_and_again_ends_with_the_same_file(folder, source, tmp_path):
    arguments = [folder, str(source), str(tmp_path), str(KILLS)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=QUIET, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert whole.count(b"\n") == 70
    assert all(file.read_bytes() == whole for file in tmp_path.glob("*[0-9d].jsonl"))
    assert not list(tmp_path.glob("*.shards*"))
    print(f"killed {KILLS} times in one job, and before each of the last 12 of {done.stdout.strip()} changes")


def test_two_processes_end_with_the_file_of_one(folder, source, tmp_path):
    def fill(processes: int, output: str) -> None:
        arguments = ["--input", str(source), "--output", str(tmp_path / output), "--seed", "3", "--batch-tokens", "64"]
        done = subprocess.run(
            command(processes, "-m", "radd_hf", "generate", folder, *arguments),
            cwd=ROOT,
            env=QUIET,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout == ""
        assert f"{output}: 70 texts, 280 tokens, seed 3" in done.stderr

    for name in ("one.jsonl", "two.jsonl"):
        fill(1 if name == "one.jsonl" else 2, name)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_report_adds_up_what_the_work_names():
    report = Report()
    report.add({"row": 3, "sample": 1, "text": "a", "error": None}, {"tokens": 4})
    report.add({"row": 4, "sample": 0, "text": None, "error": "why"}, {"tokens": 0})
    assert report == Report(results=2, refused=1, first_refusal="row 4: why", totals={"tokens": 4})
