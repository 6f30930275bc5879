# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Makes the script with which a shell completes the command `radd`. shtab writes it."""

import argparse
from collections.abc import Callable, Mapping


def completion_script(shell: str, commands: Mapping[str, Callable[[], argparse.ArgumentParser]]) -> str:
    """Returns a script that completes commands, options, choices and files.

    Args:
        commands: a function for each command that makes its parser. A command whose library is not installed gets no
            options.

    Raises:
        ValueError: if shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ValueError("completion needs shtab: pip install 'radd_hf[completion]'") from error
    whole = argparse.ArgumentParser(prog="radd")
    whole.add_argument("--version", action="store_true", help="print the version")
    subparsers = whole.add_subparsers()
    for name, make in commands.items():
        try:
            parser = make()
        except ModuleNotFoundError:
            parser = argparse.ArgumentParser(description=name)
        for action in parser._actions:
            prepare(action, shtab.FILE)
        about = parser.description
        subparsers.add_parser(name, parents=[parser], add_help=False, help=about, description=about)
    return shtab.complete(whole, shell=shell)


def prepare(action: argparse.Action, files: object) -> None:
    """Gives an argument its completions. Of an option's spellings it keeps the one in the documentation."""
    spelled = {option.replace("_", "-"): option for option in reversed(action.option_strings)}
    action.option_strings = list(reversed(spelled.values()))
    action.choices = action.choices or getattr(action, "values", None)
    takes_text = action.nargs != 0 and action.type in (None, str) and not action.choices
    if takes_text:
        action.complete = files  # type: ignore[attr-defined]
