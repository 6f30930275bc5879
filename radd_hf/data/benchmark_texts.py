# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The texts of zero-shot perplexity: a name -> rows of the Hub -> detokenised documents -> the blocks that are scored.

A perplexity depends on how the text was cut. So each way to cut it is a protocol with a name.

    clean   Every token counts once. Documents are taken whole, EOS ends each, and they are laid end to end and cut
            every L tokens; the last block keeps its true length. A document of WikiText is an article. A document of
            the Penn Treebank is the whole split, since its sentences follow the newspaper. In the other sets a
            document is a row.
    radd    What the authors' code scores, flaws included, for comparison with their table (github ML-GSAI/RADD at
            60b772d, `data.py` and `evaluation_modeling.py`). EOS follows every row; in WikiText a row is a line, which
            may be empty. 8 workers get contiguous rows and cut them in batches of 1000; they drop the rest of a batch
            that fills no block. The blocks are shuffled by seed 0 and dealt to 4 processes. Some are dealt twice, so
            all processes get equally many. A process scores 4 blocks at once. The mean over batches is reported, so a
            block in an incomplete batch weighs more. WikiText-2 is scored on its training split, the others on their
            test split. The authors' table has the first five sets below.

Both protocols detokenise each row by itself. Bytes are counted in the detokenised text, which the model sees. So the
bits per byte of a set with a detokenizer are not those of the published file.

Shapes: S blocks, L length.
"""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, TensorDataset
from transformers import PreTrainedTokenizerBase

from .blocks import Blocks, bytes_of
from .detokenizers import detokenize_lambada, detokenize_lm1b, detokenize_ptb, detokenize_wikitext
from .documents import load_documents, readable, tokenize

PROTOCOLS = ("clean", "radd")

# The constants of the authors' protocol: `data.py` 119 and 196 (workers; rows is the default of `map`),
# `evaluation_modeling.py` 127 and 132 (blocks scored together, by all processes), `data.py` 255 (blocks of a process).
RADD_WORKERS = 8
RADD_ROWS = 1000
RADD_PROCESSES = 4
RADD_BATCH_SIZE = 16

# A row that may begin an article: its title stands between single equals signs. "= = ... = =" is a section.
TITLE = re.compile(r"= [^=].* =")


def articles(rows: list[str]) -> list[str]:
    """Returns the articles of WikiText from its detokenised lines, line breaks restored.

    A title stands between empty lines. Lines of formulas that look like a title do not. By this rule the test and
    validation splits have 60 articles each, as the paper says (arXiv:1609.07843, Table 1). Without the rule of the
    empty lines they would have 62 and 60.
    """
    lines = ["", *(row.strip() for row in rows), ""]
    inner = range(1, len(lines) - 1)
    titles = [at for at in inner if TITLE.fullmatch(lines[at]) and not lines[at - 1] and not lines[at + 1]]
    texts = ("\n".join(lines[start:stop]).strip() for start, stop in pairwise([0, *titles, len(lines)]))
    return [text for text in texts if text]


def running_text(rows: list[str]) -> list[str]:
    """Joins all rows into one document, a line for each."""
    return ["\n".join(row.strip() for row in rows)]


@dataclass(frozen=True)
class EvaluationSet:
    """A data set: where it is, and what its rows are.

    Attributes:
        source: a data set of the Hub that `load_dataset` reads without code from the Hub; with `files`, the folder that
            holds them; without `splits`, a source for `load_documents`.
        splits: from the name of a split to the name that `load_dataset` takes, which may be a part of another split.
            None: the splits of `load_documents`.
        files: the path of a split's parquet files, with {split} in it. It is for repositories whose main branch has a
            loading script. `datasets` runs no scripts since version 4, but the Hub keeps the converted files on a
            branch.
        split, radd_split: the split that is scored if none is named, under each protocol. radd_split None: the same.
        document: what ends in EOS under "clean".
        join: joins rows to documents. None: a row is a document.
    """

    source: str
    splits: dict[str, str] | None = None
    config: str | None = None
    files: str | None = None
    column: str = "text"
    split: str = "test"
    radd_split: str | None = None
    detokenizer: Callable[[str], str] | None = None
    document: str = "row"
    join: Callable[[list[str]], list[str]] | None = None


_THREE = {"train": "train", "validation": "validation", "test": "test"}
_CONVERTED = "@refs%2Fconvert%2Fparquet"

# The addresses show the files, splits and columns.
EVALUATION_SETS: dict[str, EvaluationSet] = {
    # https://huggingface.co/datasets/Salesforce/wikitext/tree/main/wikitext-2-raw-v1 (files) and
    # https://huggingface.co/datasets/Salesforce/wikitext/commit/227f367c93579cf446b5ce6dcecb73661beb15c6 (column, rows:
    # test 4358, train 36718, validation 3760)
    "wikitext2": EvaluationSet(
        source="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        splits=_THREE,
        radd_split="train",
        detokenizer=detokenize_wikitext,
        document="article",
        join=articles,
    ),
    # https://huggingface.co/datasets/wikitext/commit/5fddba447aa4e75996922ea0d6b18b42f0a81cc4 (column, rows: test 4358,
    # train 1801350, validation 3760; Salesforce/wikitext is its present name); all splits are fetched, 315 MB
    "wikitext103": EvaluationSet(
        source="Salesforce/wikitext",
        config="wikitext-103-raw-v1",
        splits=_THREE,
        detokenizer=detokenize_wikitext,
        document="article",
        join=articles,
    ),
    # https://tensorflow.org/datasets/community_catalog/huggingface/ptb_text_only?hl=ar
    # (column, rows: train 42068, test 3761, validation 3370); other public code reads the converted files, too
    "ptb": EvaluationSet(
        source=f"hf://datasets/ptb-text-only/ptb_text_only{_CONVERTED}",
        files="penn_treebank/{split}/*.parquet",
        splits=_THREE,
        column="sentence",
        detokenizer=detokenize_ptb,
        document="split",
        join=running_text,
    ),
    # https://huggingface.co/datasets/EleutherAI/lambada_openai/tree/main (parquet) and
    # https://huggingface.co/datasets/EleutherAI/lambada_openai/blame/main/README.md (column, 5153 rows of the file that
    # the authors fetch from OpenAI)
    "lambada": EvaluationSet(
        source="EleutherAI/lambada_openai",
        config="default",
        splits={"test": "test"},
        detokenizer=detokenize_lambada,
    ),
    # https://huggingface.co/datasets/lm1b/tree/refs%2Fconvert%2Fparquet/plain_text/train (files) and
    # https://huggingface.co/datasets/lm1b/resolve/main/README.md
    # (column, rows: train 30301028, test 306688)
    "lm1b": EvaluationSet(
        source=f"hf://datasets/billion-word-benchmark/lm1b{_CONVERTED}",
        files="plain_text/{split}/*.parquet",
        splits={"train": "train", "test": "test"},
        detokenizer=detokenize_lm1b,
    ),
    # https://huggingface.co/datasets/afmck/text8/blob/main/README.md (column; a row a split: 90, 5 and 5 MB)
    "text8": EvaluationSet(source="afmck/text8", config="default", splits=_THREE),
    # https://huggingface.co/datasets/reedie01/openwebtext/discussions (a duplicate of it, in parquet) and
    # https://www.tensorflow.org/datasets/community_catalog/huggingface/openwebtext (column, 8013769 rows, all "train").
    # MDLM validates on its last 100000 documents (kuleshov-group/mdlm, dataloader.py 350).
    "openwebtext": EvaluationSet(
        source="Skylion007/openwebtext",
        splits={"train": "train[:-100000]", "validation": "train[-100000:]"},
        split="validation",
    ),
    "austen": EvaluationSet(source="austen", split="validation", document="novel"),
}


@dataclass(frozen=True)
class EvaluationText:
    """The text to score, and how its scores are averaged.

    Attributes:
        blocks: S tensors (L,) of int64 ids. Under "clean" the last one may be shorter.
        batches: under "radd", the indices of the blocks that are averaged together: the batches of process 0, then
            equally many of the next process, in the order in which the authors' code scores them. (Their lambda_DCE
            gives each row of a batch its own range of lambda.) A block can be in two batches. None: every token weighs
            the same.
        n_bytes: the bytes of the detokenised text in UTF-8, without EOS. None if the tokens do not hold the whole text.
        description: facts for the result file.
    """

    blocks: Sequence[Tensor]
    batches: tuple[tuple[int, ...], ...] | None
    n_bytes: int | None
    description: dict[str, str | int | None]

    @property
    def weights(self) -> Tensor | None:
        """Returns weights (S,) float64 of sum 1. The reported figure is the weighted sum of the blocks' nats per token.

        None: blocks weigh by their number of tokens.
        """
        if self.batches is None:
            return None
        weights = torch.zeros(len(self.blocks), dtype=torch.float64)
        # The mean over processes, which have equally many batches, is the mean over all batches.
        for batch in self.batches:
            for index in batch:
                weights[index] += 1 / (len(self.batches) * len(batch))
        return weights


def load_evaluation_text(
    dataset: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    protocol: str = "clean",
    split: str | None = None,
    config: str | None = None,
    text_column: str | None = None,
    workers: int | None = None,
    special_tokens_in_text: bool = False,
) -> EvaluationText:
    """Loads a data set and cuts it into blocks, by a protocol.

    Args:
        dataset: a name in `EVALUATION_SETS`, or a source for `load_documents`: a local file, folder or pattern, or a
            data set of the Hub. Such a source is not detokenised, and each row (or text file) is a document.
        length: L, tokens in a block.
        protocol: "clean" or "radd", see the head of this file.
        split: the split to score. None: the one that `EVALUATION_SETS` names; for another data set "all" (every split)
            under "clean", and "test" under "radd", as in the authors' code.
        config, text_column: see `load_documents`; only for a data set that is not in `EVALUATION_SETS`.
        workers: processes that tokenise, see `tokenize`. They do not change the blocks.
        special_tokens_in_text: see `encode`.

    Raises:
        ValueError: for an unknown protocol, split or data set; for a `config` or `text_column` given for a set of
            `EVALUATION_SETS`; for a data set without text; under "radd", for text that fills no block.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} must be one of {PROTOCOLS}.")
    if length < 1:
        raise ValueError(f"length={length} must be at least 1.")
    known = EVALUATION_SETS.get(dataset)
    if known is None:
        column = text_column or "text"
        known = EvaluationSet(
            dataset, config=config, column=column, split="all", radd_split="test", document="document"
        )
    elif config is not None or text_column is not None:
        given = text_column if config is None else config
        raise ValueError(f"dataset={dataset!r} has its own configuration and column: leave out {given!r}.")
    radd = protocol == "radd"
    split = split or (radd and known.radd_split) or known.split
    rows = _load(dataset, known, split)
    if not any(text is None or text.strip() for text in rows["text"]):
        raise ValueError(f"split={split!r} of dataset={dataset!r} has no text: {len(rows)} rows, all empty.")
    documents = _to_documents(rows, known.detokenizer, None if radd else known.join)
    tokens = tokenize(documents, tokenizer, workers, special_tokens_in_text)
    description: dict[str, str | int | None] = {
        "dataset": dataset,
        "source": known.source,
        "config": known.config,
        "split": split,
        "protocol": protocol,
        "detokenizer": known.detokenizer and known.detokenizer.__name__.removeprefix("detokenize_"),
        "end_of_text": f"after each {'row' if radd else known.document}",
        "documents": len(documents),
        "length": length,
    }
    if not radd:
        blocks = Blocks(tokens, length, tail=True)
        n_bytes = bytes_of(blocks, tokenizer)
        return EvaluationText(blocks, None, n_bytes, description | {"ids": blocks.fingerprint()})
    cut = _cut_by_batches_of_rows(tokens, length)
    if len(cut) == 0:
        raise ValueError(
            f"length={length} leaves no block of dataset={dataset!r}: protocol='radd' cuts {RADD_ROWS} rows at a "
            "time and drops the rest that fills no block."
        )
    blocks = Blocks(cut, length)  # block i is row i, since every row has L tokens
    description["batches"] = f"{RADD_PROCESSES} processes of {RADD_BATCH_SIZE // RADD_PROCESSES} blocks, equal weights"
    return EvaluationText(blocks, _deal(len(blocks)), None, description | {"ids": blocks.fingerprint()})


def _load(dataset: str, known: EvaluationSet, split: str) -> Dataset:
    """Loads the rows of a split, in the column "text"."""
    if known.splits is None:
        try:
            rows = load_documents(known.source, split, config=known.config, text_column=known.column)
        except ValueError as error:
            error.add_note(f"The data sets known by name are {sorted(EVALUATION_SETS)}.")
            raise
        assert isinstance(rows, Dataset)  # a stream is another type, and none was asked for
        return rows
    if split not in known.splits:
        raise ValueError(f"split={split!r} must be one of {sorted(known.splits)} for dataset={dataset!r}.")
    with readable(known.source):
        if known.files is None:
            rows = load_dataset(known.source, known.config, split=known.splits[split])
        else:
            # Only the split that is asked for: the training split of One Billion Words is 3 GB.
            files = {split: f"{known.source}/{known.files.format(split=known.splits[split])}"}
            rows = load_dataset("parquet", data_files=files, split=split)
        rows = rows.select_columns([known.column])
    return rows if known.column == "text" else rows.rename_column(known.column, "text")


def _to_documents(
    rows: Dataset, detokenizer: Callable[[str], str] | None, join: Callable[[list[str]], list[str]] | None
) -> Dataset:
    """Detokenises each row, and joins rows to documents."""
    if detokenizer is None and join is None:
        return rows

    def convert(batch: dict) -> dict:
        texts = batch["text"]
        if None in texts:
            raise ValueError("a document is null: remove such rows from the data set.")
        if detokenizer is not None:
            texts = [detokenizer(text) for text in texts]
        return {"text": texts if join is None else join(texts)}

    # An explicit fingerprint: `datasets` identifies functions of a module by name, and would not see changed rules.
    parts = [(part.__name__, inspect.getsource(sys.modules[part.__module__])) for part in (detokenizer, join) if part]
    return rows.map(
        convert,
        batched=True,
        batch_size=1000
        if join is None
        else None,  # None: all rows at once, since a document may have any number of rows
        features=Features({"text": Value("string")}),
        new_fingerprint=Hasher.hash((rows._fingerprint, parts)),
        desc="detokenising",
    )


def _cut_by_batches_of_rows(tokens: Dataset, length: int) -> Dataset:
    """Cuts every batch of rows into blocks of L tokens and drops the rest of each batch.

    The result is that of `map(..., batch_size=RADD_ROWS, num_proc=RADD_WORKERS)`, which also divides rows by `shard`,
    but no processes are started.
    """

    def cut(batch: dict) -> dict:
        ids = [token for row in batch["input_ids"] for token in row]
        blocks = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
        return {"input_ids": blocks, "n_bytes": [0] * len(blocks)}

    workers = min(RADD_WORKERS, len(tokens))
    shards = [tokens.shard(workers, index, contiguous=True) for index in range(workers)]
    return concatenate_datasets(
        [shard.map(cut, batched=True, batch_size=RADD_ROWS, features=tokens.features) for shard in shards]
    )


def _deal(n_blocks: int) -> tuple[tuple[int, ...], ...]:
    """Deals shuffled blocks to the batches of all processes. The last batch of a process may be smaller."""
    places, batches = TensorDataset(torch.arange(n_blocks)), list[tuple[int, ...]]()
    for rank in range(RADD_PROCESSES):
        sampler: DistributedSampler = DistributedSampler(places, num_replicas=RADD_PROCESSES, rank=rank)
        batches += map(tuple, BatchSampler(sampler, RADD_BATCH_SIZE // RADD_PROCESSES, drop_last=False))
    return tuple(batches)
