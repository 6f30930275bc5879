# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `radd`: text from a model, facts about a model, the authors' checkpoints converted, a web page.

    radd generate MODEL "It was [MASK:12] of spring"
    radd info MODEL
    radd train --config NAME
    radd eval --model MODEL
    radd quality --model MODEL
    radd profile MODEL --dataset TEXT
    radd convert SOURCE TARGET
    radd serve MODEL
    radd demo

What a command is asked for goes to standard output and nothing else does: it can be piped. The exit status is 0 when
that was done, 2 when the command line is at fault, 1 when it could not be done, 130 after an interrupt; a reason is one
line on standard error.

Nothing but the standard library is imported before a command line is understood, since torch and transformers take
seconds. So imports stand inside functions, and are absolute: `radd_command.py` runs this file without its package. The
settings of `generate` are read from `settings_radd.py`, which imports nothing else either.
"""

import argparse
import json
import logging
import re
import runpy
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

PACKAGE = Path(__file__).parents[1]
SETTINGS = runpy.run_path(str(PACKAGE / "settings_radd.py"))["TEXT_SETTINGS"]
ENDINGS = runpy.run_path(str(PACKAGE / "endings.py"))
UsageError, note, visible = ENDINGS["UsageError"], ENDINGS["note"], ENDINGS["visible"]
# Characters that are read of standard input; a text may have half of them.
MAX_INPUT = 2**21
# Of `radd generate`, what has no meaning for a file of texts.
FOR_ONE_TEXT = "text", "prefix", "suffix", "json", "live", "pause", "picture", "order_map", "batch_size"
DTYPES = ("float32", "bfloat16", "float16")

EXAMPLES = """\
commands:
  generate   fill the blanks of a text, or write one
  info       tell what a model is: sizes, noise, tokenizer, training, figures
  train      train a model, as train_accelerate.py does
  eval       measure the perplexity of a model on a text, as eval_ppl.py does
  quality    measure what a model writes and what that costs, as eval_generation.py does
  profile    estimate and save what generate --schedule profile needs
  convert    make folders for the Hub of the authors' checkpoints, and back
  serve      serve a model over HTTP, for programs
  demo       serve a web page on which a model writes

examples:
  radd generate checkpoints/radd-austen "It was [MASK:12] of spring"
  radd info checkpoints/radd-austen
  radd train --config austen --output_dir runs/mine
  radd eval --model checkpoints/radd-austen --dataset austen
  radd profile checkpoints/radd-austen --dataset austen
  accelerate launch -m radd_hf train --config small
  radd convert JingyangOu/radd-t-dce radd-t-dce --tokenizer gpt2
  radd serve checkpoints/radd-austen
  radd demo

`radd COMMAND --help` tells the rest. Exit status: 0 done, 2 the command line is at fault, 1 it could not be done.
"""

GENERATE_EXAMPLES = """\
blanks: [MASK] is a blank of one token, [MASK:12] one of twelve; a space before a blank belongs to it. A backslash
makes it text: \\[Mask of Zorro]. The tokenizer's mask token is a blank of TEXT, too; other special tokens are text.

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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` names, by default that of the process; returns the exit status.

    Raises:
        SystemExit: as argparse does, after `--help` or for a command line that it cannot read.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser("radd", "RADD: text by filling in masks.", EXAMPLES)
    parser.add_argument("--version", action=_Version)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    return COMMANDS[parser.parse_args(argv[:1]).command](argv[1:])


def _parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class _Version(argparse.Action):
    """Reads the version when it is asked for, from the file beside this one."""

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


def _generate_parser() -> argparse.ArgumentParser:
    parser = _parser("radd generate", "Fills the blanks of a text, or writes one.", GENERATE_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="folder or repository of a RADD model")
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="with blanks; '-' reads standard input, as leaving out TEXT, --prefix, --suffix and --length does where "
        "that is no terminal",
    )
    parser.add_argument(
        "--prefix", metavar="TEXT", help="what the text begins with, instead of TEXT; '-' reads standard input"
    )
    parser.add_argument(
        "--suffix", metavar="TEXT", help="what the text ends with, instead of TEXT; '-' reads standard input"
    )
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens of the whole, without TEXT; default: the model's length"
    )
    parser.add_argument("--number", "-n", type=int, metavar="N", default=1, help="texts to write (default 1)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same seed writes the same texts; default: a new one, named"
    )

    add_file_arguments(parser, "a column of texts with blanks, or prefix, suffix and length; a seed is the row's own")
    parser.set_defaults(command="generate")

    how = parser.add_argument_group("how", "defaults are those of the model's generation_config.json, else of generate")
    for name, setting in SETTINGS.items():
        if name != "length":  # which stands with the text
            _add_setting(how, name, setting)

    out = parser.add_argument_group("output")
    out.add_argument(
        "--json",
        action="store_true",
        help="one object a line: sample, text, fills (of each blank, or between prefix and suffix), ids, tokens "
        "(written), nfe (network evaluations), log_probability (of the tokens when drawn, nats), seconds (of its "
        "batch, divided), seed",
    )
    out.add_argument("--live", action="store_true", help="show on standard error how the text fills")
    out.add_argument(
        "--pause",
        type=float,
        metavar="SECONDS",
        default=0.0,
        help="with --live, seconds to hold each event (default 0)",
    )
    out.add_argument(
        "--picture", action="append", default=[], metavar="FILE", help="of the first text: .html or .gif play, or .png"
    )
    out.add_argument("--order-map", metavar="FILE", help="heat map of what was revealed when, of all texts, as .png")
    out.add_argument("--quiet", "-q", action="store_true", help="no remarks on standard error")

    where = parser.add_argument_group("where")
    where.add_argument("--tokenizer", metavar="NAME", help="name or folder; default: the model's")
    where.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation (default float32)")
    where.add_argument(
        "--device", metavar="NAME", help="such as cpu or cuda:0; default: an accelerator if there is one"
    )
    where.add_argument(
        "--batch-size", type=int, metavar="N", default=8, help="texts written together (default 8; 1 with --live)"
    )
    where.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _add_setting(group: Any, name: str, setting: Any) -> None:
    """The flag of a setting; None where it is not given, so that the model's own default holds."""
    flag = f"--{name.replace('_', '-')}"
    if setting.kind is bool:
        group.add_argument(flag, action="store_const", const=True, help=setting.help)
    elif setting.choices:
        group.add_argument(flag, choices=setting.choices, help=setting.help)
    else:
        metavar = {int: "N", float: "X"}[setting.kind]
        group.add_argument(flag, type=setting.kind, metavar=metavar, help=setting.help)


def generate(argv: Sequence[str]) -> int:
    args = _generate_parser().parse_intermixed_args(argv)
    if args.input is None and args.output is None:
        return _status_of(lambda: _write_texts(args), args.debug)
    return _script("generate", lambda _: _write_file(args), ["--debug"] * args.debug)


def _write_file(args: argparse.Namespace) -> None:
    """Fills the texts of a file."""
    check_file_arguments(args, _generate_parser(), FOR_ONE_TEXT)
    settings = _check(args)
    from radd_hf.jobs.job import run_on_file
    from radd_hf.jobs.writing import RowWriter, columns_to_read

    accelerator, source = open_file(args)
    with usage():
        columns = columns_to_read(source.columns, args.text_column)
    model, tokenizer, identity = load_for_file(args, accelerator)

    def make_work(seed: int) -> RowWriter:
        asked = {"seed": seed, "number": args.number, "batch_tokens": args.batch_tokens, "columns": columns}
        with usage():
            return RowWriter(model, tokenizer, **asked, **settings)

    run_on_file(accelerator, source, args.output, make_work, identity, args.seed, unit="text", quiet=args.quiet)


# ---------------------------------------------------------------------------------------------------------
# Commands on a file: radd generate, radd score
# ---------------------------------------------------------------------------------------------------------


def add_file_arguments(parser: argparse.ArgumentParser, columns: str) -> None:
    file = parser.add_argument_group("files", "also by the processes of accelerate launch -m radd_hf")
    file.add_argument("--input", metavar="FILE", help=f".txt, a text a line; .jsonl or .parquet with {columns}")
    file.add_argument(
        "--output",
        metavar="FILE",
        help=".jsonl or .parquet, a row for each of the input; go on with an interrupted one",
    )
    file.add_argument("--text-column", metavar="NAME", help="the column of texts (default text)")
    file.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens of a batch, rows x length; default: 2048, on a card 16384"
    )


def check_file_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser, for_one: Sequence[str]) -> None:
    """Raises a UsageError for a file without the other, or with an argument that is for one text."""
    for name, other in (("output", "input"), ("input", "output")):
        if getattr(args, name) is not None and getattr(args, other) is None:
            raise UsageError(f"--{name} {getattr(args, name)}: pass --{other}, too, which names a file of texts.")
    for name in for_one:
        if getattr(args, name) != parser.get_default(name):
            flag = "TEXT" if name == "text" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is for one text: leave it out with --input {args.input}.")
    if args.batch_tokens is not None and not 1 <= args.batch_tokens < 2**31:
        raise UsageError(f"--batch-tokens {args.batch_tokens} must be at least 1.")


@contextmanager
def usage() -> Iterator[None]:
    """Ends with status 2 for what is refused in the block."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def open_file(args: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the accelerator of this process and the input, read once; args.output becomes a path."""
    from radd_hf.jobs.rows import RowsFile, check_rows_output
    from radd_hf.processes import make_accelerator, on_main

    with usage():
        args.output = check_rows_output("output", args.output)
        accelerator = make_accelerator()
        return accelerator, on_main(accelerator, lambda: RowsFile.examine("input", args.input, args.output))


def load_for_file(args: argparse.Namespace, accelerator: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the model, the tokenizer, and what results depend on of them and of how they are computed."""
    from radd_hf.hub.loading import weights_hash

    if accelerator.num_processes > 1:
        if args.device is not None:
            raise UsageError(f"--device {args.device}: each process of a launcher has its own device; leave it out.")
        args.device = str(accelerator.device)
    model, tokenizer = _load(args)
    identity = {
        "command": f"radd {args.command}",
        "weights": weights_hash(model),
        "tokenizer": args.tokenizer,
        "dtype": args.dtype,
        "device": model.device.type,
    }
    return model, tokenizer, identity


# ---------------------------------------------------------------------------------------------------------
# One text
# ---------------------------------------------------------------------------------------------------------


def _read_text(args: argparse.Namespace, stdin: TextIO) -> None:
    """Fills in the arguments that standard input is to give, without the line break that ends it.

    Raises:
        UsageError: for arguments that contradict each other.
    """
    ends = [name for name in ("prefix", "suffix") if getattr(args, name) is not None]
    if args.text is not None and (ends or args.length is not None):
        raise UsageError(
            f"TEXT {args.text!r} is the whole text: leave out --{ends[0] if ends else 'length'}, or pass --prefix and "
            "--suffix instead of it."
        )
    if args.prefix == "-" and args.suffix == "-":
        raise UsageError("--prefix and --suffix cannot both be read from standard input.")
    # A length asks for a text of which nothing is given; else there must be one, and a pipe has it.
    piped = args.text is None and not ends and args.length is None and not stdin.isatty()
    for name in ("text", "prefix", "suffix"):
        if getattr(args, name) == "-" or (name == "text" and piped):
            try:
                # A text of more characters is refused: a pipe may have no end.
                setattr(args, name, stdin.read(MAX_INPUT).removesuffix("\n").removesuffix("\r").removeprefix("\ufeff"))
            except UnicodeDecodeError as error:
                raise UsageError(f"standard input is not in {error.encoding}: {error}") from error
    if piped and not args.text:
        raise UsageError("standard input is empty: pass a text with blanks, --prefix, --suffix or --length.")


def _check(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of `generate` that were given; what would fail later is refused before a model is loaded.

    Raises:
        UsageError: for a value that does not fit.
    """
    for name, least, most in (("number", 1, 2**31), ("batch_size", 1, 2**12), ("pause", 0, 3600)):
        value = getattr(args, name)
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"a number, and at most {most}"
            raise UsageError(f"--{name.replace('_', '-')} {value} must be {bound}.")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed {args.seed} must be an integer in 0 .. 2^63 - 1.")
    if args.pause and not args.live:
        raise UsageError(f"--pause {args.pause} holds the events that --live shows: pass --live, too.")
    from radd_hf.app.visualize import check_picture
    from radd_hf.generation_radd import RaddGenerationConfig

    settings = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    try:
        RaddGenerationConfig(**settings)
        for picture in args.picture:
            check_picture(picture)
        if args.order_map is not None:
            check_picture(args.order_map, (".png",))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return settings


def _write_texts(args: argparse.Namespace) -> None:
    import torch

    _read_text(args, sys.stdin)
    settings = _check(args)
    model, tokenizer = _load(args)
    # The command has a remark of its own about long texts.
    with _silenced("radd_hf.modeling_radd", *["radd_hf.text_radd"] * args.quiet):
        given = _make_canvas(args, settings.pop("length", None), model, tokenizer)
        canvas = torch.tensor(given.ids)  # (L,)
        longest = model.config.max_position_embeddings
        if len(canvas) > longest and not args.quiet:
            note(f"{len(canvas)} tokens are more than the {longest} that the model was trained on.")
        if args.seed is None:
            args.seed = secrets.randbelow(2**31)

        outputs, batch = list[Any](), 1 if args.live else args.batch_size
        for first in range(0, args.number, batch):
            samples = range(first, min(first + batch, args.number))
            output, seconds = _write_batch(args, model, tokenizer, canvas, samples, settings)
            for row, sample in enumerate(samples):
                _report(args, output, row, sample, given, tokenizer, seconds)
            if args.order_map is not None or not outputs:  # the first is for a picture; others would fill the memory
                outputs.append(output)
    _draw_pictures(args, outputs, model, tokenizer, settings)


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Has loggers say errors alone."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _write_batch(
    args: argparse.Namespace, model: Any, tokenizer: Any, canvas: Any, samples: range, settings: dict[str, Any]
) -> tuple[Any, float]:
    """What `generate` returns for these samples of the canvas (L,), and the seconds for each.

    Raises:
        UsageError: for settings that do not fit together.
    """
    import torch

    from radd_hf.randomness_radd import sample_generators, text_seed

    generators = sample_generators(text_seed(args.seed), samples)
    untouched, started = generators[0].get_state(), time.perf_counter()
    with _LiveCanvas(canvas.tolist(), tokenizer, model.config.mask_token_id, args.pause, args.live) as live:
        try:
            output = model.generate(
                canvas[None],
                num_return_sequences=len(samples),
                generator=generators,
                streamer=live if args.live else None,
                return_dict_in_generate=True,
                **settings,
            )
        except ValueError as error:
            if not torch.equal(generators[0].get_state(), untouched):
                raise
            raise UsageError(str(error)) from error  # arguments are refused before anything is drawn
    return output, (time.perf_counter() - started - live.paused) / len(samples)


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model, ready to write, and its tokenizer."""
    import torch
    from transformers.utils import logging

    from radd_hf.hub.loading import find_device, load

    logging.disable_progress_bar()
    try:
        device = find_device(args.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return load(args.model, args.tokenizer, device=device, dtype=getattr(torch, args.dtype))


def _make_canvas(args: argparse.Namespace, length: int | None, model: Any, tokenizer: Any) -> Any:
    """The text with its blanks, as a `BlankedText`; between a prefix and a suffix is one blank.

    Raises:
        UsageError: for malformed blanks, none, or no room.
    """
    from radd_hf.canvas_radd import encode_request
    from radd_hf.settings_radd import LENGTHS

    own = {name: getattr(model.generation_config, name) for name in LENGTHS}
    given = {name: getattr(args, name) for name in ("text", "prefix", "suffix") if getattr(args, name) is not None}
    try:
        return encode_request(
            given or {"prefix": ""}, model.config, tokenizer, **({"length": length} if length else own), name="TEXT"
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _report(
    args: argparse.Namespace, output: Any, row: int, sample: int, given: Any, tokenizer: Any, seconds: float
) -> None:
    """Writes the text in a row of a batch, the `sample`-th of all, to standard output, and about it to the other."""
    ids = output.sequences[row].tolist()
    fills = given.fills(ids, tokenizer, skip_special_tokens=True)
    result = {
        "sample": sample,
        "text": given.filled(fills),
        "fills": fills,
        "ids": ids,
        "tokens": int((output.reveal_step[row] >= 0).sum()),
        "nfe": int(output.num_function_evaluations[row]),
        "log_probability": float(output.token_logprobs[row].double().sum()),
        "seconds": seconds,
        "seed": args.seed,
    }
    if args.json:
        print(visible(json.dumps(result, ensure_ascii=False)), flush=True)
    else:  # a model can write anything, and a terminal obeys control characters
        text = visible(str(result["text"]), keep="\n\t") if sys.stdout.isatty() else result["text"]
        print("\n" * (sample > 0) + text, flush=True)
    if not args.quiet:
        note(
            f"[{sample + 1} of {args.number}: {result['tokens']} tokens in {result['nfe']} network evaluations, "
            f"log-probability {result['log_probability']:.1f} nats, {seconds:.2f} s, seed {args.seed}]"
        )


def _draw_pictures(
    args: argparse.Namespace, outputs: list, model: Any, tokenizer: Any, settings: dict[str, Any]
) -> None:
    import torch

    from radd_hf.app.visualize import Denoising, plot_reveal_order, save_picture, save_plot
    from radd_hf.generation_radd import RaddGenerationConfig
    from radd_hf.settings_radd import GRID_METHODS

    resolved = RaddGenerationConfig.resolve(settings, model.generation_config)
    steps, title = None, f"{Path(args.model).resolve().name}, {resolved.method}"
    if resolved.method in GRID_METHODS:
        steps = resolved.steps or outputs[0].sequences.shape[1]
        title += f", {steps} steps"
    for picture in args.picture:
        save_picture(Denoising.of(outputs[0], tokenizer, n_steps=steps), picture, title)
    if args.order_map is not None:
        revealed = torch.cat([output.reveal_step for output in outputs])  # (R, L)
        save_plot(plot_reveal_order(revealed), args.order_map)


class _LiveCanvas:
    """A streamer of `generate` that shows one canvas as it fills, the newest tokens marked.

    On standard error, in place; where that is no terminal, a line at every tenth of the text says how far it is.
    Looking takes no longer than writing: events that follow fast are shown together, unless `pause` holds each.
    """

    MASK, MASK_ASCII = " \u2591\u2591\u2591", " ___"
    WRITTEN, NEWEST = "cyan", "bold black on bright_yellow"

    def __init__(self, ids: list[int], tokenizer: Any, mask_token_id: int, pause: float, shown: bool):
        self.ids, self.tokenizer, self.mask_token_id, self.pause = ids, tokenizer, mask_token_id, pause
        self.given = [token != mask_token_id for token in ids]
        self.shown, self.events, self.top = shown, 0, 0
        self.drawn = ids  # the canvas on the screen
        self.paused = 0.0  # seconds that went into showing it
        self.next_draw = 0.0

    def __enter__(self) -> "_LiveCanvas":
        self.started = time.perf_counter()
        self.display: Any = None
        if self.shown:
            from rich.console import Console
            from rich.live import Live

            self.console = Console(stderr=True, highlight=False)
            if self.console.is_terminal and not self.console.is_dumb_terminal:
                # Where the text itself goes to the same terminal, it takes the place of the canvas.
                self.display = Live(console=self.console, auto_refresh=False, transient=sys.stdout.isatty())
                self.display.start()
                self._show()
        return self

    def __exit__(self, *failure) -> None:
        if self.display is not None:
            self.display.stop()

    def put_draft(self, canvas: Any) -> None:
        """canvas (1, L)."""
        before, self.ids = self._done()[0], canvas[0].tolist()
        self.events += 1
        done, total = self._done()
        if self.display is None:
            if done == total or 10 * done // total > 10 * before // total:
                note(self._status())
        elif self.pause or done == total or time.perf_counter() >= self.next_draw:
            self._show()

    def _show(self) -> None:
        started = time.perf_counter()
        self._draw()
        self.drawn = self.ids
        time.sleep(self.pause)
        spent = time.perf_counter() - started
        self.paused += spent
        self.next_draw = started + 2 * max(spent, 0.02)

    def put(self, ids: Any) -> None:
        pass  # the last draft was the same

    def end(self) -> None:
        pass

    def _done(self) -> tuple[int, int]:
        """Tokens written so far, and in the end."""
        return sum(token != self.mask_token_id for token in self.ids) - sum(self.given), len(self.ids) - sum(self.given)

    def _status(self) -> str:
        done, total = self._done()
        speed = done / max(time.perf_counter() - self.started - self.paused, 1e-9)
        return f"NFE {self.events} \u00b7 {done} of {total} tokens \u00b7 {speed:,.0f} tokens/s"

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        from radd_hf.app.visualize import RETURN, token_texts

        text = Text()
        mask = self.MASK_ASCII if self.console.options.ascii_only else self.MASK
        for index, piece in enumerate(token_texts(self.ids, self.tokenizer)):
            if self.ids[index] == self.mask_token_id:
                text.append(mask, style="dim")
                continue
            piece = visible(piece.replace("\t", " "), keep="\n")
            if self.given[index]:
                text.append(piece)
            else:
                newest = self.drawn[index] == self.mask_token_id
                text.append(piece.replace("\n", f"{RETURN}\n"), style=self.NEWEST if newest else self.WRITTEN)
        lines, room = text.wrap(self.console, self.console.width), max(self.console.height - 2, 1)
        fresh = [number for number, line in enumerate(lines) if any(span.style == self.NEWEST for span in line.spans)]
        if fresh and not any(self.top <= number < self.top + room for number in fresh):
            self.top = fresh[0] - room // 2
        self.top = max(min(self.top, len(lines) - room), 0)
        status = Text(self._status(), style="dim")
        self.display.update(Group(*lines[self.top : self.top + room], status), refresh=True)


# ---------------------------------------------------------------------------------------------------------
# radd info
# ---------------------------------------------------------------------------------------------------------


def info(argv: Sequence[str]) -> int:
    parser = _parser("radd info", "What a folder or repository of a RADD model holds; its weights are not read.", "")
    parser.add_argument("model", metavar="MODEL", help="folder or repository of a RADD model, ours or the authors'")
    parser.add_argument("--json", action="store_true", help="one object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    args = parser.parse_args(argv)
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
# radd convert, serve, demo, train, eval, quality, profile
# ---------------------------------------------------------------------------------------------------------


def convert(argv: Sequence[str]) -> int:
    from radd_hf.hub.convert import main as convert_main

    rest = [argument for argument in argv if argument != "--debug"]
    return _status_of(lambda: convert_main(rest), debug="--debug" in argv)


def serve(argv: Sequence[str]) -> int:
    from radd_hf.endings import status_of  # which knows the exception of a server that was stopped

    def run() -> None:
        try:
            from radd_hf.serving.server import main as server_main
        except ModuleNotFoundError as error:
            if error.name not in ("uvicorn", "starlette", "prometheus_client"):
                raise
            raise ValueError("the server needs its packages: pip install 'radd_hf[serve]'") from error
        server_main(argv)

    return status_of(run, "radd", debug="--debug" in argv)


def demo(argv: Sequence[str]) -> int:
    """The page of `web.py`; in a checkout of the repository it begins with the checkpoint that lies there."""
    checkpoint = PACKAGE.parent / "checkpoints" / "radd-austen"

    def run() -> None:
        try:
            from radd_hf.app.web import main as web_main
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ValueError("the page needs gradio: pip install 'radd_hf[demo]'") from error
        if not checkpoint.is_dir() and not {"--model", "-h", "--help"} & set(argv):
            raise UsageError("name a folder or repository of a RADD model: radd demo --model NAME")
        web_main(list(argv), model=str(checkpoint))

    return _status_of(run, debug=False)


def train(argv: Sequence[str]) -> int:
    from radd_hf.training.train import main as train_main

    return _script("train", train_main, argv)


def evaluate(argv: Sequence[str]) -> int:
    from radd_hf.evaluation.perplexity import main as perplexity_main

    return _script("eval", perplexity_main, argv)


def quality(argv: Sequence[str]) -> int:
    from radd_hf.evaluation.samples import main as samples_main

    return _script("quality", samples_main, argv)


def profile(argv: Sequence[str]) -> int:
    from radd_hf.evaluation.profile import main as profile_main

    named = ["--model"] if argv and not argv[0].startswith("-") else []  # MODEL stands first, as in other commands
    return _script("profile", profile_main, [*named, *argv])


def _script(name: str, script_main: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    """Runs one of the scripts, alone or as one of the processes of a launcher."""
    from radd_hf.processes import status_of_script

    return status_of_script(script_main, list(argv), f"radd {name}")


COMMANDS = {
    "generate": generate,
    "info": info,
    "train": train,
    "eval": evaluate,
    "quality": quality,
    "profile": profile,
    "convert": convert,
    "serve": serve,
    "demo": demo,
}

if __name__ == "__main__":
    sys.exit(main())
