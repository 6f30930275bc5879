# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Parses command lines. An unknown name ends the program with one line that suggests a known name.

It imports only the standard library, because the command `radd` runs this file before torch is loaded.
"""

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean ...?" with the known name that `name` abbreviates or resembles, else an empty text."""
    names = {each.lower(): each for each in known if each != "--help"}
    begun = sorted((each for each in names if each.startswith(name.lower())), key=len) if len(name) > 3 else []
    near = begun or get_close_matches(name.lower(), list(names), n=1)
    return f"did you mean {names[near[0]]}?" if near else ""


class OneLineParser(argparse.ArgumentParser):
    """Ends a wrong command line with one line and status 2, and treats `--batch_size` and `--batch-size` as the same.

    argparse prints the usage first, with dozens of options. If MODEL is misspelled as `--modle`, it reports that MODEL
    is missing. It takes the value of a misspelled option for a positional argument. So this class looks up the options
    before argparse does.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **({"allow_abbrev": False} | settings))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_known_args(args if args is None else self._spelled(args), namespace)

    def error(self, message: str) -> NoReturn:
        more = "" if message.endswith("?") else " (see --help)"
        self.exit(2, f"{self.prog}: error: {message}{more}\n")

    def _spelled(self, args: Sequence[str]) -> list[str]:
        """Spells each long option as the parser does. An unknown option ends the program.

        As in argparse, a word with a space before any "=" is text, and so is every word after "--".
        """
        spelled, known = list(args), self._option_string_actions
        by_hyphens = {option.replace("_", "-"): option for option in known}
        for place, word in enumerate(args):
            if word == "--":
                break
            option, equals, value = word.partition("=")
            if not option.startswith("--") or option in known or " " in option:
                continue
            same = by_hyphens.get(option.replace("_", "-"))
            if same is None:
                self.error(f"there is no option {option}; {did_you_mean(option, known)}".removesuffix("; "))
            spelled[place] = f"{same}{equals}{value}"
        return spelled

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggests the nearest choice. Without this private method, argparse lists all choices."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            right = did_you_mean(str(value), choices) or f"it must be one of {', '.join(choices)}."
            raise argparse.ArgumentError(action, f"invalid choice: {str(value)!r}; {right}")
