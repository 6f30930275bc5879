# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Scores rows: the likelihood of each text, or of a continuation given its prefix, with its standard error.

    row -> token ids, cut into blocks of the model's length -> masks, from (seed, row number) -> nats of the row

Rows of equal length are computed in the same forward passes.

Shapes: L tokens of a block.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from ..data.blocks import lost_tokens
from ..endings import reason_of
from ..kernels_radd import packed_weights
from ..likelihood import Likelihood, LikelihoodRounds, check_estimate, check_integer_seed, compute_together, config_of
from ..randomness_radd import stream_seed
from ..settings_radd import shortened
from ..text_radd import check_characters, check_tokenizer, check_tokenizer_mask, encode_after_text, encode_text
from .batches import Task, tokens_of_a_batch
from .rows import check_text_column

# The parts of a row: a text, or a continuation and its prefix.
PARTS = ("text", "prefix", "continuation")
# The figures of a result, with their types in a table.
FIGURES = {
    "nats": pa.float64(),
    "standard_error": pa.float64(),
    "nats_per_token": pa.float64(),
    "bits_per_byte": pa.float64(),
    "bits_per_byte_error": pa.float64(),
    "tokens": pa.int64(),
    "bytes": pa.int64(),
    "blocks": pa.int64(),
}


class EncodedRow(NamedTuple):
    """Holds the tokens of a row.

    blocks: (L,) int64 each. scored: (L,) bool each, the tokens whose likelihood is computed. n_bytes: UTF-8 bytes of
    the text of these tokens; None if an unknown token replaces a part of it.
    """

    blocks: list[Tensor]
    scored: list[Tensor]
    n_bytes: int | None


class ScoredRow(NamedTuple):
    """Holds the likelihood of a row. `error` says why there is none, or why it is less precise than requested."""

    likelihood: Likelihood | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the result of [`RowScorer`]."""
        figures: dict[str, Any] = dict.fromkeys(FIGURES)
        found = self.likelihood
        if found is not None:
            figures |= {
                "nats": found.nats_per_token * found.n_tokens,
                "standard_error": found.standard_error * found.n_tokens,
                "nats_per_token": found.nats_per_token,
                "tokens": found.n_tokens,
                "bytes": found.n_bytes,
                "blocks": found.n_sequences,
            }
            if found.n_bytes is not None:
                figures |= {"bits_per_byte": found.bits_per_byte, "bits_per_byte_error": found.bits_per_byte_error}
        return figures | {"error": self.error}


class RowScorer:
    """Scores rows with a model: `scorer(rows, numbers)` returns a dictionary for each row, in their order.

        scorer = RowScorer(model, tokenizer, estimator="ar_forward")
        scorer([{"text": "It was cold."}, {"prefix": "It was", "continuation": " cold."}], numbers=[0, 1])

    A row is a mapping with `text`, or with `continuation` and a `prefix`, which may be empty. An entry that is None
    counts as missing, and other entries are ignored. The result of a row has

        row             its number
        nats            -log p of the text, or of the continuation given the prefix
        standard_error  standard error of nats; 0 for estimators that compute the exact likelihood of an order
        nats_per_token, bits_per_byte, bits_per_byte_error
        tokens, bytes   number of scored tokens, and of their bytes in UTF-8. If an unknown token replaces some of the
                        text, bytes and bits per byte are None
        blocks          number of blocks of the text
        error           None, or why the row was refused, in one line; all other figures are then None. If a row
                        cannot reach `target_se`, the figures are those of its first passes.

    A text of more tokens than the model's length is cut into blocks of that length; the last may be shorter. Each block
    is scored by itself, like in `eval_ppl.py`. A prefix and its continuation must fit into one block. White space at
    the end of a prefix belongs to the continuation, like in the lm-evaluation-harness, because a token begins with the
    space before its word.

    Args:
        model: a RADD model. tokenizer: its tokenizer, of transformers.
        seed: seed of all draws. A row draws from (seed, its number), see [`row_seed`]. So batches and processes change
            its result only by rounding.
        batch_tokens: tokens of a forward pass, rows x length; by default that of the device, see
            [`tokens_of_a_batch`].
        columns: the column of each of `PARTS`; by default the column of the same name.
        estimator, passes, target_se: arguments of `estimate_likelihood`, applied to each row.

    Raises:
        ValueError: for an unknown estimator, odd `passes`, a number out of range, a tokenizer of another model.
    """

    number = 1  # result for each row
    slack = 0.0  # rows of a batch have one length

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        seed: int = 0,
        batch_tokens: int | None = None,
        columns: Mapping[str, str] | None = None,
        estimator: str = "k_stratified",
        passes: int = 16,
        target_se: float | None = None,
    ):
        check_estimate(estimator, passes, target_se)
        check_tokenizer(tokenizer)
        check_tokenizer_mask(tokenizer, config_of(model).mask_token_id)
        self.model, self.tokenizer = model, tokenizer
        self.columns = {part: part for part in PARTS} if columns is None else columns
        self.seed, self.batch_tokens = check_integer_seed(seed), tokens_of_a_batch(batch_tokens, model.device)
        self.settings: dict[str, Any] = {"estimator": estimator, "passes": passes, "target_se": target_se}

    @property
    def identity(self) -> dict[str, Any]:
        """Returns the settings that the results depend on, besides the model, the rows and the seed."""
        return {"columns": self.columns, **self.settings}

    @property
    def results(self) -> dict[str, pa.DataType]:
        """Returns the type of each entry of a result by name."""
        return {"row": pa.int64(), **FIGURES, "error": pa.string()}

    def __call__(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the results of rows. `numbers` are the numbers of the rows in their file."""
        scored = zip(numbers, self.score(rows, numbers), strict=True)
        return [{"row": number} | row.to_dict() for number, row in scored]

    def score(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> list[ScoredRow]:
        """Returns the likelihoods of rows, which have more statistics than the results."""
        tasks, scored = list[Task](), dict[int, ScoredRow]()  # by place in `rows`
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            try:
                tasks += self.encode(row, number)
            except ValueError as error:
                scored[place] = ScoredRow(error=reason_of(error))
        others = (place for place in range(len(rows)) if place not in scored)
        scored |= zip(others, self._score(tasks), strict=True)
        return [scored[place] for place in range(len(rows))]

    def encode(self, row: Mapping[str, Any], number: int) -> list[Task]:
        """Returns the task of a row. Raises a ValueError for a refused row."""
        if not isinstance(row, Mapping):
            raise ValueError(f"row={shortened(row)} must be a mapping, with text, or with prefix and continuation.")
        parts = {part: row.get(column) for part, column in self.columns.items()}
        encoded = encode_parts(parts, self.tokenizer, self.model.config.max_position_embeddings)
        n_scored = sum(int(where.sum()) for where in encoded.scored)
        return [Task(number, 0, len(encoded.blocks[0]), n_scored, encoded)]

    def compute(self, batch: Sequence[Task]) -> list[dict[str, Any]]:
        """Scores tasks together and returns their results."""
        return [{"row": task.row} | scored.to_dict() for task, scored in zip(batch, self._score(batch), strict=True)]

    def refusal(self, number: int, error: ValueError) -> dict[str, Any]:
        """Returns the result of a refused row."""
        return {"row": number} | ScoredRow(error=reason_of(error)).to_dict()

    def summed(self, result: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers of a result that are summed over all results. Without bytes its nats do not count."""
        sums = {"tokens": result["tokens"] or 0, "bytes": result["bytes"] or 0, "nats": 0.0, "variance": 0.0}
        if result["bytes"] is not None:
            sums |= {"nats": result["nats"], "variance": result["standard_error"] ** 2}
        return sums

    def summary(self, totals: Mapping[str, float]) -> str:
        """Describes the sums over all results. Bits per byte are all bits divided by all bytes."""
        tokens = f"{totals['tokens']:,} tokens"
        if not totals["bytes"]:
            return tokens
        bits, error = totals["nats"] / math.log(2), math.sqrt(totals["variance"]) / math.log(2)
        return f"{tokens}, {bits / totals['bytes']:.4f} +- {error / totals['bytes']:.4f} bits per byte"

    def _score(self, tasks: Sequence[Task]) -> list[ScoredRow]:
        estimates = [self._estimate(task.content, task.row) for task in tasks]
        with packed_weights():
            errors = compute_together(estimates, self.batch_tokens)
        return [
            self._summary(estimate.summary(task.content.n_bytes), error)
            for task, estimate, error in zip(tasks, estimates, errors, strict=True)
        ]

    def _estimate(self, row: EncodedRow, number: int) -> LikelihoodRounds:
        seed = row_seed(self.seed, number)
        return LikelihoodRounds(self.model, row.blocks, scored=row.scored, seed=seed, **self.settings)

    def _summary(self, likelihood: Likelihood, error: ValueError | None) -> ScoredRow:
        if math.isfinite(likelihood.nats_per_token):
            return ScoredRow(likelihood, None if error is None else reason_of(error))
        return ScoredRow(
            error=f"nats={likelihood.nats_per_token}: numbers of the network overflow in {self.model.dtype}. float32 "
            "and bfloat16 have a wider range than float16."
        )


def row_seed(seed: int, number: int) -> int:
    """Returns the seed with which `estimate_likelihood` gives the figures of row `number` of a file."""
    return stream_seed(seed, "row", number)


# ---------------------------------------------------------------------------------------------------------
# From a row to tokens
# ---------------------------------------------------------------------------------------------------------


def encode_parts(parts: Mapping[str, Any], tokenizer: Any, length: int) -> EncodedRow:
    """Returns the tokens of a row's parts in blocks of at most `length` tokens. Missing parts are None.

    Raises:
        ValueError: for neither a text nor a continuation, or both; for a part that is not a text, is empty or cannot be
            encoded; for a prefix and a continuation that are too long together.
    """
    given = {name: value for name, value in parts.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}={shortened(value)} must be a string.")
        check_characters(value, name)
    if "text" in given and len(given) > 1:
        raise ValueError("the row has both a text and a prefix or continuation; it must have one or the other.")
    if "text" in given:
        return _encode_text(given["text"], tokenizer, length)
    if "continuation" in given:
        return _encode_continuation(given.get("prefix", ""), given["continuation"], tokenizer, length)
    raise ValueError("the row has nothing to score; it must have a text, or a continuation and its prefix.")


def _encode_text(text: str, tokenizer: Any, length: int) -> EncodedRow:
    ids = _ids("text", text, encode_text([text], tokenizer, "text")[0])
    blocks = list(ids.split(length))
    return EncodedRow(
        blocks, [torch.ones_like(block, dtype=torch.bool) for block in blocks], _bytes(text, ids, tokenizer)
    )


def _encode_continuation(prefix: str, continuation: str, tokenizer: Any, length: int) -> EncodedRow:
    before = prefix.rstrip()
    target = prefix[len(before) :] + continuation if continuation else ""
    encode = encode_after_text if before else encode_text
    given = torch.tensor(encode_text([before], tokenizer, "prefix")[0], dtype=torch.int64)
    ids = _ids("continuation", continuation, encode([target], tokenizer, "continuation")[0])
    if len(given) + len(ids) > length:
        raise ValueError(
            f"prefix ({len(given)} tokens) and continuation ({len(ids)} tokens) must together have at most the model's "
            f"{length} tokens: shorten the prefix."
        )
    whole = torch.cat([given, ids])
    return EncodedRow([whole], [torch.arange(len(whole)) >= len(given)], _bytes(target, ids, tokenizer))


def _ids(name: str, text: str, ids: list[int]) -> Tensor:
    if not ids:
        raise ValueError(f"{name}={shortened(text)} has no token; it must have at least one.")
    return torch.tensor(ids, dtype=torch.int64)


def _bytes(text: str, ids: Tensor, tokenizer: Any) -> int | None:
    return None if lost_tokens(tokenizer).intersection(ids.tolist()) else len(text.encode())


def columns_to_score(columns: Sequence[str], text_column: str | None = None) -> dict[str, str]:
    """Returns the column of a file for each part of a row, as [`RowScorer`] takes them.

    Raises:
        ValueError: if no column fits, or if several choices do.
    """
    if text_column is not None:
        check_text_column(columns, text_column)
        return {"text": text_column}
    found = {part: part for part in PARTS if part in columns}
    if not found.keys() & {"text", "continuation"}:
        raise ValueError(
            f"the columns {list(columns)} have neither 'text' nor 'continuation': name the text by text_column."
        )
    if "text" in found and len(found) > 1:
        *_, other = found
        raise ValueError(
            f"the columns {list(columns)} have both 'text' and {other!r}: name the text by text_column, or leave out "
            "one of them."
        )
    return found
