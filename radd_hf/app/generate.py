# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs `radd generate`: fills one text, and can show how it fills, or fills the texts of a file."""

import argparse
import json
import logging
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from ..canvas_radd import encode_request
from ..endings import UsageError, note, visible
from ..generation_radd import RaddGenerationConfig
from ..jobs.filling import RowFiller, columns_to_fill
from ..jobs.job import run_on_file
from ..randomness_radd import sample_generators, text_seed
from ..settings_radd import GRID_METHODS, LENGTHS, TEXT_SETTINGS
from .files import check_file_arguments, check_model, load_for_file, load_model, open_file, read_input, usage
from .visualize import (
    RETURN,
    Denoising,
    check_picture,
    plot_reveal_order,
    save_picture,
    save_plot,
    token_texts,
)

# Arguments refused for a file of texts.
FOR_ONE_TEXT = "text", "prefix", "suffix", "json", "live", "pause", "picture", "order_map", "batch_size"


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Runs the command with the arguments that `parser` parsed."""
    check_model(args)
    if args.input is None and args.output is None:
        _generate_texts(args)
    else:
        _generate_file(args, parser)


def _read_text(args: argparse.Namespace, stdin: TextIO) -> None:
    """Reads standard input into the argument that takes it, without its last line break.

    Raises:
        UsageError: for arguments that contradict each other, or if there is no text.
    """
    ends = [name for name in ("prefix", "suffix") if getattr(args, name) is not None]
    if args.text is not None and (ends or args.length is not None):
        raise UsageError(
            f"TEXT {args.text!r} is the whole text: leave out --{ends[0] if ends else 'length'}, or pass --prefix and "
            "--suffix instead of TEXT."
        )
    if args.prefix == "-" and args.suffix == "-":
        raise UsageError("--prefix and --suffix cannot both be read from standard input.")
    # --length alone generates a whole text. Without it, the text comes from an argument or from a pipe.
    piped = args.text is None and not ends and args.length is None and not stdin.isatty()
    for name in ("text", "prefix", "suffix"):
        if getattr(args, name) == "-" or (name == "text" and piped):
            with usage():
                setattr(args, name, read_input(stdin))
    if piped and not args.text:
        raise UsageError("standard input is empty: pass a text with blanks, --prefix, --suffix or --length.")


def _check(args: argparse.Namespace) -> dict[str, Any]:
    """Checks the command line before a model is loaded, and returns the given settings of `generate`.

    Raises:
        UsageError: for a value out of range, and for settings that contradict each other.
    """
    for name, least, most in (("number", 1, 2**31), ("batch_size", 1, 2**12), ("pause", 0, 3600)):
        value = getattr(args, name)
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"a number, and at most {most}"
            raise UsageError(f"--{name.replace('_', '-')} {value} must be {bound}.")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed {args.seed} must be an integer in 0 .. 2^63 - 1.")
    if args.pause and not args.live:
        raise UsageError(f"--pause {args.pause} slows down what --live shows: pass --live, too.")
    settings = {name: getattr(args, name) for name in TEXT_SETTINGS if getattr(args, name) is not None}
    try:
        RaddGenerationConfig(**settings)
        for picture in args.picture:
            check_picture(picture)
        if args.order_map is not None:
            check_picture(args.order_map, (".png",))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return settings


def _generate_texts(args: argparse.Namespace) -> None:
    _read_text(args, sys.stdin)
    settings = _check(args)
    with _silenced(*["radd_hf.hub.runs"] * args.quiet):
        model, tokenizer = load_model(args)
    # The command prints its own remark about long texts.
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
            output, seconds = _generate_batch(args, model, tokenizer, canvas, samples, settings)
            for row, sample in enumerate(samples):
                _report(args, output, row, sample, given, tokenizer, seconds)
            if args.order_map is not None or not outputs:  # a picture needs only the first; all may fill the memory
                outputs.append(output)
    _draw_pictures(args, outputs, model, tokenizer, settings)


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Lets loggers print only errors."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _generate_batch(
    args: argparse.Namespace, model: Any, tokenizer: Any, canvas: Any, samples: range, settings: dict[str, Any]
) -> tuple[Any, float]:
    """Generates these samples from the masked sequence `canvas` (L,). Returns the output and the seconds per sample.

    Raises:
        UsageError: for settings that contradict each other.
    """
    generators = sample_generators(text_seed(args.seed), samples)
    untouched, started = generators[0].get_state(), time.perf_counter()
    with LiveCanvas(canvas.tolist(), tokenizer, model.config.mask_token_id, args.pause, args.live) as live:
        try:
            output = model.generate(
                canvas[None],
                num_return_sequences=len(samples),
                generator=generators,
                streamer=live if args.live else None,
                progress=sys.stderr.isatty() and not (args.live or args.quiet),
                return_dict_in_generate=True,
                **settings,
            )
        except ValueError as error:
            if not torch.equal(generators[0].get_state(), untouched):
                raise
            raise UsageError(str(error)) from error  # `generate` checks its arguments before it draws
    return output, (time.perf_counter() - started - live.paused) / len(samples)


def _make_canvas(args: argparse.Namespace, length: int | None, model: Any, tokenizer: Any) -> Any:
    """Returns the encoded text with its blanks. Between a prefix and a suffix there is one blank.

    Raises:
        UsageError: for malformed blanks, no blank, or no room for one.
    """
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
    """Prints a row of a batch, the text number `sample` of all. Remarks go to standard error."""
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
    else:  # a model can generate control characters, which a terminal would obey
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
    title, steps = picture_facts(args.model, settings, model, outputs[0].sequences.shape[1])
    for picture in args.picture:
        save_picture(Denoising.of(outputs[0], tokenizer, n_steps=steps), picture, title)
    if args.order_map is not None:
        revealed = torch.cat([output.reveal_step for output in outputs])  # (R, L)
        save_plot(plot_reveal_order(revealed), args.order_map)


def picture_facts(name: str, settings: dict[str, Any], model: Any, length: int) -> tuple[str, int | None]:
    """Returns the title of a picture, and the steps of its time grid; None for a method without a grid.

    Args:
        name: name of the model. settings: arguments of `generate`. length: tokens of the text.
    """
    resolved = RaddGenerationConfig.resolve(settings, model.generation_config)
    title = f"{Path(name).resolve().name}, {resolved.method}"
    if resolved.method not in GRID_METHODS:
        return title, None
    steps = resolved.steps or length
    return f"{title}, {steps} steps", steps


class LiveCanvas:
    """Shows a masked sequence (the canvas) on standard error as it fills, with the newest tokens marked.

    It is a streamer of `generate`. On a terminal it draws in place; elsewhere it prints a line at every tenth of the
    text. Drawing takes no more time than generating: fast network evaluations are shown together. With `pause`, each is
    shown by itself.
    """

    MASK, MASK_ASCII = " \u2591\u2591\u2591", " ___"
    FILLED, NEWEST = "cyan", "bold black on bright_yellow"

    def __init__(self, ids: list[int], tokenizer: Any, mask_token_id: int, pause: float, shown: bool):
        self.ids, self.tokenizer, self.mask_token_id, self.pause = ids, tokenizer, mask_token_id, pause
        self.given = [token != mask_token_id for token in ids]
        self.shown, self.events, self.top = shown, 0, 0
        self.drawn = ids  # the canvas on the screen
        self.paused = 0.0  # seconds spent on drawing and pauses
        self.next_draw = 0.0

    def __enter__(self) -> "LiveCanvas":
        self.started = time.perf_counter()
        self.display: Any = None
        if self.shown:
            from rich.console import Console
            from rich.live import Live

            self.console = Console(stderr=True, highlight=False)
            if self.console.is_terminal and not self.console.is_dumb_terminal:
                # If the text goes to the same terminal, it replaces the canvas at the end.
                self.display = Live(console=self.console, auto_refresh=False, transient=sys.stdout.isatty())
                self.display.start()
                self._show()
        return self

    def __exit__(self, *failure) -> None:
        if self.display is not None:
            self.display.stop()

    def put_draft(self, canvas: Any) -> None:
        """Shows the newest canvas (1, L)."""
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
        """Returns the number of tokens that are filled so far, and of all tokens to fill."""
        return sum(token != self.mask_token_id for token in self.ids) - sum(self.given), len(self.ids) - sum(self.given)

    def _status(self) -> str:
        done, total = self._done()
        speed = done / max(time.perf_counter() - self.started - self.paused, 1e-9)
        return f"NFE {self.events} \u00b7 {done} of {total} tokens \u00b7 {speed:,.0f} tokens/s"

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

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
                text.append(piece.replace("\n", f"{RETURN}\n"), style=self.NEWEST if newest else self.FILLED)
        lines, room = text.wrap(self.console, self.console.width), max(self.console.height - 2, 1)
        fresh = [number for number, line in enumerate(lines) if any(span.style == self.NEWEST for span in line.spans)]
        if fresh and not any(self.top <= number < self.top + room for number in fresh):
            self.top = fresh[0] - room // 2
        self.top = max(min(self.top, len(lines) - room), 0)
        status = Text(self._status(), style="dim")
        self.display.update(Group(*lines[self.top : self.top + room], status), refresh=True)


# ---------------------------------------------------------------------------------------------------------
# A file of texts
# ---------------------------------------------------------------------------------------------------------


def _generate_file(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    check_file_arguments(args, parser, FOR_ONE_TEXT)
    settings = _check(args)
    accelerator, source = open_file(args)
    with usage():
        columns = columns_to_fill(source.columns, args.text_column)
    model, tokenizer, identity = load_for_file(args, accelerator)

    def make_work(seed: int) -> RowFiller:
        asked = {"seed": seed, "number": args.number, "batch_tokens": args.batch_tokens, "columns": columns}
        with usage():
            return RowFiller(model, tokenizer, **asked, **settings)

    run_on_file(accelerator, source, args.output, make_work, identity, args.seed, unit="text", quiet=args.quiet)
