# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills the blanks of many rows: `radd generate MODEL --input FILE`.

    rows with text or prefix, suffix and length  ->  tasks  ->  batches of like length  ->  a result for each row

The random numbers of a row come from the seed and the row's number, or from its own seed. So its result does not depend
on other rows, on the number of processes or on restarts, apart from rounding (see `generate`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from ..canvas_radd import REQUEST, encode_request
from ..randomness_radd import check_seed, sample_generators, text_seed
from ..ranges import check_count
from ..settings_radd import LARGEST_INTEGER, LENGTHS, SETTINGS, plain, shortened
from .batches import Task, batches_of_rows, tokens_of_a_batch
from .rows import check_text_column

# Texts of a batch are padded by at most this fraction of the longest. Fuller batches save more than padding costs.
SLACK = 0.08
# A row's request is read from these columns if there is no text with blanks.
COLUMNS = (*REQUEST[1:], "seed")


class RowFiller:
    """Fills the blanks of rows. A row is a dictionary with a value for each column.

        filler = RowFiller(model, tokenizer, seed=0, temperature=0.8)
        results = filler([{"text": "It was [MASK:4] of spring."}, {"prefix": "She", "length": 24}], numbers=[0, 1])

    A result has `row`, `sample` where `number` is more than one, and
        text: the text with its blanks filled. fills: the text in each blank.
        log_probabilities: for each blank, the sum of the log-probabilities of its tokens when drawn, in nats.
        log_probability: their sum. tokens: number of generated tokens. nfe: number of network evaluations.
        error: None, or why the row was refused; the other entries are then None.

    Args:
        seed: seed of rows without a column `seed`.
        number: number of results for each row.
        batch_tokens: tokens of a batch, rows x length; by default that of the device, see [`tokens_of_a_batch`].
        columns: columns to read; by default "text" or those in `COLUMNS`, see [`columns_to_fill`].
        settings: settings of `generate`. `length` and `max_new_tokens` apply to rows that set neither.

    Raises:
        ValueError: for a setting that does not fit.
    """

    slack = SLACK

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        seed: int = 0,
        number: int = 1,
        batch_tokens: int | None = None,
        columns: Mapping[str, str] | None = None,
        **settings: Any,
    ):
        self.model, self.tokenizer, self.columns = model, tokenizer, columns
        self.seed, self.number = check_seed(seed), check_count("number", number)
        self.batch_tokens = tokens_of_a_batch(batch_tokens, model.device)
        if settings.get("max_time") is not None:
            raise ValueError(
                f"max_time={settings['max_time']} makes a text depend on the speed of the machine: leave it out."
            )
        model.check_settings(**settings)
        self.lengths = {name: settings.pop(name, None) for name in LENGTHS}
        if any(self.lengths.values()) and columns is not None and "text" in columns:
            given = ", ".join(f"{name}={value}" for name, value in self.lengths.items() if value)
            raise ValueError(f"{given} is for rows with prefix and suffix, not for texts with blanks: leave it out.")
        if not any(self.lengths.values()):
            self.lengths = {name: getattr(model.generation_config, name) for name in LENGTHS}
        self.settings = settings

    @property
    def identity(self) -> dict[str, Any]:
        """Returns the settings that the results depend on, besides the model, the rows and the seed."""
        resolved = self.model.check_settings(**self.settings)
        settings = {name: getattr(resolved, name) for name in (*SETTINGS, "eos_token_id", "pad_token_id")}
        if resolved.schedule is None:
            del settings["information_profile"]
        return {"columns": self.columns, "number": self.number, "settings": settings | self.lengths}

    @property
    def results(self) -> dict[str, pa.DataType]:
        """Returns the type of each entry of a result by name."""
        each_blank = {"fills": pa.list_(pa.string()), "log_probabilities": pa.list_(pa.float64())}
        return {
            "row": pa.int64(),
            **({"sample": pa.int64()} if self.number > 1 else {}),
            "text": pa.string(),
            **each_blank,
            "log_probability": pa.float64(),
            "tokens": pa.int64(),
            "nfe": pa.int64(),
            "error": pa.string(),
        }

    def __call__(self, rows: Sequence[Mapping[str, Any]], numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Returns the results of rows in their order: `number` results for a row, one for a refused row.

        Args:
            numbers: numbers of the rows in their file, for their seeds.

        Raises:
            ValueError: for numbers that are not integers, or not all different.
        """
        numbers = [check_count("numbers", number, least=0, most=LARGEST_INTEGER) for number in numbers]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"numbers={shortened(numbers)} must all be different, because they identify the rows.")
        results, batches = batches_of_rows(self, zip(numbers, rows, strict=True))
        for batch in batches:
            results += self.compute(batch)
        place = {number: index for index, number in enumerate(numbers)}
        return sorted(results, key=lambda result: (place[result["row"]], result.get("sample", 0)))

    def encode(self, row: Mapping[str, Any], number: int) -> list[Task]:
        """Returns the tasks of a row. Raises a ValueError for a refused row."""
        columns = columns_to_fill(list(row)) if self.columns is None else self.columns
        request = {key: _cell(row[column]) for key, column in columns.items() if column in row}
        seed = request.pop("seed", None)
        seed = text_seed(self.seed, number) if seed is None else text_seed(check_seed(seed))
        given = encode_request(request, self.model.config, self.tokenizer, **self.lengths)
        length, longest = len(given.ids), self.model.config.max_position_embeddings
        if length > longest:
            raise ValueError(
                f"the row has {length} tokens with its blanks; the model was trained on at most {longest}."
            )
        masks = given.ids.count(self.model.config.mask_token_id)
        return [Task(number, sample, length, masks, (given, seed)) for sample in range(self.number)]

    def compute(self, batch: Sequence[Task]) -> list[dict[str, Any]]:
        """Fills tasks together and returns their results. Shorter ones are padded on the right."""
        longest = max(task.length for task in batch)
        padding = 0 if self.model.config.mask_token_id else 1  # any token but the mask will do; attention ignores it
        canvas = torch.full((len(batch), longest), padding)  # (B, L)
        for row, task in enumerate(batch):
            canvas[row, : task.length] = torch.tensor(task.content[0].ids)
        lengths = torch.tensor([task.length for task in batch])  # (B,)
        text = torch.arange(longest) < lengths[:, None]  # (B, L)
        output = self.model.generate(
            canvas,
            attention_mask=None if bool(text.all()) else text.long(),
            generator=[sample_generators(task.content[1], [task.sample])[0] for task in batch],
            return_dict_in_generate=True,
            **self.settings,
        )
        logprobs, generated = output.token_logprobs.double().cpu(), (output.reveal_step >= 0).sum(dim=1)  # (B, L), (B,)
        columns = output.sequences.tolist(), logprobs, generated.tolist(), output.num_function_evaluations.tolist()
        results = []
        for task, ids, nats, tokens, evaluations in zip(batch, *columns, strict=True):
            given = task.content[0]
            fills = given.fills(ids, self.tokenizer, skip_special_tokens=True)
            scores = [float(nats[begin:end].sum()) for begin, end in given.spans]
            results.append(
                self._numbered(task.row, task.sample)
                | {
                    "text": given.filled(fills),
                    "fills": fills,
                    "log_probabilities": scores,
                    "log_probability": sum(scores),
                    "tokens": tokens,
                    "nfe": evaluations,
                    "error": None,
                }
            )
        return results

    def refusal(self, number: int, error: ValueError) -> dict[str, Any]:
        """Returns the result of a refused row."""
        return dict.fromkeys(self.results) | self._numbered(number, 0) | {"error": " ".join(str(error).split())}

    def summed(self, result: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers of a result that are summed over all results."""
        return {"tokens": result["tokens"] or 0}

    def summary(self, totals: Mapping[str, float]) -> str:
        """Describes the sums over all results."""
        return f"{totals['tokens']:,} tokens"

    def _numbered(self, row: int, sample: int) -> dict[str, Any]:
        return {"row": row, **({"sample": sample} if self.number > 1 else {})}


def columns_to_fill(columns: Sequence[str], text_column: str | None = None) -> dict[str, str]:
    """Returns the column of a file for each entry of a request.

    Raises:
        ValueError: if no column fits, or if several choices do.
    """
    if text_column is not None:
        check_text_column(columns, text_column)
        return {"text": text_column} | ({"seed": "seed"} if "seed" in columns else {})
    ends = [name for name in ("prefix", "suffix") if name in columns]
    if "text" in columns and ends:
        raise ValueError(
            f"the columns {list(columns)} have both 'text' and {ends[0]!r}: name the text with blanks by text_column, "
            "or leave out one of them."
        )
    if "text" in columns:
        return columns_to_fill(columns, "text")
    found = {name: name for name in COLUMNS if name in columns}
    if not found.keys() - {"seed"}:
        raise ValueError(
            f"the columns {list(columns)} have neither 'text' nor any of {COLUMNS[:-1]}: name the text with blanks by "
            "text_column."
        )
    return found


def _cell(value: Any) -> Any:
    """Restores a cell of a column with missing values, where None became NaN and integers became floats."""
    value = plain(value)
    if isinstance(value, float):
        exact = value.is_integer() and abs(value) <= 2**53  # beyond, several integers have the same float
        return None if math.isnan(value) else int(value) if exact else value
    return value
