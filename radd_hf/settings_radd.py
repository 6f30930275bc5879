# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Lists the settings of `generate`, each once: its default, the values it takes and a line of help.

`RaddGenerationConfig` checks values by this table. The command line, the web page, the lm-evaluation-harness and
`eval_generation.py` take names, choices and help from it. The file imports only the standard library, so that
`radd generate --help` need not wait for torch.
"""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

GridMethod = Literal["tweedie", "euler"]
Method = Literal["tweedie", "euler", "first_hitting", "ordered"]
Order = Literal["forward", "backward", "random"]

GRID_METHODS = get_args(GridMethod)  # diffusion on a grid of times
METHODS = get_args(Method)
ORDERS = get_args(Order)


class Setting(NamedTuple):
    """Describes one setting of `generate`.

    kind: type of the value. default: the value of a setting that nobody sets. accepts: tells whether a value is valid.
    values: the valid values, in words. help: what the setting does. choices: all values, where they are names.
    """

    kind: type
    default: Any
    accepts: Callable[[Any], bool]
    values: str
    help: str
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError unless the value is valid, or None, which leaves the setting unset."""
        if value is not None and not self.accepts(value):
            raise ValueError(f"{name}={value!r} must be {self.values}.")


def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # NumPy's are integers, too


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def integer_setting(default: int | None, least: int, help: str, meaning: str = "") -> Setting:
    return Setting(
        int, default, lambda v: is_integer(v) and v >= least, f"an integer of at least {least}{meaning}", help
    )


def boolean_setting(default: bool, help: str) -> Setting:
    return Setting(bool, default, lambda v: isinstance(v, bool), "True or False", help)


# Settings that decide which text is written. An event is an evaluation of the network that reveals tokens.
TEXT_SETTINGS: dict[str, Setting] = {
    "length": integer_setting(None, 1, "tokens of the whole text; default: the length that the model was trained at"),
    "method": Setting(
        str,
        "tweedie",
        lambda v: v in METHODS,
        f"one of {METHODS}",
        "how positions are chosen: diffusion on a grid, in continuous time, or one position after the other",
        METHODS,
    ),
    "steps": integer_setting(
        None, 1, "time intervals of 'tweedie' and 'euler', default: one a token; of 'ordered', the most events"
    ),
    "order": Setting(
        str,
        "forward",
        lambda v: v in ORDERS if isinstance(v, str) else True,
        f"one of {ORDERS}, or a permutation of the positions",
        "the order of 'ordered'",
        ORDERS,
    ),
    "temperature": Setting(
        float,
        1.0,
        lambda v: is_number(v) and (v == 0 or 1e-6 <= v < math.inf),
        "a number >= 1e-6, or 0 to take the likeliest token",
        "divides the logits; 0 takes the likeliest token",
    ),
    "top_k": integer_setting(
        0, 0, "draw from this many of the likeliest tokens; 0: from all", " (0 keeps every token)"
    ),
    "top_p": Setting(
        float,
        1.0,
        lambda v: is_number(v) and 0 < v <= 1,
        "in (0, 1] (1 keeps every token)",
        "draw from the likeliest tokens that have this probability together; 1: from all",
    ),
    "refresh_interval": integer_setting(
        1, 1, "above 1: faster and no longer exact; every N-th evaluation is a whole one"
    ),
    "refresh_window": integer_setting(
        4, 0, "with a refresh interval: neighbours recomputed on each side of a new token"
    ),
    "stop_on_eos": boolean_setting(False, "end a text at its first end-of-text token"),
    "max_time": Setting(
        float,
        None,
        lambda v: is_number(v) and v > 0,
        "a positive number of seconds",
        "seconds after which all that is still masked is drawn at once",
    ),
}

# All settings: also those that decide how the text is computed, how often, and what is returned.
SETTINGS: dict[str, Setting] = TEXT_SETTINGS | {
    "use_cache": boolean_setting(True, "False evaluates the network also at steps that reveal nothing"),
    "cuda_graphs": boolean_setting(True, "on a card, record each shape of event once and replay it"),
    "num_return_sequences": integer_setting(1, 1, "texts for each masked sequence"),
    "output_history": boolean_setting(False, "return the sequence after every event, too"),
    "return_dict_in_generate": boolean_setting(False, "return a RaddGenerateOutput"),
}

__all__ = ["GRID_METHODS", "METHODS", "ORDERS", "SETTINGS", "TEXT_SETTINGS", "GridMethod", "Method", "Order", "Setting"]
