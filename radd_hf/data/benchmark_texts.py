# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The texts of zero-shot perplexity: a name -> rows of the Hub -> detokenised documents -> the blocks that are scored.

What a perplexity means depends on how the text was cut, so each way to cut is a protocol with a name.

    clean   Documents as their source has them, EOS at the end of each, laid end to end and cut every L tokens, the last
            block at its true length: every token counts once. Of WikiText a document is an article, of the Penn
            Treebank, whose sentences stand in the order of the newspaper, the whole split, of the other sets a row.
    radd    What the authors' code scores, flaws included, to be held against their table (github ML-GSAI/RADD at
            60b772d, `data.py` and `evaluation_modeling.py`). EOS after every row, which in WikiText is a line, an empty
            one too. Rows are shared among 8 workers, contiguously, and cut by batches of 1000; what fills no block at
            the end of a batch is dropped. The blocks are shuffled by seed 0 and dealt to 4 processes, some of them
            twice so that all get as many, and scored by 4 in each; the mean over batches is reported, so that a block
            in an incomplete batch weighs more. WikiText-2 is scored on its training split, the others on their test
            split. Their table has the first five sets below.

Both detokenise each row by itself. Bytes are counted of the detokenised text, which the model sees: bits per byte of
a set with a detokenizer are not those of the file that was published.

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

# Of the authors' protocol: `data.py` 119 and 196 (workers; rows is the default of `map`), `evaluation_modeling.py` 127
# and 132 (blocks scored together, by all processes), `data.py` 255 (blocks of one process).
RADD_WORKERS = 8
RADD_ROWS = 1000
RADD_PROCESSES = 4
RADD_BATCH_SIZE = 16

# A row that may begin an article: its title between single equals signs, "= = ... = =" being a section.
TITLE = re.compile(r"= [^=].* =")


def articles(rows: list[str]) -> list[str]:
    """Returns the articles of WikiText from its detokenised lines, line breaks restored.

    A title stands between empty lines; lines of formulas that look like one do not. So counted, the test and validation
    splits have 60 articles each, as the paper says (arXiv:1609.07843, Table 1); without the empty lines, 62 and 60.
    """
    lines = ["", *(row.strip() for row in rows), ""]
    inner = range(1, len(lines) - 1)
    titles = [at for at in inner if TITLE.fullmatch(lines[at]) and not lines[at - 1] and not lines[at + 1]]
    texts = ("\n".join(lines[start:stop]).strip() for start, stop in pairwise([0, *titles, len(lines)]))
    return [text for text in texts if text]


def running_text(rows: list[str]) -> list[str]:
    """Joins all rows to one document, a line each."""
    return ["\n".join(row.strip() for row in rows)]


@dataclass(frozen=True)
class EvaluationSet:
    """A data set: where it is, and what its rows are.

    source: a data set of the Hub that `load_dataset` reads without code of its own; with `files`, the folder that they
        are in; without `splits`, what `load_documents` reads.
    splits: name to what `load_dataset` calls it, which may be a part of another; None: those of `load_documents`.
    files: where the parquet files of a {split} are. For repositories whose main branch has a loading script, which
        `datasets` does not run since version 4: the Hub converted them, and keeps the result on a branch.
    split, radd_split: which one is scored when none is named; radd_split None: the same.
    document: what ends in EOS under "clean"; rows are joined to it by `join`, None where it is a row.
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

# The addresses are where files, splits and columns were seen.
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
    # (column, rows: train 42068, test 3761, validation 3370); the converted files are read from there by public code
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
    # Its last 100000 documents are what MDLM validates on (kuleshov-group/mdlm, dataloader.py 350).
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

    blocks: S tensors of int64 ids, (L,) or, the last one under "clean", shorter.
    batches: of the protocol "radd", the indices of the blocks that are averaged together: the batches of process 0,
        then those of the next, which has as many, in the order in which the authors' code scores them (their lambda_DCE
        gives each place of a batch its own range of lambda). A block can be in two. None: every token weighs the same.
    n_bytes: of the detokenised text, UTF-8, EOS not counted; None where the tokens do not hold all of it.
    description: for the result file.
    """

    blocks: Sequence[Tensor]
    batches: tuple[tuple[int, ...], ...] | None
    n_bytes: int | None
    description: dict[str, str | int | None]

    @property
    def weights(self) -> Tensor | None:
        """Gives (S,) float64, sum 1: the reported nats per token are the sum of w times each block's nats per token.

        None: blocks weigh by their tokens.
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
        dataset: a name in `EVALUATION_SETS`, or whatever `load_documents` reads: a local file, folder or pattern, or a
            data set of the Hub. Such a one is not detokenised, and each of its rows (or text files) is a document.
        length: L, tokens in a block.
        protocol: "clean" or "radd", as told above.
        split: None: the one that `EVALUATION_SETS` names; of another data set "all" (every split that it has) under
            "clean" and "test" under "radd", as in the authors' code.
        config, text_column: of a data set that is not in `EVALUATION_SETS`, as in `load_documents`.
        workers: processes that tokenise, as in `tokenize`; the blocks are the same.
        special_tokens_in_text: as in `encode`.

    Raises:
        ValueError: for an unknown protocol, split or data set; a `config` or `text_column` of a set that has its own;
            no text, or, under "radd", none that fills a block.
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
        raise ValueError(f"dataset={dataset!r} has a configuration and a column of its own: leave out {given!r}.")
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
            f"length={length} leaves no block of dataset={dataset!r}: protocol='radd' drops what fills none of every "
            f"{RADD_ROWS} rows."
        )
    blocks = Blocks(cut, length)  # whose block i is row i, every row being L tokens long
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
        assert isinstance(rows, Dataset)  # a stream is another kind, and not asked for
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
    """Detokenises each row and joins rows to documents."""
    if detokenizer is None and join is None:
        return rows

    def convert(batch: dict) -> dict:
        texts = batch["text"]
        if None in texts:
            raise ValueError("a document is null: leave such rows out of the data set.")
        if detokenizer is not None:
            texts = [detokenizer(text) for text in texts]
        return {"text": texts if join is None else join(texts)}

    # Given by hand: `datasets` tells functions of a module by their names, and would not see that their rules changed.
    parts = [(part.__name__, inspect.getsource(sys.modules[part.__module__])) for part in (detokenizer, join) if part]
    return rows.map(
        convert,
        batched=True,
        batch_size=1000 if join is None else None,  # None: all rows at once, since a document may have any number
        features=Features({"text": Value("string")}),
        new_fingerprint=Hasher.hash((rows._fingerprint, parts)),
        desc="detokenising",
    )


def _cut_by_batches_of_rows(tokens: Dataset, length: int) -> Dataset:
    """Cuts every batch of rows into blocks of L tokens and drops the rest of each batch.

    Equal to `map(..., batch_size=RADD_ROWS, num_proc=RADD_WORKERS)`, which shares rows out by `shard` as well, but
    starts no processes.
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
    """Deals shuffled blocks to batches of all processes; the last batch of a process may be smaller."""
    places, batches = TensorDataset(torch.arange(n_blocks)), list[tuple[int, ...]]()
    for rank in range(RADD_PROCESSES):
        sampler: DistributedSampler = DistributedSampler(places, num_replicas=RADD_PROCESSES, rank=rank)
        batches += map(tuple, BatchSampler(sampler, RADD_BATCH_SIZE // RADD_PROCESSES, drop_last=False))
    return tuple(batches)
