# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Commands and scripts end with one line and a status that says what kind of end it was."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from radd_hf.endings import UsageError, reason_of, status_of, visible
from support.hostile import FOR_TERMINALS
from support.launches import QUIET
from support.paths import ROOT

SCRIPTS = {"train_accelerate.py": "train", "eval_ppl.py": "eval", "eval_generation.py": "quality"}


def fail(error: BaseException):
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("--x 3 is wrong"), 2, "me: error: --x 3 is wrong"),
        (ValueError("two\nlines"), 1, "me: error: two lines"),
        (FileNotFoundError(2, "No such file", "a.txt"), 1, "me: error: [Errno 2] No such file: 'a.txt'"),
        (RuntimeError("odd"), 1, "me: error: RuntimeError: odd (--debug shows where)"),
        (KeyboardInterrupt(), 130, "me: interrupted"),
    ],
)
def test_every_failure_is_one_line_and_has_its_status(error, status, line, capsys):
    assert status_of(fail(error), "me") == status
    assert capsys.readouterr().err == line + "\n"


def test_debug_shows_where():
    with pytest.raises(RuntimeError):
        status_of(fail(RuntimeError("odd")), "me", debug=True)


def test_notes_of_an_error_belong_to_its_line():
    error = ValueError("no such text.")
    error.add_note("There are austen and text8.")
    assert reason_of(error) == "no such text. There are austen and text8."


@pytest.mark.parametrize("text", FOR_TERMINALS.values(), ids=FOR_TERMINALS)
def test_text_from_outside_is_shown_in_one_line_that_commands_no_terminal(text, capsys):
    shown = visible(text)
    assert re.sub(r"\\u[0-9a-f]{4}", "", shown).isprintable()
    assert re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), shown) == text
    assert visible(shown) == shown
    assert status_of(fail(ValueError(f"of a file: {text}.")), "me") == 1
    (line, end) = capsys.readouterr().err.split("\n")
    assert line.isprintable()
    assert end == ""


def test_text_of_every_script_is_shown_as_it_is():
    for text in (
        "naïve “œuvre” …",
        "Привет",
        "שלום עולם",
        "السلام",
        "می‌خواهم",
        "हिन्दी क्‍ष",
        "日本語　全角",
        "👩‍🚀",
        "a\\b",
        "½\xa0€",
    ):
        assert visible(text) == text
    assert visible("a\n\tb\r", keep="\n\t") == "a\n\tb\\u000d"


def test_a_line_of_json_holds_the_same_when_it_is_made_visible():
    texts = [*FOR_TERMINALS.values(), "日本語"]
    line = visible(json.dumps(texts, ensure_ascii=False))
    assert line.isprintable()
    assert json.loads(line) == texts


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], env=QUIET, capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_model_that_is_not_there_is_one_line_by_the_script_and_by_the_command(script):
    flag = "--init_from" if script == "train_accelerate.py" else "--model"
    for arguments, name in (([script], script), (["-m", "radd_hf", SCRIPTS[script]], f"radd {SCRIPTS[script]}")):
        done = run(*arguments, flag, "/none/here", *(["--output_dir", os.devnull] if flag == "--init_from" else []))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"{name}: error: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_flag_that_is_none_is_one_line_that_names_it(script):
    required = [] if script == "train_accelerate.py" else ["--model", "m"]
    done = run(script, *required, "--bogus", "3")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"{script}: error: there is no option --bogus (see --help)"
    assert "usage:" not in done.stderr


def test_an_interrupt_is_one_line(tiny_text, tmp_path):
    flags = ["--config", "tiny", "--dataset", str(tiny_text), "--vocab_size", "320", "--output_dir", str(tmp_path)]
    command = [sys.executable, "train_accelerate.py", *flags]

    def heed_interrupts() -> None:  # a shell has its background jobs ignore them, and pytest may be one
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    streams = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=QUIET, preexec_fn=heed_interrupts, **streams) as process:
        while not (tmp_path / "config.yaml").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert re.fullmatch("train_accelerate.py: stopped by SIGINT (before a step was done|at step .* has it)", lines[-1])
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["-m", "benchmarks.head", "--repeats", "0"],
            2,
            "'0' must be a whole number of at least 1",
        ),
        (
            ["-m", "benchmarks.loading", "ours", "/none/here", "float32", "8"],
            1,
            "python -m benchmarks.loading: error: ",
        ),
        (["-m", "benchmarks", "training", "--compile_backend", "eager"], 2, "nothing is compiled; pass --compile, too"),
        (["-m", "radd_hf.hub.convert", "/none/here", "/none/there"], 1, "radd convert: error: "),
        (["app.py", "--model", "/none/here"], None, "error: "),
    ],
)
def test_the_other_programs_end_so_too(arguments, status, line):
    done = run(*arguments)
    assert done.returncode == status if status else done.returncode in (1, 2)
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_every_file_that_is_a_program_ends_by_the_rules():
    """Not examples, which show calls, nor demo.py, which must not import this package."""
    programs = [*(ROOT / "radd_hf").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("*.py")]
    programs.remove(ROOT / "demo.py")
    texts = {path: path.read_text(encoding="utf-8") for path in programs}
    programs = [path for path, text in texts.items() if '__name__ == "__main__"' in text]
    assert len(programs) > 15
    for path in programs:
        end = texts[path].rpartition('__name__ == "__main__"')[2]
        rules = ("main()",) if path.name == "radd_command.py" else ("run_program(", "run_script(", "program()")
        assert any(call in end for call in rules), path
