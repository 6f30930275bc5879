"""One run at a time in a run folder."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from radd_hf.training import lock, train
from support.launches import QUIET, command, kill
from support.paths import ROOT

# Holds the lock of a folder; a child that it forks goes on when it is gone.
HOLDER = """
import os
import sys
import time
from pathlib import Path
from radd_hf.training import lock

lock.PATIENCE = 0.5
try:
    lock.acquire(Path(sys.argv[1]))
except ValueError as error:
    print(error, flush=True)
    sys.exit(1)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print("held", child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)


def test_a_run_in_a_folder_that_is_in_use_is_told_by_whom_and_changes_nothing(impatient, tiny_config, tmp_path):
    held = lock.acquire(tmp_path)
    holder = rf"process {os.getpid()} on host \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d \(UTC\)"
    with pytest.raises(ValueError, match=rf"output_dir='{tmp_path}' is in use by {holder}: wait for that run or end"):
        train.main(["--config", tiny_config(), "--output_dir", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "tiny.yaml"}
    lock.release(held)
    train.main(["--config", tiny_config(max_steps=1), "--output_dir", str(tmp_path)])
    assert (tmp_path / "run.lock").read_text() == ""


def test_of_two_starts_at_once_one_gets_the_folder_and_a_killed_holder_gives_it_back(impatient, tmp_path):
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path)]
    starts = [subprocess.Popen(arguments, cwd=ROOT, env=QUIET, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [start.stdout.readline() for start in starts]
    holder, refused = starts if lines[0].startswith("held") else reversed(starts)
    held, refusal = sorted(lines)
    assert refused.wait() == 1
    assert f"in use by process {holder.pid} on host" in refusal
    child = int(held.split()[1])
    with pytest.raises(ValueError, match="in use"):
        lock.acquire(tmp_path)
    holder.kill()
    holder.wait()
    try:
        os.kill(child, 0)  # is there, and has no part in the lock
        assert str(holder.pid) in (tmp_path / "run.lock").read_text()
        lock.release(lock.acquire(tmp_path))
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_run_whose_lock_was_removed_ends_before_its_next_save(monkeypatch, tiny_config, tmp_path):
    step, steps = train.optimizer_step, []

    def remove_the_lock(*arguments):
        steps.append(0)
        if len(steps) == 6:
            (tmp_path / "run.lock").unlink()
        return step(*arguments)

    monkeypatch.setattr(train, "optimizer_step", remove_the_lock)
    with pytest.raises(OSError, match=r"lock file .*run\.lock was removed"):
        train.main(["--config", tiny_config(max_steps=8, save_steps=4), "--output_dir", str(tmp_path)])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_4"]


def test_a_holder_that_is_about_to_end_is_waited_for(monkeypatch, tmp_path):
    held = lock.acquire(tmp_path)

    def sleep(seconds: float) -> None:
        lock.release(held)

    monkeypatch.setattr(lock.time, "sleep", sleep)
    lock.release(lock.acquire(tmp_path))


def test_where_there_are_no_locks_one_line_says_so_and_the_run_goes_on(monkeypatch, caplog, tmp_path, tiny_config):
    def fail(*arguments) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock, "fcntl", SimpleNamespace(flock=fail, LOCK_EX=2, LOCK_NB=4))
    train.main(["--config", tiny_config(max_steps=1), "--output_dir", str(tmp_path / "run")])
    (line,) = (record.message for record in caplog.records if "this folder is not locked" in record.message)
    assert re.search(r"its file system has no locks \(Function not implemented\)", line)


def test_a_folder_that_cannot_be_is_refused_with_its_name(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir='.*file/run' must be a folder that can be written to"):
        train.main(["--config", tiny_config(), "--output_dir", str(tmp_path / "file/run")])


def test_all_processes_of_a_run_that_is_refused_end_promptly(tiny_config, tmp_path):
    held = lock.acquire(tmp_path)
    run = command(2, str(ROOT / "train_accelerate.py"), "--config", tiny_config(), "--output_dir", str(tmp_path))
    process = subprocess.Popen(run, cwd=ROOT, env=QUIET, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120  # far below the ten minutes of the timeout
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        assert process.poll() == 1
    finally:
        if process.poll() is None:
            kill(process)
        lock.release(held)
    assert (
        f"train_accelerate.py: error: output_dir='{tmp_path}' is in use by process {os.getpid()}"
        in process.stderr.read()
    )
