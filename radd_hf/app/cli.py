# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the command `radd`, which generates and scores text, trains, evaluates, converts and serves models.

    radd generate MODEL "It was [MASK:12] of spring"
    radd score MODEL "It was the first of spring"
    radd info MODEL
    radd train --config NAME
    radd eval --model MODEL
    radd quality --model MODEL
    radd profile MODEL --dataset TEXT
    radd convert SOURCE TARGET
    radd serve MODEL
    radd demo
    radd completion bash
    radd RUN_FOLDER

Results go to standard output. Everything else goes to standard error, so a command can be piped. The exit status is 0
for success, 1 for a failure, 2 for an error in the command line and 130 after an interrupt. One line on standard error
gives the reason.

Parsing needs only the standard library, because importing torch and transformers takes seconds. So other imports stand
inside functions. They are absolute, because `radd_command.py` runs this file without its package. The settings of
`generate` come from `settings_radd.py`, which also imports only the standard library.
"""

import argparse
import importlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

PACKAGE = Path(__file__).parents[1]
SETTINGS = runpy.run_path(str(PACKAGE / "settings_radd.py"))["TEXT_SETTINGS"]
ENDINGS = runpy.run_path(str(PACKAGE / "endings.py"))
OPTIONS = runpy.run_path(str(PACKAGE / "options.py"))
OneLineParser: Any = OPTIONS["OneLineParser"]
UsageError, note, visible = ENDINGS["UsageError"], ENDINGS["note"], ENDINGS["visible"]
DTYPES = ("float32", "bfloat16", "float16")

EXAMPLES = """\
commands:
  generate    fill the blanks of a text, or generate a whole text
  score       compute the likelihood of a text, or of each row of a file
  info        describe a model: sizes, noise, tokenizer, training, figures
  train       train a model (also: python train_accelerate.py)
  eval        measure the perplexity of a model on a text (also: python eval_ppl.py)
  quality     measure the quality and the cost of generated text (also: python eval_generation.py)
  profile     measure the information profile that generate --schedule profile uses
  convert     convert the authors' checkpoints to folders of this library, or back
  serve       serve a model over HTTP
  demo        serve a web page that fills texts and solves a Sudoku
  completion  print a script that completes commands in bash or zsh
  RUN_FOLDER  print the newest checkpoint of a training run

MODEL is a folder, a repository on the Hub, or a run folder (its newest checkpoint).

examples:
  radd generate checkpoints/radd-austen "It was [MASK:12] of spring"
  radd score checkpoints/radd-austen "It was a truth universally acknowledged."
  radd info checkpoints/radd-austen
  radd train --config austen --output_dir runs/mine
  radd eval --model checkpoints/radd-austen --dataset austen
  radd profile checkpoints/radd-austen --dataset austen
  accelerate launch -m radd_hf train --config small
  radd convert JingyangOu/radd-t-dce radd-t-dce --tokenizer gpt2
  radd serve checkpoints/radd-austen
  radd demo
  radd runs/mine

`radd COMMAND --help` explains a command. Exit status: 0 success, 1 failure, 2 error in the command line.
"""

GENERATE_EXAMPLES = """\
blanks: [MASK] is a blank of one token, [MASK:12] is one of twelve. A space before a blank belongs to the blank. A
backslash makes a bracket plain text: \\[Mask of Zorro]. The tokenizer's mask token is also a blank in TEXT; its other
special tokens are plain text.

examples:
  radd generate checkpoints/radd-austen "It was [MASK:12] of spring" --number 3 --seed 1
  radd generate checkpoints/radd-austen --prefix "It was a very" --suffix " of spring." --length 24
  echo "She [MASK:3] the letter." | radd generate checkpoints/radd-austen --json
  cat opening.txt | radd generate checkpoints/radd-austen --prefix - --length 64 > text.txt
  radd generate checkpoints/radd-austen --length 96 --method ordered --order random --live --pause 0.05
  radd generate checkpoints/radd-austen "[MASK:40]" --steps 16 --picture text.html --picture text.gif
  radd generate checkpoints/radd-austen --input prompts.jsonl --output texts.jsonl
  accelerate launch -m radd_hf generate checkpoints/radd-austen --input prompts.txt --output texts.parquet

The authors' released models have no tokenizer: add --tokenizer gpt2.
"""


COMPLETION_EXAMPLES = """\
Printing takes seconds, so print the script once, into a file:

  radd completion bash > ~/.radd-completion.bash    and in ~/.bashrc: source ~/.radd-completion.bash
  radd completion zsh > ~/.zfunc/_radd              and in ~/.zshrc, before compinit: fpath=(~/.zfunc $fpath)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv`, by default the command line of the process, and returns the exit status.

    Raises:
        SystemExit: after `--help` or `--version`, and for a wrong command line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] not in COMMANDS and Path(argv[0]).is_dir():
        return newest(argv)
    parser = _parser("radd", "RADD is a masked-diffusion language model: it fills masks in any order.", EXAMPLES)
    parser.add_argument("--version", action=_Version)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    if argv and argv[0] not in COMMANDS and not argv[0].startswith("-"):
        right = OPTIONS["did_you_mean"](argv[0], COMMANDS) or f"the commands are {', '.join(COMMANDS)}."
        parser.error(f"{argv[0]!r} is neither a command nor a folder; {right}")
    return COMMANDS[parser.parse_args(argv[:1]).command](argv[1:])


def _parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    return OneLineParser(
        prog=prog,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class _Version(argparse.Action):
    """Prints the version. It reads `version.py` only then."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser, *args, **kwargs):
        found = re.search(r'__version__ = "(.+)"', PACKAGE.joinpath("version.py").read_text(encoding="utf-8"))
        print(f"radd_hf {found[1] if found else 'of unknown version'}")
        parser.exit()


def _status_of(run: Callable[[], None], debug: bool) -> int:
    return ENDINGS["status_of"](run, "radd", debug)


# ---------------------------------------------------------------------------------------------------------
# radd generate
# ---------------------------------------------------------------------------------------------------------


# The sections of the help, each with its settings of `generate`.
DRAWING, SAVED = "how each token is drawn", "defaults: those saved with the model (generation_config.json)"
SECTIONS = {
    DRAWING: ("temperature", "top_p", "top_k", "exact"),
    "when each position is filled": (
        "method",
        "steps",
        "order",
        "entropy_bound",
        "confidence_threshold",
        "schedule",
    ),
    "speed and end": ("refresh_interval", "refresh_window", "speculate", "max_time", "stop_on_eos"),
}


def _generate_parser() -> argparse.ArgumentParser:
    parser = _parser("radd generate", "Fills the blanks of a text, or generates a whole text.", GENERATE_EXAMPLES)
    parser.usage = "radd generate MODEL [TEXT] [options]"
    parser.add_argument("model", metavar="MODEL", help="folder or Hub repository of a RADD model, or a run folder")
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="text with blanks; '-' reads standard input, the default in a pipe",
    )
    parser.add_argument(
        "--prefix", metavar="TEXT", help="beginning of the text, instead of TEXT; '-' reads standard input"
    )
    parser.add_argument("--suffix", metavar="TEXT", help="end of the text, instead of TEXT; '-' reads standard input")
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens of the whole text, if there is no TEXT (default: the model's)"
    )
    parser.add_argument("--number", "-n", type=int, metavar="N", default=1, help="number of texts (default 1)")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="the same seed generates the same texts (default: a new seed, which is printed)",
    )

    for title, names in SECTIONS.items():
        section = parser.add_argument_group(title, None if title != DRAWING else SAVED)
        for name in names:
            _add_setting(section, name, SETTINGS[name])

    add_file_arguments(
        parser,
        "a column 'text' with blanks, or columns 'prefix', 'suffix' and 'length'; a column 'seed' sets the seed of its "
        "row",
    )
    parser.set_defaults(command="generate")

    out = parser.add_argument_group("output")
    out.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per text: sample (its number), text, fills (the text in each blank, or between "
        "prefix and suffix), ids, tokens (how many were generated), nfe (network evaluations), log_probability (of the "
        "tokens when drawn, in nats), seconds (its share of the batch), seed",
    )
    out.add_argument("--live", action="store_true", help="show the text on standard error while it fills")
    out.add_argument(
        "--pause",
        type=float,
        metavar="SECONDS",
        default=0.0,
        help="with --live, seconds to wait after each network evaluation (default 0)",
    )
    out.add_argument(
        "--picture",
        action="append",
        default=[],
        metavar="FILE",
        help="save a picture of the first text: .html and .gif play how it fills, .png shows the result; repeatable",
    )
    out.add_argument("--order-map", metavar="FILE", help="save a .png of when each position was filled in each text")
    out.add_argument("--quiet", "-q", action="store_true", help="print only results and errors")

    where = add_computation_arguments(parser)
    where.add_argument(
        "--batch-size", type=int, metavar="N", default=8, help="texts generated together (default 8; 1 with --live)"
    )
    return parser


def _add_setting(group: Any, name: str, setting: Any) -> None:
    """Adds the flag of a setting. Without the flag the value is None, and the model's default holds."""
    flag = f"--{name.replace('_', '-')}"
    if setting.kind is bool:
        group.add_argument(flag, action="store_const", const=True, help=setting.help)
    elif setting.choices:
        group.add_argument(flag, choices=setting.choices, help=setting.help)
    else:
        metavar = {int: "N", float: "X"}[setting.kind]
        group.add_argument(flag, type=setting.kind, metavar=metavar, help=setting.help)


def add_computation_arguments(parser: argparse.ArgumentParser) -> Any:
    """Adds the group of flags for the computation with a model, and returns the group."""
    group = parser.add_argument_group("computation")
    group.add_argument("--tokenizer", metavar="NAME", help="name or folder (default: the model's)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="number format (default float32)")
    group.add_argument("--device", metavar="NAME", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    group.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return group


def add_file_arguments(parser: argparse.ArgumentParser, columns: str) -> None:
    file = parser.add_argument_group(
        "a file of texts", "on several GPUs or in several processes: accelerate launch -m radd_hf COMMAND ..."
    )
    file.add_argument("--input", metavar="FILE", help=f".txt with one text per line; .jsonl or .parquet with {columns}")
    file.add_argument(
        "--output",
        metavar="FILE",
        help=".jsonl or .parquet for the results; the same command again resumes an interrupted job",
    )
    file.add_argument("--text-column", metavar="NAME", help="column of the texts (default 'text')")
    file.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens of a batch, rows x length (default 2048 on a CPU, 16384 on a GPU)",
    )


def generate(argv: Sequence[str]) -> int:
    parser = _generate_parser()
    args = parser.parse_intermixed_args(argv)

    def run(_: Sequence[str]) -> None:
        from radd_hf.app.generate import main as generate_main

        generate_main(args, parser)

    if args.input is None and args.output is None:
        return _status_of(lambda: run(argv), args.debug)
    return _script("generate", run, ["--debug"] * args.debug)


# ---------------------------------------------------------------------------------------------------------
# radd info
# ---------------------------------------------------------------------------------------------------------


def _info_parser() -> argparse.ArgumentParser:
    parser = _parser("radd info", "Describes a RADD model without reading its weights.", "")
    parser.add_argument("model", metavar="MODEL", help="folder or repository of a RADD model, ours or the authors'")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def info(argv: Sequence[str]) -> int:
    args = _info_parser().parse_args(argv)
    return _status_of(lambda: _show_facts(args), args.debug)


def _show_facts(args: argparse.Namespace) -> None:
    from radd_hf.hub.facts import model_facts
    from radd_hf.results import to_json

    facts = model_facts(args.model)
    if args.json:
        print(to_json(facts, indent=2, default=str))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key.replace('_', ' ')} {_figure(part)}" for key, part in value.items())
        print(visible(f"{name.replace('_', ' '):<22}{_figure(value)}"))


def _figure(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


# ---------------------------------------------------------------------------------------------------------
# radd convert, serve, demo, train, eval, quality, profile, score
# ---------------------------------------------------------------------------------------------------------


def convert(argv: Sequence[str]) -> int:
    from radd_hf.hub.convert import main as convert_main

    rest = [argument for argument in argv if argument != "--debug"]
    return _status_of(lambda: convert_main(rest), debug="--debug" in argv)


def serve(argv: Sequence[str]) -> int:
    from radd_hf.endings import status_of  # of the package, whose `Stopped` the server raises
    from radd_hf.serving.arguments import parse_arguments

    args = parse_arguments(argv)

    def run() -> None:
        try:
            from radd_hf.serving.server import main as server_main
        except ModuleNotFoundError as error:
            if error.name not in ("uvicorn", "starlette", "prometheus_client"):
                raise
            raise ValueError("the server needs its packages: pip install 'radd_hf[serve]'") from error
        server_main(args)

    return status_of(run, "radd", debug=args.debug)


def demo(argv: Sequence[str]) -> int:
    """Serves the page of `web.py`. In a checkout of the repository it has the shipped checkpoint."""
    checkpoint = PACKAGE.parent / "checkpoints" / "radd-austen"

    def run() -> None:
        from radd_hf.app.arguments import make_parser

        make_parser(str(checkpoint)).parse_args(argv)  # help and mistakes need no gradio
        try:
            from radd_hf.app.web import main as web_main
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ValueError("the page needs gradio: pip install 'radd_hf[demo]'") from error
        if not checkpoint.is_dir() and "--model" not in argv:
            raise UsageError("name a folder or repository of a RADD model: radd demo --model NAME")
        web_main(list(argv), model=str(checkpoint))

    return _status_of(run, debug=False)


def train(argv: Sequence[str]) -> int:
    from radd_hf.training.train import main as train_main

    return _script("train", train_main, argv)


def evaluate(argv: Sequence[str]) -> int:
    from radd_hf.evaluation.perplexity import main as perplexity_main

    return _script("eval", perplexity_main, _with_model(argv))


def quality(argv: Sequence[str]) -> int:
    from radd_hf.evaluation.samples import main as samples_main

    return _script("quality", samples_main, _with_model(argv))


def profile(argv: Sequence[str]) -> int:
    from radd_hf.evaluation.profile import main as profile_main

    return _script("profile", profile_main, _with_model(argv))


def score(argv: Sequence[str]) -> int:
    from radd_hf.app.score import main as score_main

    return _script("score", score_main, argv)


def _with_model(argv: Sequence[str]) -> list[str]:
    """Inserts `--model` before a MODEL that stands first, as in other commands."""
    return [*(["--model"] if argv and not argv[0].startswith("-") else []), *argv]


def _script(name: str, script_main: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    """Runs a script, in one process or in each process of a launcher."""
    from radd_hf.processes import status_of_script

    return status_of_script(script_main, list(argv), f"radd {name}")


# ---------------------------------------------------------------------------------------------------------
# radd completion, radd RUN_FOLDER
# ---------------------------------------------------------------------------------------------------------


def _completion_parser() -> argparse.ArgumentParser:
    parser = _parser("radd completion", "Prints a script with which a shell completes `radd`.", COMPLETION_EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def completion(argv: Sequence[str]) -> int:
    args = _completion_parser().parse_args(argv)

    def run() -> None:
        from radd_hf.app.completion import completion_script

        print(completion_script(args.shell, PARSERS))

    return _status_of(run, args.debug)


def _maker(module: str) -> Callable[[], argparse.ArgumentParser]:
    """Returns a function that imports a module and makes its parser."""
    return lambda: importlib.import_module(module).make_parser()


def newest(argv: Sequence[str]) -> int:
    """Prints the newest checkpoint of a run, and on standard error a command that uses it."""
    parser = _parser("radd", "Prints the newest whole checkpoint of a training run.", "")
    parser.add_argument("folder", metavar="FOLDER", help="folder of a training run or of a model")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    args = parser.parse_args(argv)

    def run() -> None:
        from radd_hf.hub.loading import load_config, load_tokenizer
        from radd_hf.hub.runs import generate_command, newest_model

        model = newest_model(args.folder, "folder")
        config = load_config(model, argument="folder")
        command = generate_command(model, load_tokenizer(model), config)
        print(model)
        note(f"try: {visible(command)}")

    return _status_of(run, args.debug)


COMMANDS = {
    "generate": generate,
    "score": score,
    "info": info,
    "train": train,
    "eval": evaluate,
    "quality": quality,
    "profile": profile,
    "convert": convert,
    "serve": serve,
    "demo": demo,
    "completion": completion,
}
# For each command the function that makes its parser, for completion.
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "generate": _generate_parser,
    "info": _info_parser,
    "train": _maker("radd_hf.training.arguments"),
    "eval": _maker("radd_hf.evaluation.perplexity"),
    "quality": _maker("radd_hf.evaluation.samples"),
    "profile": _maker("radd_hf.evaluation.profile"),
    "convert": _maker("radd_hf.hub.convert"),
    "score": _maker("radd_hf.app.score"),
    "serve": _maker("radd_hf.serving.arguments"),
    "demo": _maker("radd_hf.app.arguments"),
    "completion": _completion_parser,
}


def program() -> NoReturn:
    """Runs the command line of the process and ends the process. Ctrl-C prints one line, even during imports."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        note("radd: interrupted")
        sys.exit(130)


if __name__ == "__main__":
    program()
