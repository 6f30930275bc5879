# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Answers the requests of an inference endpoint: fills the blanks of texts that clients send as JSON.

    {"inputs": "It was [MASK:4] of spring.", "parameters": {"temperature": 0.7, "seed": 1}}
        -> {"outputs": [{"text": "It was a fine day of spring.", "fills": [...], ...}], "seed": 1}

An inference endpoint of the Hub loads the file `handler.py` beside a model and calls its `EndpointHandler`. `radd
convert --endpoint` copies this file there. So it imports only torch, transformers and the standard library. Everything
else comes from the code in the model's folder. `radd serve` answers with the same class.

Every request is checked before the network is evaluated. A client cannot name a model, file or Python object.
"""

import importlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import transformers

# A text may have this many characters for each token. English has four.
CHARACTERS_OF_TOKEN = 16


class Limits(NamedTuple):
    """Limits the size of one request.

    inputs: number of texts. samples: `num_return_sequences`. length: tokens of a text, its blanks included; None: the
    length that the model was trained at. steps: `steps`. tokens: tokens of all sequences together, which are
    inputs x samples x `speculate`.
    """

    inputs: int = 64
    samples: int = 64
    length: int | None = None
    steps: int = 4096
    tokens: int = 2**16


class Request(NamedTuple):
    """Holds a checked request.

    rows: the texts, encoded by `pipeline.encode`. settings: arguments of `pipeline.fill`, the same for all rows. seed:
    the client's, or one that was drawn. several: whether `inputs` was a list. samples: number of samples of each row.
    sequences: number of sequences that a network evaluation computes for each row, samples x `speculate`.
    """

    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    seed: int
    several: bool
    samples: int
    sequences: int

    def answer(self, samples: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Returns the answer, ready for JSON, from the samples of each row."""
        return {"outputs": samples if self.several else samples[0], "seed": self.seed}


class EndpointHandler:
    """Fills blanks: `EndpointHandler(path)({"inputs": ..., "parameters": {...}})`.

    inputs: a text with blanks ("[MASK]" is one token, "[MASK:12]" twelve), or an object with "text", or with "prefix",
        "suffix" and "length" or "max_new_tokens"; an object may have a "seed" of its own. Or a list of these.
    parameters: settings of `generate` that are numbers or names, such as temperature, top_p, steps, method and order;
        num_return_sequences; and seed.

    The answer is {"outputs": samples, "seed": seed}; for a list, `outputs` is a list of lists of samples. A sample has
    text, fills, fill_scores and score (nats) and num_function_evaluations, as from the pipeline "radd-infilling". The
    same request with the seed in the answer gives the same texts.

    Args:
        path: folder of the model, with its tokenizer and code.
        pipeline: a "radd-infilling" pipeline to use instead of loading the one at `path`.
        limits: see [`Limits`].
        others: further names that a request may have. The caller reads them.
    """

    def __init__(
        self, path: str = "", *, pipeline: Any = None, limits: Limits | None = None, others: Sequence[str] = ()
    ):
        self.pipeline = load_pipeline(path) if pipeline is None else pipeline
        self.model = self.pipeline.model
        self.names = "inputs", "parameters", *others
        limits = limits or Limits()
        self.limits = limits._replace(length=limits.length or self.model.config.max_position_embeddings)
        # A request may always have one text of the largest length.
        self.limits = self.limits._replace(tokens=max(self.limits.tokens, self.limits.length or 0))
        settings, self.randomness, self.text = map(self._code, ("settings_radd", "randomness_radd", "text_radd"))
        self.own_arguments, self.shortened = settings.own_arguments, settings.shortened
        names = type(self.pipeline).SETTINGS & {*settings.TEXT_SETTINGS, "num_return_sequences"}
        in_effect = self.model.check_settings(**type(self.pipeline).FIXED)
        # Settings by name. Each has its type, the default in effect, the possible values and help.
        self.parameters = {
            name: _as_parameter(each, getattr(in_effect, name))
            for name, each in settings.SETTINGS.items()
            if name in names
        }
        self.request_names = *self._code("canvas_radd").REQUEST, "seed"

    def __call__(self, data: Any) -> dict[str, Any]:
        """Answers one request. Texts of one length are filled together.

        Raises:
            ValueError: where [`EndpointHandler.read`] does.
        """
        request = self.read(data)
        samples: dict[int, list[dict[str, Any]]] = {}
        for length in {length_of(row) for row in request.rows}:
            places = [place for place, row in enumerate(request.rows) if length_of(row) == length]
            filled = self.pipeline.fill([request.rows[place] for place in places], **request.settings)
            samples |= dict(zip(places, filled, strict=True))
        return request.answer([samples[place] for place in range(len(request.rows))])

    def read(self, data: Any) -> Request:
        """Checks a request and encodes its texts.

        Raises:
            ValueError: for a malformed request, an unknown name, a value beyond the limits, and contradicting settings.
        """
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise ValueError(f'data={self.shortened(data)} must be an object with "inputs", and "parameters" if any.')
        self._check_names("data", data, self.names)
        settings, seed = self._read_parameters(data.get("parameters"))
        resolved = self.model.check_settings(**settings, **type(self.pipeline).FIXED)
        samples, speculate = resolved.num_return_sequences, resolved.speculate or 1
        self._check_most("num_return_sequences", samples, self.limits.samples)
        self._check_most("steps", resolved.steps or 0, self.limits.steps)
        inputs = data["inputs"]
        several = isinstance(inputs, (list, tuple))
        if several and not 1 <= len(inputs) <= self.limits.inputs:
            raise ValueError(f"inputs has {len(inputs)} texts; it must have 1 to {self.limits.inputs}.")
        rows = []
        for number, text in enumerate(inputs if several else [inputs]):
            name = f"inputs[{number}]" if several else "inputs"
            rows.append(self._read_text(name, text, self.randomness.text_seed(seed, number)))
        request = Request(rows, settings, seed, several, samples, samples * speculate)
        tokens = request.sequences * sum(map(length_of, rows))
        if tokens > self.limits.tokens:
            raise ValueError(
                f"inputs ({len(rows)} texts) x num_return_sequences ({samples}) x speculate ({speculate}) are {tokens} "
                f"tokens; they must have at most {self.limits.tokens} together: send several requests."
            )
        return request

    def _read_parameters(self, given: Any) -> tuple[dict[str, Any], int]:
        """Returns the settings by the names of `generate`, and the seed."""
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ValueError(f"parameters={self.shortened(given)} must be an object.")
        known = {*self.parameters, "seed"}
        settings = self.own_arguments(given, known, "a parameter of this endpoint", advice=False)
        seed = settings.pop("seed", None)
        for name, value in settings.items():
            self.parameters[name].check(name, value)
        return settings, secrets.randbelow(2**31) if seed is None else self.randomness.check_seed(seed)

    def _read_text(self, name: str, request: Any, seed_of_text: int) -> dict[str, Any]:
        """Encodes one text. `name` is its place in the request, for messages."""
        longest = self.limits.length or 0
        if not isinstance(request, (str, Mapping)):
            raise ValueError(f"{name}={self.shortened(request)} must be a text with blanks, or an object.")
        given = {"text": request} if isinstance(request, str) else request
        self._check_names(name, given, self.request_names)
        try:
            for part, value in given.items():
                if isinstance(value, str):
                    self.text.check_characters(value, part, CHARACTERS_OF_TOKEN * longest)
            row = self.pipeline.encode(request, seed_of_text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if length_of(row) > longest:
            raise ValueError(f"{name} has {length_of(row)} tokens; it must have at most {longest}, blanks included.")
        return row

    def _check_names(self, name: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
        if unknown := given.keys() - {*known}:
            raise ValueError(f"{name} has {self.shortened(min(unknown))}; it may have {', '.join(known)}.")

    def _check_most(self, name: str, value: int, most: int) -> None:
        if value > most:
            raise ValueError(f"{name}={value} must be at most {most} here.")

    def _code(self, name: str) -> Any:
        """Returns a module of the code in the model's folder. The pipeline is part of that code."""
        return importlib.import_module(f"{type(self.pipeline).__module__.rpartition('.')[0]}.{name}")


def load_pipeline(path: str) -> Any:
    """Loads the pipeline of a folder, onto a GPU if there is one.

    It computes in float32, whatever the dtype of the weights. So a seed gives the same text as on other machines.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = accelerator or torch.device("cpu")
    task: Any = "radd-infilling"  # the folder's config.json names its class
    return transformers.pipeline(task, model=path, trust_remote_code=True, device=device, dtype=torch.float32)


def _as_parameter(setting: Any, default: Any) -> Any:
    """Returns a setting as clients see it. A client can only name a choice; a program can pass functions or lists."""
    setting = setting._replace(default=default)
    if not setting.choices:
        return setting
    choices = setting.choices
    return setting._replace(accepts=lambda value: value in choices, values=f"one of {', '.join(choices)}")


def length_of(row: Mapping[str, Any]) -> int:
    """Returns L, the number of tokens of an encoded text."""
    return row["input_ids"].shape[1]


__all__ = ["EndpointHandler", "Limits", "Request"]
