# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Random calls of `generate` and of a forward obey their laws, and hostile values are refused by name.

A case is a function of its number, so that a failure can be repeated: its message has the number and the arguments.
`RADD_FUZZ_CASE=17 pytest tests/test_fuzz.py -k random_calls` runs that case alone. `RADD_FUZZ` multiplies the number of
cases, which the tests print with `-s`.

Shapes: B rows given, R rows written, L length, V vocabulary with the mask.
"""

import copy
import math
import os
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging

from radd_hf import RaddForMaskedLM, RaddGenerateOutput
from radd_hf.settings_radd import ADAPTIVE_ORDERS, is_adaptive
from support.toys import random_model, seeded

CASES = 200 * int(os.environ.get("RADD_FUZZ", "1"))  # of each test
NAN, INFINITY = math.nan, math.inf


@pytest.fixture(autouse=True)
def quiet():
    """Silences transformers, which warns of what tiny models are not made for."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


def cases(kind: str):
    """Yields the number of each case and what it draws from."""
    alone = os.environ.get("RADD_FUZZ_CASE")
    numbers = range(CASES) if alone is None else [int(alone)]
    for number in numbers:
        yield number, random.Random(f"{kind} {number}")
    print(f"\nfuzz: {len(numbers)} cases of {kind}")


def draw_model(draw: random.Random) -> RaddForMaskedLM:
    """Makes a tiny model of any kind; some of its modules are in training mode."""
    heads, width = draw.choice([1, 2, 4]), draw.choice([4, 8])
    vocab_size = draw.randint(3, 40)
    settings = {
        "vocab_size": vocab_size,
        "mask_token_id": draw.choice([0, vocab_size - 1, draw.randrange(vocab_size)]),
        "hidden_size": heads * width,
        "num_attention_heads": heads,
        "num_hidden_layers": draw.randint(1, 3),
        "max_position_embeddings": draw.randint(4, 14),
        "noise_type": draw.choice(["loglinear", "geometric"]),
        "hidden_dropout": draw.choice([0.0, 0.5]),
        "rope_parameters": draw.choice(
            [
                {"rope_type": "default", "rope_theta": draw.choice([100.0, 1e4])},
                {"rope_type": "linear", "factor": 2.0},
                {"rope_type": "dynamic", "factor": 2.0},
                {"rope_type": "yarn", "factor": 4.0},
                {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                {
                    "rope_type": "longrope",
                    "short_factor": [1.0 + pair / 10 for pair in range(width // 2)],
                    "long_factor": [2.0 + pair for pair in range(width // 2)],
                },
            ]
        ),
    }
    model = random_model(draw.randrange(2**31), **settings).to(draw.choice([torch.float32] * 3 + [torch.bfloat16]))
    model.set_attn_implementation(draw.choice(["eager", "sdpa"]))
    for module in model.modules():
        module.training = draw.random() < 0.5
    return model


def draw_tokens(draw: random.Random, model: RaddForMaskedLM, number: int) -> list[int]:
    tokens = [token for token in range(model.config.vocab_size) if token != model.config.mask_token_id]
    return draw.choices(tokens, k=number)


def tolerance(model: RaddForMaskedLM) -> float:
    return 1e-4 if model.dtype == torch.float32 else 0.3


def state(model: RaddForMaskedLM) -> tuple:
    """Gives what no call may change: modes, weights, and the random numbers that others get next."""
    modes = [module.training for module in model.modules()]
    weights = [(parameter._version, parameter.data_ptr()) for parameter in model.parameters()]
    return modes, weights, torch.get_rng_state().tolist(), random.getstate(), torch.is_grad_enabled()


def unchanged(arguments: dict, before: dict) -> bool:
    return all(
        torch.equal(value, before[name]) if isinstance(value, Tensor) else str(value) == str(before[name])
        for name, value in arguments.items()
        if name in before
    )


# ---------------------------------------------------------------------------------------------------------
# generate
# ---------------------------------------------------------------------------------------------------------


class Watcher:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.drafts, self.final, self.ended = [], None, False

    def put_draft(self, ids: Tensor) -> None:
        self.drafts.append(ids)

    def put(self, ids: Tensor) -> None:
        self.final = ids

    def end(self) -> None:
        self.ended = True


def prefer_even(ids: Tensor, scores: Tensor) -> Tensor:
    scores[:, ::2] += 1
    return scores


def invite_the_mask(ids: Tensor, scores: Tensor) -> Tensor:
    return scores.nan_to_num(neginf=1e4)


def draw_canvas(draw: random.Random, model: RaddForMaskedLM) -> dict:
    """Draws what a text is made of: `input_ids` with padding or without, or prefix, suffix and a length."""
    longest, mask = model.config.max_position_embeddings, model.config.mask_token_id
    length, batch = draw.randint(1, longest + 2), draw.randint(1, 3)
    if draw.random() < 0.5:
        rows = [draw_tokens(draw, model, length) for _ in range(batch)]
        for row in rows:
            for position in draw.sample(range(length), draw.randint(0, length)):
                row[position] = mask
        rows[0][draw.randrange(length)] = mask  # some row must have one
        given = {"input_ids": draw.choice([torch.tensor, np.array, list])(rows)}
        if draw.random() < 0.4:
            seen, ids = torch.ones(batch, length, dtype=torch.long), torch.tensor(rows)
            for row in range(batch):
                padding = draw.randint(0, length)
                where = slice(0, padding) if draw.random() < 0.5 else slice(length - padding, length)
                seen[row, where] = (ids[row, where] == mask).long()  # a mask is never padding
            given["attention_mask"] = draw.choice([seen, seen.bool(), seen.float(), seen.tolist()])
        return given
    before = draw.randint(0, length - 1)
    after = draw.randint(0, length - 1 - before)
    given = {"length": length}
    if draw.random() < 0.3:
        given = {"max_new_tokens": draw.randint(1, 5)}
    if before:
        given["prefix"] = [draw_tokens(draw, model, before) for _ in range(batch)]
    if after:
        given["suffix"] = draw_tokens(draw, model, after)
    return given


def furthest_apart(scores: Tensor, positions: Tensor) -> list[int]:
    """Is a policy: the two masks at the ends."""
    return [0, -1]


def most_certain_half(scores: Tensor, positions: Tensor) -> Tensor:
    """Is a policy: a boolean mask of those whose likeliest token is as probable as the median, or more."""
    top = scores.softmax(dim=1).amax(dim=1)
    return top >= top.median()


def is_chosen_by_the_model(settings: dict) -> bool:
    """Tells whether the order is adaptive."""
    bounded = "entropy_bound" in settings or "confidence_threshold" in settings
    return bounded or is_adaptive(settings.get("order"))


def draw_profile(draw: random.Random) -> list[float]:
    return sorted((draw.uniform(0, 9) for _ in range(draw.randint(1, 40))), reverse=True)


def draw_settings(draw: random.Random, model: RaddForMaskedLM, length: int) -> dict:
    """Draws settings that go together."""
    settings = draw.choice(
        [
            {"method": "tweedie", "steps": draw.choice([None, 1, 3, 30, 10**5])},
            {"method": draw.choice(["tweedie", "euler"]), "steps": draw.randint(1, 20), "use_cache": False},
            {"method": "euler", "steps": draw.randint(1, 20)},
            {"method": "first_hitting"},
            {"method": "ordered", "order": draw.choice(["forward", "backward", "random"])},
            {"method": "ordered", "steps": draw.randint(1, 15)},
            {"schedule": "profile", "steps": draw.randint(1, 15), "information_profile": draw_profile(draw)},
            {"method": "first_hitting", "speculate": draw.randint(2, 9)},
            {"method": "ordered", "order": draw.choice(["forward", "random"]), "speculate": draw.randint(2, 64)},
            {
                "method": "ordered",
                "order": draw.choice([list, tuple, np.array, torch.tensor])(draw.sample(range(length), length)),
            },
            {"method": "ordered", "order": draw.choice(ADAPTIVE_ORDERS), "steps": draw.choice([None, 1, 3, 15])},
            {"method": "ordered", "entropy_bound": draw.choice([0, 0.1, draw.uniform(0, 9), 1e30])},
            {"method": "ordered", "confidence_threshold": draw.choice([1e-9, draw.uniform(0.01, 1), 1])},
            {"method": "ordered", "order": draw.choice([furthest_apart, most_certain_half])},
        ]
    )
    settings |= draw.choice([{}, {"temperature": 0}, {"temperature": draw.choice([1e-6, 0.5, 3, 1e30])}])
    settings |= draw.choice([{}, {"top_k": draw.randint(1, 50)}, {"top_p": draw.uniform(0.01, 1)}])
    if settings.get("use_cache", True) and not is_chosen_by_the_model(settings) and "speculate" not in settings:
        settings |= draw.choice(
            [{}, {}, {"refresh_interval": draw.randint(2, 9), "refresh_window": draw.randint(0, 5)}]
        )
    eos, padding = (draw_tokens(draw, model, 1)[0] for _ in range(2))
    settings |= draw.choice([{}, {}, {"stop_on_eos": True, "eos_token_id": eos, "pad_token_id": padding}])
    settings |= draw.choice([{}, {}, {"num_return_sequences": draw.randint(1, 3)}, {"max_time": 1e9}])
    settings |= draw.choice([{}, {}, {"logits_processor": [prefer_even]}, {"logits_processor": [invite_the_mask]}])
    return settings


def draw_call(draw: random.Random) -> tuple[RaddForMaskedLM, dict]:
    model = draw_model(draw)
    canvas = draw_canvas(draw, model)
    given = len(canvas.get("prefix", [[]])[0]) + len(canvas.get("suffix", []))
    written = len(canvas["input_ids"][0]) if "input_ids" in canvas else given + canvas.get("max_new_tokens", 0)
    return model, canvas | draw_settings(draw, model, canvas.get("length", written))


def write(model: RaddForMaskedLM, arguments: dict, rows: int, source: str, seed: int) -> RaddGenerateOutput:
    """Calls `generate` with the randomness of this seed from one of its sources."""
    randomness: dict = {"seed": seed}
    if source == "generator":
        randomness = {"generator": seeded(seed)}
    elif source == "generators":
        randomness = {"generator": [seeded(seed + row) for row in range(rows)]}
    return model.generate(**arguments, **randomness, output_history=True, return_dict_in_generate=True)


def check_text(model: RaddForMaskedLM, arguments: dict, output: RaddGenerateOutput) -> None:
    """Checks what holds of every output, whatever was drawn."""
    mask, history = model.config.mask_token_id, torch.stack(output.history)  # (E + 1, R, L)
    given, padding = history[0] != mask, arguments.get("pad_token_id")
    assert not (output.sequences == mask).any()
    assert torch.equal(output.sequences[given], history[0][given])
    assert torch.equal(history[-1], output.sequences)
    kept = (history[:-1] == mask) | (history[1:] == history[:-1])
    assert (kept if padding is None else kept | (history[1:] == padding)).all()
    revealed = output.reveal_step >= 0  # (R, L)
    assert not (revealed & given).any()
    assert (output.token_logprobs[~revealed] == 0).all()
    assert (output.token_logprobs <= 1e-6).all()
    if not arguments.get("stop_on_eos"):
        assert torch.equal(revealed, ~given)


def check_probabilities(model: RaddForMaskedLM, arguments: dict, output: RaddGenerateOutput) -> None:
    """Evaluates every canvas of the history plainly, and compares the log-probabilities of the tokens that follow."""
    mask, history = model.config.mask_token_id, output.history
    seen = arguments.get("attention_mask")
    if seen is not None:
        seen = torch.as_tensor(seen).repeat_interleave(arguments.get("num_return_sequences", 1), dim=0)
    twin = copy.deepcopy(model).eval()
    if "speculate" in arguments:  # what one token an event would have shown
        steps = range(int(output.reveal_step.max()) + 2)
        history = [torch.where(output.reveal_step < step, output.sequences, mask) for step in steps]
    for before, after in pairwise(history):
        with torch.no_grad():
            logits = twin(before, attention_mask=seen).logits.float()  # (R, L, V)
        new = (before == mask) & (after != mask) & (output.reveal_step >= 0)  # (R, L)
        expected = logits.log_softmax(dim=-1).gather(2, after[..., None]).squeeze(2)[new]
        torch.testing.assert_close(output.token_logprobs[new], expected, atol=tolerance(model), rtol=tolerance(model))


def check_evaluations(model: RaddForMaskedLM, arguments: dict, output: RaddGenerateOutput) -> None:
    masks = (output.history[0] == model.config.mask_token_id).sum(dim=1)  # (R,)
    steps, method = arguments.get("steps"), arguments.get("method", "ordered")  # that of a schedule
    evaluations = output.num_function_evaluations
    if "speculate" in arguments:
        assert (evaluations <= masks).all()
        assert (evaluations <= output.num_sequences_evaluated).all()
        fewest = torch.where(masks > 0, 1 + ((masks - 1) / arguments["speculate"]).ceil(), 0)
        assert arguments.get("stop_on_eos") or (evaluations >= fewest).all()
        return
    assert torch.equal(output.num_sequences_evaluated, evaluations)
    if arguments.get("use_cache") is False:
        expected = torch.full_like(masks, steps)
    else:
        expected = torch.tensor([len(set(row.tolist()) - {-1}) for row in output.reveal_step])
    if arguments.get("stop_on_eos"):
        assert (evaluations <= (masks if arguments.get("use_cache", True) else expected)).all()
        return
    assert torch.equal(evaluations, expected)
    bounded = is_chosen_by_the_model(arguments) and arguments.get("order") not in ADAPTIVE_ORDERS
    if method in ("first_hitting", "ordered") and not bounded:
        assert torch.equal(evaluations, masks if steps is None else masks.clamp(max=steps))


def check_end(model: RaddForMaskedLM, arguments: dict, output: RaddGenerateOutput, *randomness: int | str) -> None:
    """Writes the text to its end: up to its EOS it is the same."""
    names = ("stop_on_eos", "eos_token_id", "pad_token_id")
    whole = write(model, {name: value for name, value in arguments.items() if name not in names}, *randomness)
    revealed = output.reveal_step >= 0
    ends = (whole.sequences == arguments["eos_token_id"]) & (whole.history[0] == model.config.mask_token_id)
    assert torch.equal(revealed, (whole.reveal_step >= 0) & (ends.cumsum(dim=1) - ends.long() == 0))
    assert torch.equal(output.sequences[revealed], whole.sequences[revealed])


def check_row_alone(model: RaddForMaskedLM, arguments: dict, output: RaddGenerateOutput, row: int, seed: int) -> None:
    """Writes one row alone, with the generator that it had in the batch."""
    alone = {name: value for name, value in arguments.items() if name not in ("prefix", "suffix", "length")}
    alone = {name: value for name, value in alone.items() if name not in ("max_new_tokens", "num_return_sequences")}
    alone["input_ids"] = output.history[0][row : row + 1]
    if not (alone["input_ids"] == model.config.mask_token_id).any():
        return
    if "attention_mask" in arguments:
        given = row // arguments.get("num_return_sequences", 1)
        alone["attention_mask"] = torch.as_tensor(arguments["attention_mask"])[given : given + 1]
    found = write(model, alone, 1, "generators", seed + row)
    assert torch.equal(found.sequences[0], output.sequences[row])
    assert torch.equal(found.reveal_step[0], output.reveal_step[row])


def test_random_calls_of_generate_obey_their_laws():
    for number, draw in cases("generate"):
        model, arguments = draw_call(draw)
        source, seed = draw.choice(["seed", "generator", "generators"]), draw.randrange(2**31)
        rows = len(arguments.get("input_ids", arguments.get("prefix", [0]))) * arguments.get("num_return_sequences", 1)
        before, others, streamer = state(model), copy.deepcopy(arguments), Watcher()
        try:
            output = write(model, arguments | {"streamer": streamer}, rows, source, seed)
            check_text(model, arguments, output)
            check_evaluations(model, arguments, output)
            exact = "speculate" not in arguments or not arguments.get("stop_on_eos")  # some that were seen are padded
            if arguments.get("refresh_interval", 1) == 1 and exact:
                check_probabilities(model, arguments, output)
            again = write(copy.deepcopy(model).eval(), arguments, rows, source, seed)
            assert torch.equal(again.sequences, output.sequences), "the same seed wrote another text"
            if arguments.get("stop_on_eos"):
                check_end(model, arguments, output, rows, source, seed)
            if source == "generators" and model.dtype == torch.float32 and arguments.get("temperature") != 1e30:
                check_row_alone(model, arguments, output, draw.randrange(rows), seed)
            assert streamer.ended
            assert torch.equal(streamer.final, output.sequences)
            assert len(streamer.drafts) == len(output.history) - 1
            assert unchanged(arguments, others), "an argument was changed"
            assert state(model) == before, "modes, weights or random numbers were changed"
        except Exception as error:
            pytest.fail(f"case {number}: {type(error).__name__} {error}\n{model.config}\n{arguments} {source} {seed}")


NUMBERS = [True, "3", [3], 1.5, NAN, 3j, b"3", {}, 2**70, -(2**70), 10**5000, -1]
FLOATS = [True, "1", [1.0], NAN, INFINITY, -INFINITY, -1, 10**400, 1j, {}, b"1"]
IDS = [3, {}, {1}, b"ab", object(), [1.5], [None], [[[1]]], [True], [-1], [2**63], [10**5000], torch.rand(2), [1, [2]]]
HOSTILE = {
    "steps": [*NUMBERS, 0, 10**9, np.float64(3)],
    "length": [*NUMBERS, 0, 2**40, "short"],
    "max_new_tokens": [*NUMBERS, 0, 2**40],
    "num_return_sequences": [*NUMBERS, 0, 2**40],
    "top_k": NUMBERS,
    "speculate": [*NUMBERS, 0, 65],
    "refresh_interval": [*NUMBERS, 0],
    "refresh_window": NUMBERS,
    "seed": NUMBERS,
    "temperature": [*FLOATS, 1e-320, 1e300],
    "top_p": [*FLOATS, 0, 2],
    "max_time": [*FLOATS, 0],
    "entropy_bound": FLOATS,
    "confidence_threshold": [*FLOATS, 0, 2],
    "eos_token_id": [True, "3", 1.5, -1, 10**5000, [[1]], [True], [None, 1], {}, b"3", []],
    "method": ["ddim", 3, ["tweedie"], "", b"euler", True],
    "order": [
        "up",
        3,
        [0, 0],
        [0] * 40,
        [[0], [0, 1]],
        {0},
        [None],
        [0.0],
        [2**70],
        [True],
        torch.rand(3),
        object(),
        [],
    ],
    "schedule": ["x", 3, ["profile"], {}, True, b"profile"],
    "information_profile": [*FLOATS, [], [1, 2], [NAN], [INFINITY], [-1], [True], ["1"], [None], [[1.0]], [10**400]],
    "use_cache": ["no", 0, [True]],
    "stop_on_eos": ["yes", 1, [True]],
    "output_history": ["yes", 2],
    "return_dict_in_generate": ["dict", 1],
    "generator": [3, "a", [3], [], object(), np.random.default_rng(0), [seeded()] * 100],
    "input_ids": [*IDS, [], [[]], "text", torch.zeros(0, 3).long(), torch.zeros(2, 0).long(), [[1], [1, 2]]],
    "prefix": [*IDS, "text", torch.zeros(0, 3).long()],
    "suffix": [*IDS, ["a", "b"], torch.zeros(0, 3).long()],
    "attention_mask": [
        3,
        "x",
        [[2] * 50],
        [[NAN]],
        torch.ones(1, 1, 2, 2),
        object(),
        [None],
        [[1j]],
        torch.ones(9, 99),
    ],
    "tokenizer": ["gpt2", 3],
    "streamer": [print, 3],
    "logits_processor": [3, [3], print, "top_k", {}],
    "generation_config": ["x", 3, [], {"generation_config": 1}],
    "num_beams": [3],
    "topp_k": [1],
}


# What must be set, or left out (None), for an argument to be looked at.
TOGETHER = {
    "input_ids": dict.fromkeys(("prefix", "suffix", "length", "max_new_tokens", "attention_mask")),
    "prefix": dict.fromkeys(("input_ids", "attention_mask")),
    "suffix": dict.fromkeys(("input_ids", "attention_mask")),
    "length": {"max_new_tokens": None},
    "max_new_tokens": {"length": None},
    "order": {
        "method": "ordered",
        "schedule": None,
        "use_cache": None,
        "entropy_bound": None,
        "confidence_threshold": None,
    },
    "steps": {
        "method": "tweedie",
        "schedule": None,
        "order": None,
        "entropy_bound": None,
        "confidence_threshold": None,
    },
    "entropy_bound": {"method": "ordered", "order": None, "steps": None, "confidence_threshold": None},
    "confidence_threshold": {"method": "ordered", "order": None, "steps": None, "entropy_bound": None},
    "eos_token_id": {"stop_on_eos": True},
    "seed": {"generator": None},
}


def test_hostile_calls_of_generate_are_refused_by_the_name_of_the_argument():
    for number, draw in cases("hostile generate"):
        model, arguments = draw_call(draw)
        name = draw.choice([*HOSTILE])
        arguments |= TOGETHER.get(name, {}) | {name: draw.choice(HOSTILE[name])}
        if name == "attention_mask":
            arguments |= dict.fromkeys(("prefix", "suffix", "length", "max_new_tokens"))
            arguments["input_ids"] = [model.config.mask_token_id] * 3
        before = state(model)
        try:
            with pytest.raises((ValueError, TypeError), match=name):
                model.generate(**arguments)
            assert state(model) == before, "modes, weights or random numbers were changed"
        except BaseException as error:
            shown = {key: value for key, value in arguments.items() if key != name}
            value = str(arguments[name])[:80] if not isinstance(arguments[name], int) else "an integer"
            pytest.fail(f"case {number}: {name}={value} gave {type(error).__name__} {str(error)[:300]}\n{shown}")


# ---------------------------------------------------------------------------------------------------------
# forward
# ---------------------------------------------------------------------------------------------------------


def draw_batch(draw: random.Random, model: RaddForMaskedLM) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ids (B, L), labels (B, L) at some masks, and an attention mask (B, L), padded on either side."""
    batch, length = draw.randint(1, 3), draw.randint(1, 12)
    ids = torch.tensor([draw_tokens(draw, model, length) for _ in range(batch)])
    labels, seen = torch.full_like(ids, -100), torch.ones_like(ids)
    for row in range(batch):
        for position in range(length):
            if draw.random() < 0.5:
                labels[row, position] = ids[row, position]
                ids[row, position] = draw.choice([model.config.mask_token_id, int(ids[row, position])])
        padding = draw.choice([0, draw.randint(0, length - 1)])
        where = slice(0, padding) if draw.random() < 0.5 else slice(length - padding, length)
        seen[row, where], labels[row, where] = 0, -100
    return ids, labels, seen


def nll_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes -log c of each label from all logits: (B, L, V), (B, L) -> (B, L)."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def check_forward(draw: random.Random, model: RaddForMaskedLM) -> None:
    ids, labels, seen = draw_batch(draw, model)
    model.eval()
    close = {"atol": tolerance(model), "rtol": tolerance(model)}
    text = seen.bool()
    weights = torch.rand(len(ids), generator=seeded(draw.randrange(99)))

    plain = model(ids, attention_mask=seen).logits  # (B, L, V)
    assert plain[..., model.config.mask_token_id].isneginf().all()
    assert plain.isfinite().sum() == plain.numel() // model.config.vocab_size * (model.config.vocab_size - 1)
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("sdpa" if model.config._attn_implementation == "eager" else "eager")
    torch.testing.assert_close(twin(ids, attention_mask=seen).logits[text], plain[text], **close)

    for row in range(len(ids)):  # padded = unpadded
        alone = model(ids[row : row + 1, text[row]]).logits[0]
        torch.testing.assert_close(plain[row, text[row]], alone, **close)
    same = model(
        inputs_embeds=model.get_input_embeddings()(ids),
        attention_mask=seen[:, None, None].bool(),
        position_ids=(seen.cumsum(dim=1) - 1).clamp(min=0),
    ).logits
    torch.testing.assert_close(same[text], plain[text], **close)

    chosen = torch.rand(ids.shape, generator=seeded(draw.randrange(99))) < 0.5
    torch.testing.assert_close(model(ids, attention_mask=seen, output_positions=chosen).logits, plain[chosen], **close)
    where = torch.randint(ids.shape[1], (len(ids), draw.randint(1, 5)), generator=seeded(draw.randrange(99)))
    selected = model(ids, attention_mask=seen, output_positions=where).logits  # (B, K, V)
    torch.testing.assert_close(selected, plain.gather(1, where[..., None].expand(-1, -1, plain.shape[2])), **close)

    given = {"attention_mask": seen, "labels": draw.choice([labels, labels.int()])}
    expected = nll_by_hand(plain, labels)
    weighted, ordinary = model(ids, **given, loss_weights=weights), model(ids, **given, max_targets=labels.numel())
    torch.testing.assert_close(weighted.token_nll, expected, **close)
    torch.testing.assert_close(weighted.sequence_nll, expected.sum(dim=1), **close)
    torch.testing.assert_close(weighted.loss, (weights * expected.sum(dim=1)).mean(), **close)
    number = (labels != -100).sum().clamp(min=1)
    torch.testing.assert_close(ordinary.loss, expected.sum() / number, **close)
    items = draw.choice([5, torch.tensor(5)])
    torch.testing.assert_close(model(ids, **given, num_items_in_batch=items).loss, expected.sum() / 5, **close)

    found, by_hand = (
        torch.autograd.grad(loss, [*model.parameters()]) for loss in (ordinary.loss, expected.sum() / number)
    )
    for ours, theirs in zip(found, by_hand, strict=True):
        assert ours.isfinite().all()
        if model.dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    model.train()
    model(ids, **given).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_random_forwards_obey_their_laws():
    for number, draw in cases("forward"):
        model = draw_model(draw)
        try:
            check_forward(draw, model)
        except Exception as error:
            pytest.fail(f"case {number}: {type(error).__name__} {error}\n{model.config}")


def hostile_tensors(model: RaddForMaskedLM, ids: Tensor) -> dict:
    """Returns values that no forward on these ids (B, L) can take, by argument."""
    (batch, length), vocab_size, mask = ids.shape, model.config.vocab_size, model.config.mask_token_id
    ones, numbers = torch.ones(batch, length), torch.zeros_like(ids)
    no_tensors = [3, "x", [[1]], object(), {}, np.ones((batch, length))]
    return {
        "input_ids": [
            *no_tensors,
            None,
            ids[0],
            ids[None],
            ids.float(),
            ids.bool(),
            ids.to(torch.uint8),
            ids[:0],
            ids[:, :0],
            ids + vocab_size,
            ids - vocab_size,
            ids - 2**40,
            ids + 2**62,
        ],
        "labels": [
            *no_tensors,
            ones,
            numbers.bool(),
            numbers.short(),
            numbers[:, :-1],
            numbers[0],
            numbers[None],
            numbers + vocab_size,
            numbers - 1,
            numbers + mask,
            numbers.repeat(2, 1),
            numbers - 99,
        ],
        "loss_weights": [
            *no_tensors,
            1.0,
            torch.ones(batch + 1),
            torch.ones(batch, 1),
            torch.ones(batch) > 0,
            torch.full((batch,), NAN),
            torch.full((batch,), INFINITY),
            torch.ones(batch) + 0j,
            torch.tensor(1.0),
        ],
        "attention_mask": [
            *no_tensors,
            ones * 2,
            -ones,
            ones * NAN,
            ones + 0j,
            ones[:, :-1],
            ones[0],
            ones[None],
            torch.full((batch, 1, length, length), NAN),
            torch.ones(batch, 1, length, length + 1).bool(),
            torch.ones(batch + 2, 1, 1, length).bool(),
            torch.full((batch, 1, 1, length), 2),
        ],
        "position_ids": [
            *no_tensors,
            ids[0],
            ones[:, :-1],
            ones > 0,
            ones * NAN,
            ones * INFINITY,
            ones + 0j,
            ones[None],
        ],
        "output_positions": [
            *no_tensors,
            ones,
            numbers[:, :0],
            numbers + length,
            numbers - 1,
            numbers[0],
            (0, 1),
            torch.ones(batch, length + 1).bool(),
            numbers.short(),
            torch.zeros(batch + 1, 1).long(),
            numbers + 2**40,
        ],
        "inputs_embeds": [torch.ones(batch, length, model.config.hidden_size + 1), ones, ids, numbers[..., None], 3],
        "max_targets": ["x", -1, True, 2.5, NAN, 2**64, 10**5000, torch.tensor(9)],
        "num_items_in_batch": ["x", 0, -1, True, NAN, INFINITY, 10**400, 10**5000, torch.tensor(0), torch.ones(2), [3]],
        "output_attentions": ["x", [], 3, torch.tensor(True)],
        "use_cache": [True, "x"],
        "input_idss": [ids],
    }


def test_hostile_forwards_are_refused_by_the_name_of_the_argument():
    for number, draw in cases("hostile forward"):
        model = draw_model(draw)
        ids, labels, seen = draw_batch(draw, model)
        labels[0, 0] = draw_tokens(draw, model, 1)[0]
        hostile = hostile_tensors(model, ids)
        name = draw.choice([*hostile])
        value = draw.choice(hostile[name])
        arguments = {"input_ids": ids, "attention_mask": seen}
        if name != "output_positions":
            arguments |= {"labels": labels}
        arguments[name] = value
        before = state(model)
        try:
            with pytest.raises((ValueError, TypeError), match=name):
                model(**arguments)
            assert state(model) == before
        except BaseException as error:
            shown = "an integer" if isinstance(value, int) else value
            pytest.fail(f"case {number}: {name}={shown} gave {type(error).__name__} {str(error)[:300]}\n{ids}")
