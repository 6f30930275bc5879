# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Lists the settings of `generate`. Each stands here once, with its default, the values it takes and a line of help.

`RaddGenerationConfig` checks values by this table. The command line, the web page, the lm-evaluation-harness and
`eval_generation.py` take names, choices and help from it. A second table lists the arguments of other libraries'
`generate`: their name here, or what to use instead. The file only imports the standard library, so
`radd generate --help` need not wait for torch.

An event is one evaluation of the network and the tokens that it reveals. A nat is the unit of natural logarithms.
"""

import difflib
import math
import sys
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, cast, get_args

GridMethod = Literal["tweedie", "euler"]
Method = Literal["tweedie", "euler", "first_hitting", "ordered"]
FixedOrder = Literal["forward", "backward", "random"]
AdaptiveOrder = Literal["confidence", "margin", "entropy"]
Order = FixedOrder | AdaptiveOrder
GroupSchedule = Literal["profile"]

GRID_METHODS = get_args(GridMethod)  # diffusion on a grid of times
METHODS = get_args(Method)
FIXED_ORDERS = get_args(FixedOrder)  # known before the first evaluation
ADAPTIVE_ORDERS = get_args(AdaptiveOrder)  # chosen from the network's distributions, see `policy_radd.py`
ORDERS = FIXED_ORDERS + ADAPTIVE_ORDERS
GROUP_SCHEDULES = get_args(GroupSchedule)
# The settings with which an adaptive order decides how many positions an event reveals, each with its default order.
BOUNDS = {"entropy_bound": "entropy", "confidence_threshold": "confidence"}
# The settings that say how many tokens a text has.
LENGTHS = "length", "max_new_tokens"


class Setting(NamedTuple):
    """Describes one setting of `generate`.

    kind: the type of the value.
    default: the value if none is given.
    accepts: tells whether a value is valid.
    values: the valid values, in words.
    help: what the setting does.
    choices: all values, if they are names.
    """

    kind: type
    default: Any
    accepts: Callable[[Any], bool]
    values: str
    help: str
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError unless the value is valid or None; None means that the setting is not set."""
        if value is not None and not self.accepts(value):
            raise ValueError(f"{name}={shortened(value)} must be {self.values}.")


def plain(value: Any) -> Any:
    """Turns numbers and arrays of NumPy and torch into Python's numbers and lists, also within lists."""
    if hasattr(value, "tolist"):  # a tensor, an array, or a NumPy number
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


# Most steps of a grid: their probabilities take memory. A grid this fine is as good as continuous time for any text.
MOST_STEPS = 10**6
# Most tokens of one call of `generate`, all rows together: the plan of each token takes hundreds of bytes.
MOST_TOKENS = 2**24
# Most sequences that an evaluation computes for each row. Far fewer drafts than this are accepted.
MOST_SPECULATION = 64
LARGEST_INTEGER, LARGEST_NUMBER = 2**63 - 1, sys.float_info.max  # the largest of torch


def is_integer(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Tells whether a value is an integer in least .. most. NumPy's integers count, too."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def is_number(value: Any) -> bool:
    """Tells whether a value is a finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(cast(float, value)) <= LARGEST_NUMBER


def is_adaptive(order: Any) -> bool:
    """Tells whether an order is chosen from the network's distributions, by a name or by a user's function."""
    return callable(order) or (isinstance(order, str) and order in ADAPTIVE_ORDERS)


def integer_setting(
    default: int | None, least: int, help: str, meaning: str = "", most: int = LARGEST_INTEGER
) -> Setting:
    bound = "" if most == LARGEST_INTEGER else f" and at most {most}"
    return Setting(
        int,
        default,
        lambda value: is_integer(value, least, most),
        f"an integer of at least {least}{bound}{meaning}",
        help,
    )


def boolean_setting(default: bool, help: str) -> Setting:
    return Setting(bool, default, lambda v: isinstance(v, bool), "True or False", help)


# The settings that decide which text is generated.
TEXT_SETTINGS: dict[str, Setting] = {
    "length": integer_setting(
        None,
        1,
        "tokens of the whole text, given ones included (default: the length that the model was trained on)",
        most=MOST_TOKENS,
    ),
    "method": Setting(
        str,
        "tweedie",
        lambda v: v in METHODS,
        f"one of {METHODS}",
        "how positions are chosen: diffusion on a time grid ('tweedie', 'euler') or in continuous time "
        "('first_hitting'), or one position after the other in an order ('ordered')",
        METHODS,
    ),
    "steps": integer_setting(
        None,
        1,
        "for 'tweedie' and 'euler', the number of time intervals (default: one per token); for 'ordered', the number "
        "of network evaluations; fewer are faster and less exact",
        "; the limit of many steps is method='first_hitting'",
        MOST_STEPS,
    ),
    "order": Setting(
        str,
        "forward",
        lambda v: v in ORDERS if isinstance(v, str) else True,
        f"one of {ORDERS}, a permutation of the positions, or a function",
        "order in which positions are filled; 'confidence', 'margin' and 'entropy' fill first where the model is most "
        "certain",
        ORDERS,
    ),
    "entropy_bound": Setting(
        float,
        None,
        lambda v: is_number(v) and v >= 0,
        "a number of nats, at least 0",
        "fill several positions per network evaluation, as long as the sum of their entropies without the largest is "
        "at most this many nats (0 is safest); order is then 'entropy' unless given",
    ),
    "confidence_threshold": Setting(
        float,
        None,
        lambda v: is_number(v) and 0 < v <= 1,
        "a probability in (0, 1]",
        "fill all positions at once whose likeliest token has at least this probability; order is then 'confidence' "
        "unless given",
    ),
    "schedule": Setting(
        str,
        None,
        lambda v: isinstance(v, str) and v in GROUP_SCHEDULES,
        f"one of {GROUP_SCHEDULES}",
        "instead of method and order: fill in random order in `steps` network evaluations, few positions at first and "
        "more later, as the model's information profile advises (`radd profile`)",
        GROUP_SCHEDULES,
    ),
    "speculate": integer_setting(
        1,
        1,
        "above 1: draft this many tokens and check them in one network evaluation; exact, faster on a GPU, for "
        "'first_hitting' and fixed orders",
        most=MOST_SPECULATION,
    ),
    "exact": boolean_setting(
        False,
        "ignore the settings saved with the model and draw every token from the network's full distribution "
        "(temperature 1, all tokens); method is then 'first_hitting' unless given",
    ),
    "temperature": Setting(
        float,
        1.0,
        lambda v: is_number(v) and (v == 0 or 1e-6 <= v <= 1e30),
        "a number >= 1e-6 and <= 1e30, or 0 to take the likeliest token",
        "below 1 prefers likely tokens, above 1 evens them out; 0 always takes the likeliest",
    ),
    "top_k": integer_setting(
        0, 0, "draw each token from this many likeliest ones only; 0: from all", " (0 keeps every token)"
    ),
    "top_p": Setting(
        float,
        1.0,
        lambda v: is_number(v) and 0 < v <= 1,
        "in (0, 1] (1 keeps every token)",
        "draw each token from the likeliest ones that together have this probability; 1: from all",
    ),
    "refresh_interval": integer_setting(
        1, 1, "above 1: only every N-th network evaluation computes all positions; faster, approximate"
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
        "seconds after which all remaining tokens are drawn at once",
    ),
}

# All settings. The others say how a text is computed, how many texts there are, and what is returned.
SETTINGS: dict[str, Setting] = TEXT_SETTINGS | {
    "max_new_tokens": integer_setting(
        None, 1, "instead of length: tokens to generate, in addition to the given ones", most=MOST_TOKENS
    ),
    "information_profile": Setting(
        list,
        None,
        lambda v: isinstance(v, (list, tuple)) and len(v) > 0,
        "a list of nats, one for each number of visible tokens",
        "for schedule='profile': mean nats of the next token in random order, for 0, 1, 2, ... visible tokens",
    ),
    "use_cache": boolean_setting(True, "False also evaluates the network at steps that fill nothing"),
    "cuda_graphs": boolean_setting(True, "on a GPU, record the work of a network evaluation once and replay it"),
    "num_return_sequences": integer_setting(1, 1, "texts for each masked sequence", most=2**20),
    "output_history": boolean_setting(
        False, "also return the sequence after every network evaluation that filled tokens"
    ),
    "return_dict_in_generate": boolean_setting(False, "return a RaddGenerateOutput"),
}

# The settings that change the distribution that tokens are drawn from. `exact` excludes them.
INEXACT = "temperature", "top_k", "top_p", "refresh_interval", "max_time"
# The settings that `exact` sets aside if a checkpoint has saved them.
SET_ASIDE = tuple(name for name in SETTINGS if name not in (*LENGTHS, "exact", "information_profile", "cuda_graphs"))


# ---------------------------------------------------------------------------------------------------------
# Arguments of other libraries
# ---------------------------------------------------------------------------------------------------------

# Names of other libraries for arguments of `generate` that mean exactly the same.
SYNONYMS = {"inputs": "input_ids", "max_length": "length", "num_inference_steps": "steps"}


class Foreign(NamedTuple):
    """Describes arguments of transformers' `generate` that RADD's `generate` does not have.

    names: the arguments.
    instead: what to do here.
    harmless: values that ask for nothing. None is always one of them.
    """

    names: str
    instead: str
    harmless: tuple = ()

    def asks_for_nothing(self, value: Any) -> bool:
        return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.harmless)


_PROCESSOR = (
    "pass logits_processor=[...] with one of transformers.generation, such as MinPLogitsWarper(0.1), or with your own; "
    "it sees the whole masked sequence, which has text on both sides"
)
_FOREIGN = (
    Foreign(
        "do_sample",
        "pass temperature=0 to take the likeliest token at each draw, and method='ordered' for the same text at every "
        "call",
        (True,),
    ),
    Foreign(
        "num_beams num_beam_groups diversity_penalty length_penalty early_stopping constraints force_words_ids",
        "there is no beam search; draw num_return_sequences samples, and compare their token_logprobs",
        (False, 0, 1),
    ),
    Foreign(
        "min_length min_new_tokens exponential_decay_length_penalty",
        "a text has exactly as many tokens as length or max_new_tokens says, unless stop_on_eos ends it",
        (0,),
    ),
    Foreign(
        "stopping_criteria stop_strings",
        "a text is not generated from left to right; stop_on_eos ends it at an end-of-text token, max_time after some "
        "seconds",
        ([],),
    ),
    Foreign("bos_token_id decoder_start_token_id forced_bos_token_id", "let the prefix begin with this token"),
    Foreign("forced_eos_token_id", "let the suffix end with this token"),
    Foreign("top_h typical_p repetition_penalty encoder_repetition_penalty guidance_scale", _PROCESSOR, (1,)),
    Foreign("min_p epsilon_cutoff eta_cutoff no_repeat_ngram_size encoder_no_repeat_ngram_size", _PROCESSOR, (0,)),
    Foreign(
        "renormalize_logits remove_invalid_values suppress_tokens begin_suppress_tokens bad_words_ids sequence_bias "
        "watermarking_config prefix_allowed_tokens_fn",
        _PROCESSOR,
        (False,),
    ),
    Foreign(
        "negative_prompt_ids negative_prompt_attention_mask encoder_outputs decoder_input_ids",
        "generation depends only on the given text: pass prefix and suffix, or input_ids",
    ),
    Foreign(
        "output_scores output_logits",
        "return_dict_in_generate=True gives token_logprobs; model(input_ids).logits are those of one sequence",
        (False,),
    ),
    Foreign(
        "output_attentions output_hidden_states",
        "call the model itself with this argument on a masked sequence",
        (False,),
    ),
    Foreign(
        "cache_implementation cache_config max_cache_len past_key_values prefill_chunk_size low_memory "
        "continuous_batching_config",
        "every new token changes the keys and values of all others, so none can be kept exactly; refresh_interval "
        "keeps some, which is faster and approximate",
        (False,),
    ),
    Foreign(
        "assistant_model is_assistant num_assistant_tokens num_assistant_tokens_schedule "
        "assistant_confidence_threshold assistant_early_exit assistant_lookbehind target_lookbehind "
        "assistant_ensemble_weight speculation_type prompt_lookup_num_tokens max_matching_ngram_size use_mtp "
        "penalty_alpha dola_layers token_healing custom_generate",
        "it is for generation from left to right; method, steps and order say how RADD generates",
        (False, 0),
    ),
    Foreign("compile_config disable_compile", "cuda_graphs says whether evaluations are captured on a GPU", (False,)),
    Foreign("synced_gpus", "each process generates its own texts", (False,)),
    Foreign("token_type_ids", "RADD has no segments; pass return_token_type_ids=False to the tokenizer", (0,)),
    Foreign("position_ids", "positions are counted from the first token that attention_mask does not hide"),
    Foreign("inputs_embeds", "masks are found by their id; pass input_ids, or prefix and suffix"),
)
FOREIGN: dict[str, Foreign] = {name: foreign for foreign in _FOREIGN for name in foreign.names.split()}


def shortened(value: Any) -> str:
    """Shows a value in a message. Of a long one, such as a tensor or a model, it shows the beginning."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write out the largest integers
        return f"an integer of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:76]} ..."


def own_arguments(given: Mapping[str, Any], known: Collection[str], what: str, advice: bool = True) -> dict[str, Any]:
    """Returns the given arguments under the names that they have here. Arguments that are None are left out.

    Args:
        given: values by name; a name may be that of another library.
        known: the names to return.
        what: what messages call the known names: "an argument of ...".
        advice: whether messages say what to use instead of an argument of another library. The advice is for programs;
            a client over HTTP cannot follow it.

    Raises:
        ValueError: for an argument that is given under two names, and for an unknown one. The message says what to use
            instead.
    """
    own = {}
    for name, value in given.items():
        ours = SYNONYMS.get(name, name)
        if value is None:
            continue
        if ours in known:
            if ours != name and given.get(ours) is not None:
                raise ValueError(
                    f"{name}={shortened(value)} is another name of {ours}={shortened(given[ours])}: pass one of them."
                )
            if ours != name and ours in SETTINGS:
                SETTINGS[ours].check(name, plain(value))
            own[ours] = value
        elif ours in FOREIGN and FOREIGN[ours].asks_for_nothing(plain(value)):
            continue
        elif ours in FOREIGN and advice:
            raise ValueError(f"{name}={shortened(value)} is not {what}: {FOREIGN[ours].instead}.")
        else:
            names = [*known, *(other for other, ours in SYNONYMS.items() if ours in known)]
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"those are {', '.join(sorted(known))}."
            shown = name if len(name) <= 40 else f"{name[:36]} ..."
            raise ValueError(f"{shown}={shortened(value)} is not {what}; {hint}")
    return own


__all__ = [
    "ADAPTIVE_ORDERS",
    "BOUNDS",
    "FIXED_ORDERS",
    "FOREIGN",
    "GRID_METHODS",
    "GROUP_SCHEDULES",
    "INEXACT",
    "METHODS",
    "ORDERS",
    "SETTINGS",
    "SET_ASIDE",
    "SYNONYMS",
    "TEXT_SETTINGS",
    "AdaptiveOrder",
    "FixedOrder",
    "GridMethod",
    "GroupSchedule",
    "Method",
    "Order",
    "Setting",
    "is_adaptive",
    "own_arguments",
    "plain",
]
