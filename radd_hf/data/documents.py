# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""From text to token ids: a data set of documents -> tokenizer -> the ids of each document, EOS at its end.

Everything is a data set of the `datasets` library: read once, tokenised once, kept in its cache under a name made of
the documents and the tokenizer, and mapped into memory from there. `blocks.py` cuts the ids into blocks.
"""

import glob
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import cast

from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..text_radd import check_unicode, encode_text

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"
# lstrip: it takes the space before it, which a token that fills it brings along.
MASK = AddedToken(MASK_TOKEN, lstrip=True, normalized=False, special=True)
# Tokens of the smallest byte-level BPE: 256 bytes, EOS and the mask.
LEAST_VOCABULARY = 258

# Jane Austen's six novels in the order of the shipped file; each begins at the line that is its title.
NOVELS = ("EMMA", "MANSFIELD PARK", "NORTHANGER ABBEY", "Persuasion", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY")
HELD_OUT_NOVEL = "Persuasion"

# Endings of local files, and how `load_dataset` is told to read them.
FORMATS: dict[str, tuple[str, dict]] = {
    ".txt": ("text", {"sample_by": "document"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")

# Documents tokenised together: enough for the tokenizer's threads, few enough to be held even if they are books.
DOCUMENTS_AT_ONCE = 128


def load_documents(
    source: str,
    split: str,
    *,
    config: str | None = None,
    text_column: str = "text",
    held_out: float = 0.05,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """The documents of a data set, in the column "text".

    Args:
        source: "austen", Jane Austen's novels (shipped, public domain, their lines joined to paragraphs); or a local
            file, folder or pattern of .txt (a document a file), .jsonl, .json or .parquet (a document a row), which
            may be compressed; or a data set of the Hub; or the address of such files, `hf://datasets/...` say.
        split: "train", "validation", "all" (both), or another split that the data set has.
        config: of the data set of the Hub, as in `load_dataset`.
        text_column: what holds the text.
        held_out: of a data set without a validation split, what is held out from "train": a fraction of the documents,
            the last ones, or from 1 on their number. A single document gives its last part. A stream, whose end is
            far, gives its first documents and needs their number. 0: nothing.
        streaming: read while training, without a copy on the disk; an `IterableDataset`.

    Raises:
        ValueError: for a source that cannot be read, with the reason; a split or column that it does not have; a
            `held_out` that leaves nothing.
    """
    if held_out < 0 or (held_out >= 1 and held_out != int(held_out)):
        raise ValueError(f"held_out={held_out} must be a fraction in [0, 1) or a whole number of documents.")
    splits = _splits(source, config, streaming)
    if split not in ("train", "validation", "all", *splits):
        known = sorted({"train", "validation", "all", *splits})
        raise ValueError(f"split={split!r} must be one of {known} for dataset={source!r}.")
    if split == "all":
        parts = [splits[part] for part in ("train", "validation") if part in splits]
        return concatenate_datasets([_text(source, part, text_column) for part in parts])
    if split in splits and (split != "train" or "validation" in splits):
        return _text(source, splits[split], text_column)
    if "train" not in splits:
        raise ValueError(f"dataset={source!r} has no split 'train' but {sorted(splits)}: name one of those.")
    documents = _text(source, splits["train"], text_column)
    if held_out == 0:
        if split == "validation":
            raise ValueError(f"dataset={source!r} has no split 'validation', and held_out=0 makes none.")
        return documents
    return _hold_out(source, documents, held_out)[split]


def _splits(source: str, config: str | None, streaming: bool) -> Mapping:
    """Name to data set of every split there is."""
    if source == "austen":
        novels = _novels()
        train = [text for title, text in novels.items() if title != HELD_OUT_NOVEL]
        splits = {"train": train, "validation": [novels[HELD_OUT_NOVEL]]}
        datasets = {name: Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
        return {name: data.to_iterable_dataset() for name, data in datasets.items()} if streaming else datasets
    files = [Path(source)] if "://" in source else _local_files(source)
    path, settings = source, dict[str, object]()
    if files:
        path, settings = _format(source, files)
        settings = settings | ({"data_dir": source} if Path(source).is_dir() else {"data_files": source})
    with readable(source):
        return load_dataset(path, config, streaming=streaming, **settings)


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Whatever `datasets` cannot read is a ValueError that names the source and the innermost reason."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason: BaseException = error
        while (inner := reason.__cause__ or reason.__context__) is not None:
            reason = inner
        raise ValueError(
            f"dataset={source!r} could not be read: {type(reason).__name__}: {' '.join(str(reason).split())} "
            "(a data set is 'austen', a local file, folder or pattern, or a name on the Hub)"
        ) from error


def _local_files(source: str) -> list[Path]:
    path = Path(source)
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(source, recursive=True))  # noqa: PTH207, pattern
    return sorted(file for file in found if file.is_file())


def _format(source: str, files: list[Path]) -> tuple[str, dict]:
    def ending(file: Path) -> str:
        return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix

    formats = {FORMATS[ending(file)][0]: FORMATS[ending(file)] for file in files if ending(file) in FORMATS}
    if len(formats) != 1:
        raise ValueError(
            f"dataset={source!r} must hold files of one kind, ending in {', '.join(FORMATS)} (or compressed: "
            f"{', '.join(COMPRESSED)}); it has {sorted({ending(file) for file in files})}."
        )
    return formats.popitem()[1]


def _text(source: str, documents, column: str):
    """The data set with its text alone, as "text"."""
    if documents.column_names is None:  # a stream says what it has when it is looked at
        with readable(source):
            documents = documents._resolve_features()
    if column not in documents.column_names:
        raise ValueError(f"text_column={column!r} must be one of {documents.column_names} for dataset={source!r}.")
    feature = documents.features[column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(f"text_column={column!r} of dataset={source!r} must hold strings; it holds {feature}.")
    documents = documents.select_columns([column])
    return documents if column == "text" else documents.rename_column(column, "text")


def _hold_out(source: str, documents, held_out: float) -> dict:
    if isinstance(documents, IterableDataset):
        if held_out < 1:
            raise ValueError(
                f"held_out={held_out}: a stream without a validation split needs a whole number of documents, or a "
                "validation set of its own."
            )
        return {"train": documents.skip(int(held_out)), "validation": documents.take(int(held_out))}
    if len(documents) == 1 and held_out < 1:
        text = documents[0]["text"]
        if not text.strip():
            raise ValueError(f"dataset={source!r} is empty.")
        boundary = len(text) - int(len(text) * held_out)
        parts = {"train": text[:boundary], "validation": text[boundary:]}
        return {name: Dataset.from_dict({"text": [part]}) for name, part in parts.items()}
    count = int(held_out) if held_out >= 1 else max(round(len(documents) * held_out), 1)
    if count >= len(documents):
        raise ValueError(f"held_out={held_out} of the {len(documents)} documents of dataset={source!r} leaves none.")
    boundary = len(documents) - count
    return {
        "train": documents.select(range(boundary)),
        "validation": documents.select(range(boundary, len(documents))),
    }


@cache
def _novels() -> dict[str, str]:
    compressed = resources.files("radd_hf.data").joinpath("corpora/austen.txt.gz").read_bytes()
    text = gzip.decompress(compressed).decode("utf-8")
    starts = [0, *(text.index(f"\n{title}\n") + 1 for title in NOVELS[1:]), len(text)]
    return {title: unwrap(text[begin:end]) for title, begin, end in zip(NOVELS, starts, starts[1:], strict=False)}


def unwrap(text: str) -> str:
    """Joins the lines of each paragraph: single line breaks become spaces, as many bytes as before.

    The e-text of the novels breaks its lines near column 70, which is no part of what the author wrote.
    """
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens in all; the last id is the mask, the first EOS.

    Raises:
        ValueError: for fewer tokens than `LEAST_VOCABULARY`, and more than the text can fill.
    """
    if vocab_size < LEAST_VOCABULARY:
        raise ValueError(f"vocab_size={vocab_size} must be at least {LEAST_VOCABULARY}: 256 bytes, EOS and the mask.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the mask comes after
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def checked() -> Iterator[str]:
        for text in texts:
            check_unicode(text, "document")
            yield text

    tokenizer.train_from_iterator(checked(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS_TOKEN, mask_token=MASK)
    if len(fast) != vocab_size:
        raise ValueError(f"vocab_size={vocab_size} is more than this text can fill; it gives {len(fast)} tokens.")
    return fast


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the highest id + 1, which is more than `len(tokenizer)` where ids have holes or do not start at 0."""
    return max(tokenizer.get_vocab().values()) + 1


def add_mask_token(tokenizer: PreTrainedTokenizerBase, mask_token_id: int | None = None) -> int:
    """Gives a tokenizer a mask token if it has none, and returns the id of the mask (50257 for GPT-2).

    The mask comes after all other ids. Where ids have holes, a new token would take the id of another: such a tokenizer
    stays without a mask, and the model alone has one.

    Args:
        mask_token_id: of a model that there is already; a tokenizer that cannot have its mask there stays without.
    """
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    size = vocabulary_size(tokenizer)
    if size == len(tokenizer) and mask_token_id in (None, size):
        tokenizer.add_special_tokens({"mask_token": MASK})
        return cast(int, tokenizer.mask_token_id)
    return size if mask_token_id is None else mask_token_id


def encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, special_tokens_in_text: bool = False
) -> list[list[int]]:
    """Returns the ids of each document, EOS at its end.

    Args:
        special_tokens_in_text: whether the spelling of a special token stands for that token, for text whose documents
            were joined by a spelled EOS. Otherwise its characters are encoded, see [`encode_text`].

    Raises:
        ValueError: for a document that is null; for one that cannot be encoded as it stands, by its first characters.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer has no eos_token, and documents end in it: set one.")
    if None in texts:
        raise ValueError("a document is null: leave such rows out of the data set.")
    ids = encode_text(texts, tokenizer, "document", special_tokens_in_text=special_tokens_in_text)
    return [[*row, tokenizer.eos_token_id] for row in ids]


def tokenize(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    workers: int | None = None,
    special_tokens_in_text: bool = False,
) -> Dataset:
    """The ids of every document, "input_ids", and the bytes of its text, "n_bytes".

    Cached beside the documents under a name made of them and of the tokenizer, so that the same text is tokenised once,
    whoever asks and with however many `workers` (processes; None: this one, with the tokenizer's threads).
    `special_tokens_in_text` is as in [`encode`].
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer={type(tokenizer).__name__} must be a fast one, of the tokenizers library.")

    def encode_batch(batch: dict) -> dict:
        ids = encode(batch["text"], tokenizer, special_tokens_in_text)
        return {"input_ids": ids, "n_bytes": [len(text.encode()) for text in batch["text"]]}

    # Given by hand: `datasets` would name the function, which changes with what the tokenizer was last called for.
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    name = Hasher.hash((documents._fingerprint, rules, tokenizer.eos_token_id, special_tokens_in_text))
    width = "uint16" if vocabulary_size(tokenizer) <= 2**16 else "int32"
    return documents.map(
        encode_batch,
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        remove_columns=documents.column_names,
        features=Features({"input_ids": List(Value(width)), "n_bytes": Value("int64")}),
        new_fingerprint=name,
        num_proc=workers,
        desc="tokenising",
    )
