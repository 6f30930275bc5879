"""The README and docs/: their Python runs, the programs they start take the flags they give, their tables are those of
the recorded results.

A block that cannot run here stands below a comment that says why, `<!-- not run: needs the network -->`; it is still
compiled.
"""

import argparse
import configparser
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import sys

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from transformers import AutoModel, AutoTokenizer

import benchmarks.__main__
from benchmarks import (
    batches,
    conditioning,
    draw,
    estimators,
    head,
    hour,
    orders,
    partial_caching,
    plots,
    saving,
    scoring,
    serving,
    speculation,
    training_cost,
)
from benchmarks import profile as profile_benchmark
from radd_hf.app import cli
from radd_hf.evaluation import perplexity, profile, samples
from radd_hf.hub import convert, model_card
from radd_hf.training import train
from support.paths import CHECKPOINT, GOLDEN, ROOT

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n+)?^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PROGRAMS = ("accelerate", "make", "pip", "python", "radd", "torchrun", ".")
LAUNCH = "accelerate launch"  # with flags and no program, where a page speaks of it
AUTHORS = re.compile(r"JingyangOu/radd-[\w-]+")


def fenced(page: str, *languages: str) -> list[str]:
    return [code for _, language, code in FENCE.findall(PAGES[page]) if language in languages]


def commands_of(page: str) -> list[str]:
    """Every line for the shell: in blocks, in indented ones, and in the text between."""
    text = FENCE.sub("", PAGES[page]).replace("\\\n", " ")
    lines = "".join(fenced(page, "bash", "")).replace("\\\n", " ").split("\n")
    lines += re.findall(r"^ {4}(?! )(.*)", text, flags=re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", text):
        if " " in code and code.partition(" --")[0] != LAUNCH:
            named_only = code.startswith("python ") and " -" not in code.replace(" -m ", " ")
            lines.append(f"{code} ..." if named_only else code)
    return [line.strip() for line in lines if program_of(line) is not None]


def program_of(line: str) -> str | None:
    words = [word for word in line.rpartition(" | ")[2].split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return next((program for program in PROGRAMS if words and words[0] == program), None)


def parts_of(command: str) -> tuple[str, list[str]]:
    """What a command reads from `echo`, and its words up to where its output goes."""
    source, _, command = command.rpartition(" | ")
    words = shlex.split(command.partition("  #")[0])
    return "".join(f"{word}\n" for word in shlex.split(source)[1:]), words[: [*words, ">"].index(">")]


COMMANDS = [(page, command) for page in PAGES for command in commands_of(page)]


# ---------------------------------------------------------------------------------------------------------
# Python
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """What pages that speak of parts of a program take for granted."""
    return {
        "torch": torch,
        "model": AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True),
        "tokenizer": AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True),
    }


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the checkout, in which a page may write what it likes."""
    for name in ("checkpoints", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")  # a command may draw its picture anew
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # of the Trainer, where there is no GPU
@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "python") and "how_radd" not in page])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, shipped, checkout):
    """The authors' repositories are stood in for by a small one of their layout."""
    names = {"__name__": "a_page", **shipped}
    for marker, language, code in FENCE.findall(PAGES[page]):
        if language == "python":
            program = compile(AUTHORS.sub(str(GOLDEN / "hub"), code), page, "exec")
            if not marker:
                exec(program, names)


# ---------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------


class Parsed(BaseException):  # no failure, which a program would tell in a line
    pass


def parse_by(main, flags: list[str], monkeypatch) -> None:
    """Calls a program's main(flags), which must come as far as its argparse parser and is left there."""

    def and_leave(parse):
        def parse_and_leave(*arguments, **settings):
            parse(*arguments, **settings)
            raise Parsed

        return parse_and_leave

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, and_leave(getattr(argparse.ArgumentParser, name)))
    with pytest.raises(Parsed):
        main(flags)


def check_command(words: list[str], monkeypatch) -> None:
    """Fails where the program of a command does not know its flags, or is none of this repository."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(arguments) <= set(targets), f"{arguments} are not targets of the Makefile"
    elif program == "pip":
        check_extras(arguments)
    elif program == ".":
        assert arguments == [".venv/bin/activate"]
    elif program in ("accelerate", "torchrun"):
        check_launch(program, arguments, monkeypatch)
    else:
        check_python(["-m", "radd_hf", *arguments] if program == "radd" else arguments, monkeypatch)


def check_extras(arguments: list[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for argument in arguments:
        if extras := re.search(r"(?:radd_hf|^\.)\[([\w,-]+)\]", argument):
            assert set(extras[1].split(",")) <= set(setup["options.extras_require"])


def check_launch(program: str, arguments: list[str], monkeypatch) -> None:
    if program == "torchrun":
        launch = get_args_parser().parse_args(arguments)
    else:
        assert arguments.pop(0) == "launch"
        launch = launch_command_parser().parse_args(arguments)
        assert launch.config_file is None or (ROOT / launch.config_file).is_file()
    module = ["-m"] if launch.module else []
    check_python([*module, launch.training_script, *launch.training_script_args], monkeypatch)


def check_python(arguments: list[str], monkeypatch) -> None:
    if arguments[0] == "-m":
        name, flags = arguments[1], arguments[2:]
        assert importlib.util.find_spec(name) is not None, f"there is no module {name}"
    else:
        name, flags = arguments[0], arguments[1:]
        assert (ROOT / name).is_file(), f"there is no script {name}"
    if flags == ["..."]:
        return
    flags = [flag for flag in flags if flag != "..."]
    if parse := PARSERS.get(name):
        parse(flags, monkeypatch)
    else:
        assert not flags, f"{name} takes no flags that this test knows"


def parse_estimators(flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["estimators", *flags])
    parse_by(lambda _: estimators.main(), flags, monkeypatch)


COMMANDS_THAT_ARE_SCRIPTS = {
    "train": "train_accelerate.py",
    "eval": "eval_ppl.py",
    "quality": "eval_generation.py",
}


def parse_radd(flags, monkeypatch):
    if flags and not flags[0].startswith("-"):
        command, *flags = flags
        if flags in ([], ["--help"]) or command == "demo":  # named only; the page needs gradio
            assert command in cli.COMMANDS or command.startswith("runs/")  # the folder of a run
        elif command == "profile":
            profile.parse_arguments(["--model", *flags])
        elif command in COMMANDS_THAT_ARE_SCRIPTS:
            PARSERS[COMMANDS_THAT_ARE_SCRIPTS[command]](flags, monkeypatch)
        else:
            parse_by(cli.COMMANDS[command], flags, monkeypatch)


def parse_example(name):
    return lambda flags, monkeypatch: parse_by(runpy.run_path(str(ROOT / name))["main"], flags, monkeypatch)


def parse_page(flags, monkeypatch):
    if importlib.util.find_spec("gradio") is not None:
        from radd_hf.app import web

        parse_by(lambda flags: web.main(flags, model="m"), flags, monkeypatch)


def parse_samples(flags, _):
    samples.check(*samples.parse_arguments(flags))


def parse_harness(flags, _):
    """The flags are the harness's own; where it is installed (`make lm-eval`) its parser reads them."""
    assert flags[:2] == ["--model", "radd"] or not flags
    if importlib.util.find_spec("lm_eval") is not None and flags:
        from lm_eval._cli.harness import HarnessCLI

        HarnessCLI()._parser.parse_args(["run", *flags])


# Program to what reads its flags and refuses those that it does not know.
PARSERS = {
    "train_accelerate.py": lambda flags, _: train.parse_arguments(flags),
    "eval_ppl.py": lambda flags, _: perplexity.parse_arguments(flags),
    "eval_generation.py": parse_samples,
    "benchmarks.training_cost": lambda flags, _: training_cost.parse_arguments(flags),
    "benchmarks": lambda flags, _: benchmarks.__main__.parse_arguments(flags),
    "benchmarks.batches": lambda flags, monkeypatch: parse_by(batches.main, flags, monkeypatch),
    "benchmarks.scoring": lambda flags, monkeypatch: parse_by(scoring.main, flags, monkeypatch),
    "benchmarks.hour": lambda flags, monkeypatch: parse_by(hour.main, flags, monkeypatch),
    "benchmarks.draw": lambda flags, _: draw.parse_arguments(flags),
    "benchmarks.head": lambda flags, _: head.parse_arguments(flags),
    "benchmarks.estimators": parse_estimators,
    "benchmarks.orders": lambda flags, monkeypatch: parse_by(orders.main, flags, monkeypatch),
    "benchmarks.partial_caching": lambda flags, monkeypatch: parse_by(partial_caching.main, flags, monkeypatch),
    "benchmarks.plots": lambda flags, monkeypatch: parse_by(plots.main, flags, monkeypatch),
    "benchmarks.profile": lambda flags, monkeypatch: parse_by(profile_benchmark.main, flags, monkeypatch),
    "benchmarks.speculation": lambda flags, _: speculation.parse_arguments(flags),
    "benchmarks.serving": lambda flags, _: serving.parse_arguments(flags),
    "benchmarks.saving": lambda flags, monkeypatch: parse_by(saving.main, flags, monkeypatch),
    "radd_hf.hub.model_card": lambda flags, _: model_card.make_parser().parse_args(flags),
    "radd_hf.hub.convert": lambda flags, monkeypatch: parse_by(convert.main, flags, monkeypatch),
    "radd_hf.evaluation.lm_eval": parse_harness,
    "http.server": lambda *_: None,  # Python's own
    "radd_hf": parse_radd,
    "app.py": parse_page,
    **{f"examples/{path.name}": parse_example(f"examples/{path.name}") for path in ROOT.glob("examples/*.py")},
}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}-{command}" for page, command in COMMANDS])
def test_every_command_is_one_that_its_program_takes(page, command, checkout, monkeypatch):
    check_command(parts_of(command)[1], monkeypatch)


FENCED_JSON = re.compile(r"```json\n(.*?)```", re.DOTALL)  # of docs/scale.md: rows of an input, and a row of an output


@pytest.mark.parametrize(
    "command", [command for _, command in COMMANDS if re.match(r".*\bradd (generate|info|score) checkpoints/", command)]
)
def test_what_is_written_from_the_shell_is_written(command, checkout, monkeypatch, capsys):
    text, (_, *arguments) = parts_of(command)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    prompts, text_said, sentences, score_said = FENCED_JSON.findall(PAGES["docs/scale.md"])[:4]
    (checkout / "prompts.jsonl").write_text(prompts)
    (checkout / "sentences.jsonl").write_text(sentences)
    assert cli.main(arguments) == 0, capsys.readouterr().err
    if "--output" not in arguments:
        assert capsys.readouterr().out.strip()
        return
    output = checkout / arguments[arguments.index("--output") + 1]
    found = json.loads(output.read_text().splitlines()[-1])
    said = json.loads(text_said if output.name == "texts.jsonl" else score_said)
    if "--seed" in arguments or output.name == "scores.jsonl":
        assert {name: type(value) for name, value in found.items()} == {name: type(said[name]) for name in said}
        for name in found.keys() & {"row", "text", "fills", "tokens", "nfe", "bytes", "id"}:
            assert found[name] == said[name]


@pytest.mark.parametrize(
    "command",
    [
        "python eval_ppl.py --modle checkpoints/radd-austen",
        "accelerate launch --no_such_flag eval_ppl.py --model m",
        "accelerate launch eval_ppl.py --estimator no_such",
        "python -m radd_hf.hub.convert a b --tokeniser gpt2",
        "python -m benchmarks.estimators no_such",
        "python no_such.py",
        "make no_such",
        "radd no_such a b",
        "radd generate checkpoints/radd-austen --no-such",
        "pip install 'radd_hf[no-such]'",
        "python demo.py --fast",
    ],
)
def test_a_command_that_its_program_does_not_take_is_found(command, checkout, monkeypatch):
    with pytest.raises((AssertionError, KeyError, SystemExit, ValueError)):
        check_command(shlex.split(command), monkeypatch)


# ---------------------------------------------------------------------------------------------------------
# Tables and the reference
# ---------------------------------------------------------------------------------------------------------


def test_the_generation_guide_has_the_figures_of_the_recorded_samples():
    result = json.loads((ROOT / "docs/figures/generative_quality.json").read_text())
    rows = {}
    for row in result["rows"]:
        name, judged = ", ".join(filter(None, (row["method"], row["order"]))), row["judgement"]
        figures = f"{row['nfe']:.1f} | {judged['perplexity']:.0f} +- {judged['perplexity_error']:.0f}"
        rows[name, str(row["steps"] or "")] = f"{figures} | {row['token_entropy']:.2f}"
    judged = result["reference"]["judgement"]
    figures = f" | {judged['perplexity']:.0f} +- {judged['perplexity_error']:.0f}"
    rows["the author's text", ""] = f"{figures} | {result['reference']['token_entropy']:.2f}"
    _, _, table = PAGES["docs/generation.md"].partition("| method | steps | evaluations |")[2].partition("---:|\n")
    shown = [line.strip("| ").split(" | ", 2) for line in table.partition("\n\n")[0].split("\n")]
    assert len(shown) >= 10
    for name, steps, figures in shown:
        assert figures.strip("| ") == rows[name.strip(), steps.strip("| ")].strip("| ")


def test_the_generation_guide_has_the_table_of_the_recorded_blanks():
    result = json.loads(conditioning.RESULT.read_text())
    assert f"\n{conditioning.table(result)}\n" in PAGES["docs/generation.md"]
    assert (
        "of {passages} blanks of {gap} tokens, with {before} tokens before and {after} after each".format(**result)
        in PAGES["docs/generation.md"]
    )


def test_every_module_is_in_the_reference_or_said_to_be_internal():
    internal = {"__init__", "__main__", "version"}
    modules = {path.stem for path in (ROOT / "radd_hf").glob("*.py")} - internal
    documented = re.findall(
        r"^::: radd_hf\.(\w+)$", "".join(PAGES[page] for page in PAGES if "/api/" in page), re.MULTILINE
    )
    assert sorted(documented) == sorted(modules)


def test_every_page_names_only_files_that_exist():
    for page, text in PAGES.items():
        for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", FENCE.sub("", text)):
            assert (ROOT / page).parent.joinpath(path).exists(), f"{page}: {path}"
