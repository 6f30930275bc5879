"""A signal ends a run after a checkpoint, or has it save; started again, the run ends as one left alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from accelerate import Accelerator

from radd_hf import RaddForMaskedLM, likelihood
from radd_hf.endings import Stopped, status_of
from radd_hf.hub.runs import all_checkpoints
from radd_hf.training import run as run_folder
from radd_hf.training import train
from radd_hf.training.peers import Peers
from radd_hf.training.stops import Stops
from support.launches import QUIET, TINY, command, kill
from support.outcomes import outcome, same
from support.paths import ROOT

STEPS = 8  # of which 4 and 8 are logged, saved, evaluated and sampled from
SETTINGS = {"max_steps": STEPS, "log_steps": 3, "save_steps": 4, "hidden_dropout": 0.1}


@pytest.fixture(autouse=True)
def heed_interrupts():
    """A shell has its background jobs ignore them, and pytest may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(tiny_config, tmp_path):
    """Trains in this process; returns the run folder."""

    def start_run(name: str, **settings) -> Path:
        train.main(["--config", tiny_config(**SETTINGS | settings), "--output_dir", str(tmp_path / name)])
        return tmp_path / name

    return start_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_text) -> dict:
    """What a run leaves that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    flags = [part for name, value in (TINY | SETTINGS).items() for part in (f"--{name}", str(value))]
    train.main([*flags, "--dataset", str(tiny_text), "--output_dir", str(folder)])
    return outcome(folder, STEPS)


def signal_in(monkeypatch, place, name: str, call: int, number: int) -> None:
    """Has this process get a signal in the given call, counted from 1, of a function."""
    function, calls = getattr(place, name), []

    def signalled(*arguments, **settings):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(number)
        return function(*arguments, **settings)

    monkeypatch.setattr(place, name, signalled)


MOMENTS = {
    "a step": (train, "optimizer_step", 3, 3),
    "a step that is saved anyway": (train, "optimizer_step", 4, 4),
    "the last step": (train, "optimizer_step", 8, 8),
    "an evaluation": (likelihood, "draw_round", 3, 4),
    "the final evaluation": (likelihood, "draw_round", 20, 8),
    "a sampling": (RaddForMaskedLM, "generate", 1, 4),
    "the last sampling": (RaddForMaskedLM, "generate", 2, 8),
    "what is made of samples": (run_folder, "token_entropy", 1, 4),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_at_any_moment_ends_as_one_left_alone(
    start, whole, tmp_path, monkeypatch, moment, number
):
    place, name, call, step = MOMENTS[moment]
    with monkeypatch.context() as patched:
        signal_in(patched, place, name, call, number)
        with pytest.raises(Stopped, match=rf"stopped by {number.name} at step {step}; checkpoints/step_{step} has it"):
            start("run")
    assert max(int(path.name[5:]) for path in (tmp_path / "run/checkpoints").iterdir()) == step
    assert same(outcome(start("run"), STEPS), whole)


def test_a_stop_in_an_evaluation_saves_its_step_where_none_was_due(start, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        signal_in(patched, likelihood, "draw_round", 3, signal.SIGTERM)
        with pytest.raises(Stopped, match="checkpoints/step_4 has it"):
            start("run", save_steps=100)
    assert (tmp_path / "run/checkpoints/step_4").is_dir()
    # Where checkpoints are is no matter of what is learned, but a setting that they remember.
    again, expected = outcome(start("run", save_steps=100), STEPS), dict(whole)
    for outcome_ in (again, expected):
        outcome_["progress"] = {**outcome_["progress"], "settings": None}
    assert same(again, expected)


def test_a_run_that_is_asked_to_save_saves_and_goes_on(start, whole, monkeypatch):
    with monkeypatch.context() as patched:
        signal_in(patched, train, "optimizer_step", 2, signal.SIGUSR1)
        folder = start("run")
    assert [path.name for path in all_checkpoints(folder)] == ["step_2", "step_4", "step_8"]
    assert same(outcome(folder, STEPS), whole)


def test_before_the_first_step_a_run_ends_at_once_and_leaves_no_checkpoint(start, tmp_path, monkeypatch, capsys):
    signal_in(monkeypatch, train, "load_data", 1, signal.SIGTERM)
    assert status_of(lambda: start("run"), "me") == 143
    assert capsys.readouterr().err.splitlines()[-1] == "me: stopped by SIGTERM before a step was done"
    assert not any((tmp_path / "run/checkpoints").iterdir())


@pytest.mark.parametrize("steps", [2, 4])
def test_what_was_due_at_the_checkpoint_of_a_killed_run_is_done_once(start, whole, tmp_path, monkeypatch, steps):
    """As when it is killed in the evaluation (2 lines of the metrics are left, one of them torn) or the sampling."""

    class Killed(Exception):
        pass

    def fail(*arguments, **settings):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(run_folder.Run, "evaluate" if steps == 2 else "sample", fail)
        with pytest.raises(Killed):
            start("run")
    if steps == 2:
        with (tmp_path / "run/metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "validation_nats_per_token": 4.')
    assert same(outcome(start("run"), STEPS), whole)


def test_handlers_are_those_of_before_in_the_end(start, monkeypatch):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    start("whole", max_steps=1)
    with monkeypatch.context() as patched:
        signal_in(patched, train, "optimizer_step", 1, signal.SIGTERM)
        with pytest.raises(Stopped):
            start("stopped")
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_is_ignored_stays_so_as_in_a_background_job():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stops() as stops:
            stops.training_begins()
            signal.raise_signal(signal.SIGINT)
            assert stops.agree() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone():
    seen = []

    def enter() -> None:
        with Stops():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_the_largest_wish_wins():
    with Stops() as stops:
        stops.training_begins()
        assert stops.agree() == 0
        signal.raise_signal(signal.SIGUSR1)
        assert [stops.agree(), stops.agree()] == [1, 0]
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stops.agree() == 143


def test_a_forked_child_ends_by_its_own_signals_and_does_not_stop_its_parent():
    with Stops() as stops:
        stops.training_begins()
        before, child = stops.before[signal.SIGTERM], os.fork()
        if child == 0:
            os._exit(0 if signal.getsignal(signal.SIGTERM) == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert stops.agree() == 0


# ---------------------------------------------------------------------------------------------------------
# Processes of their own
# ---------------------------------------------------------------------------------------------------------

WAITING = """
import sys
import time
from radd_hf.training import stops

stops.SECONDS_BETWEEN = 0.5
with stops.Stops() as heard:
    heard.training_begins()
    print("ready", flush=True)
    if sys.argv[1] == "forever":
        time.sleep(100)
    deadline = time.monotonic() + 6
    while not heard.status and time.monotonic() < deadline:
        time.sleep(0.05)
    print(heard.status, flush=True)
"""


def waiting(*arguments: str, **settings) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_signal_ends_a_process_at_once_but_one_that_comes_with_the_first_does_not():
    process = waiting("-c", WAITING, "forever", env=QUIET)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # as a launcher passes on what its processes got as well
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert process.stderr.read() == "-c: ended at once by a second SIGTERM\n"


LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); sys.stdin.read()"


@pytest.mark.parametrize("launched", [True, False])
def test_a_worker_whose_launcher_is_killed_stops_but_a_run_that_was_put_into_the_background_goes_on(launched):
    environment = QUIET | ({"TORCHELASTIC_RUN_ID": "none"} if launched else {})
    process = waiting("-c", LAUNCHER, WAITING, "a while", env=environment, stdin=subprocess.PIPE)
    process.kill()
    assert process.stdout.read() == ("143\n" if launched else "0\n")
    process.wait()


class NoStep(Exception):
    pass


def until_step(folder: Path, process: subprocess.Popen) -> None:
    """Waits until a run has logged its first step."""
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        if process.poll() is not None:
            raise NoStep
        time.sleep(0.05)


def test_a_process_that_hangs_is_named_after_the_timeout_and_the_others_end(tiny_config, tmp_path):
    config = tiny_config(max_steps=10**6, log_steps=1, eval_steps=10**6, save_steps=10**6, timeout=0.1)
    script = str(ROOT / "train_accelerate.py")
    run = command(2, script, "--config", config, "--output_dir", str(tmp_path / "run"))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(run, cwd=ROOT, env=QUIET, stdout=log, stderr=log)
    try:
        until_step(tmp_path / "run", process)
        workers = psutil.Process(process.pid).children()
        (hanging,) = (worker for worker in workers if worker.environ()["RANK"] == "1")
        (other,) = (worker for worker in workers if worker != hanging)
        hanging.suspend()
        other.wait(timeout=120)
    finally:
        kill(process)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("train_accelerate.py")]
    assert lines == [
        "train_accelerate.py: error: process 1 of 2 has ended, or did not answer within timeout=0.1 minutes; earlier "
        "checkpoints are whole."
    ]


def test_a_timeout_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"timeout=0\.0 must lie in \(0, 10080\]"):
        train.parse_arguments(["--timeout", "0"])


def test_a_run_of_one_process_has_nobody_to_wait_for():
    peers = Peers(Accelerator(cpu=True), timedelta(minutes=1))
    assert (peers.quick, peers.patient) == (None, None)
    assert (peers.largest(7), peers.broadcast("x")) == (7, "x")
    with pytest.raises(RuntimeError, match="timed out"), peers.naming_the_missing():
        raise RuntimeError("timed out")
