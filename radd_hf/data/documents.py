# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Turns text into token ids: a data set of documents -> tokenizer -> the ids of each document, EOS at its end.

Text and ids are data sets of the `datasets` library. They are read once, tokenised once, and kept in its cache under a
name made from the documents and the tokenizer. From there they are mapped into memory. `blocks.py` cuts the ids into
blocks.
"""

import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse
from urllib.request import url2pathname

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.fingerprint import Hasher
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..text_radd import check_unicode, encode_text
from .files import (
    ENDINGS,
    KINDS,
    Refused,
    Unreadable,
    ending_of,
    find_files,
    fingerprint_files,
    looks_local,
    read_files,
    table_of,
)
from .long_documents import encode_documents

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"
# lstrip: the mask includes the space before it, since the token that fills it brings that space.
MASK = AddedToken(MASK_TOKEN, lstrip=True, normalized=False, special=True)
# Tokens of the smallest byte-level BPE: 256 bytes, EOS and the mask.
LEAST_VOCABULARY = 258

# Jane Austen's six novels in the order of the shipped file. Each begins at the line with its title.
NOVELS = ("EMMA", "MANSFIELD PARK", "NORTHANGER ABBEY", "Persuasion", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY")
HELD_OUT_NOVEL = "Persuasion"

# The builder of `load_dataset` and its settings for each kind of file at an address.
BUILDERS: dict[str, tuple[str, dict]] = {
    "text": ("text", {"sample_by": "document"}),
    "json": ("json", {}),
    "parquet": ("parquet", {}),
}

# Documents tokenised together: enough for the tokenizer's threads, and few enough to hold in memory, even books.
DOCUMENTS_AT_ONCE = 128
# Fewer documents if they are longer than half a megabyte on average: at most about this many bytes together.
TEXT_AT_ONCE = 2**26


def check_held_out(held_out: float) -> None:
    """Raises a ValueError if `held_out` is neither a fraction in [0, 1) nor a whole number of documents."""
    if not (0 <= held_out < 1 or (1 <= held_out < math.inf and held_out == int(held_out))):
        raise ValueError(f"held_out={held_out} must be a fraction in [0, 1) or a whole number of documents.")


def load_documents(
    source: str,
    split: str,
    *,
    config: str | None = None,
    text_column: str = "text",
    held_out: float = 0.05,
    streaming: bool = False,
    argument: str = "dataset",
) -> Dataset | IterableDataset:
    """Loads the documents of a data set, in the column "text".

    Args:
        source: one of
            "austen": Jane Austen's novels (shipped, public domain, with the lines of a paragraph joined);
            a local file, folder or pattern of .txt (a document for each file), .jsonl, .json or .parquet (a document
            for each row), which may be compressed, see `data/files.py`;
            a folder written by `save_to_disk` of `datasets`;
            a data set of the Hub, or an address of such files, such as `hf://datasets/...`.
        split: "train", "validation", "all" (every split together), or another split of the data set.
        config: configuration of a data set of the Hub, as in `load_dataset`; for a local folder, a subfolder.
        text_column: the column that holds the text.
        held_out: the part to hold out from "train" if there is no validation split: a fraction of the documents, or
            from 1 on a number of documents. They are the last ones; a single document gives its last part. A stream
            gives its first documents, since its end is far, and needs a number. 0: nothing.
        streaming: read while training, without a copy on disk. The result is an `IterableDataset`.
        argument: the name of the caller's argument for `source`, for messages.

    Raises:
        ValueError: if the source cannot be read, with the file, the place in it and the reason; if it does not have
            the split or the column; if `held_out` leaves nothing; if all documents are empty.
    """
    check_held_out(held_out)
    splits = open_splits(source, config=config, text_column=text_column, streaming=streaming, argument=argument)
    documents: Dataset | IterableDataset
    name = f"{argument}={source!r}"
    if split == "all":
        documents = concatenate_datasets([read() for read in splits.values()])
    elif split == "validation" and split not in splits and held_out == 0:
        raise ValueError(
            f"{name} has no split 'validation', and held_out=0 makes none: pass a data set to validate on."
        )
    elif split in ("train", "validation") and "train" in splits and "validation" not in splits and held_out > 0:
        documents = _hold_out(name, splits["train"](), held_out)[split]
    elif split in splits:
        documents = splits[split]()
    else:
        raise ValueError(f"{name} has no split {split!r}; it has {sorted({*splits, 'all'})}.")
    return check_text(documents, name)


def stream_fingerprint(source: str, config: str | None) -> str:
    """Returns a name for the text of a stream without reading it: local files by their names, sizes and ends."""
    path = Path(source).expanduser() / (config or "")
    found = None if source == "austen" or "://" in source else find_files(path, source)
    if found is None:
        return f"{source} {config}" if config else source
    return fingerprint_files([file for files in found.splits.values() for file in files])


def load_validation(source: str, *, config: str | None = None, text_column: str = "text", argument: str) -> Dataset:
    """Loads the documents of a data set to validate on: its split "validation", else "test", else all."""
    splits = open_splits(source, config=config, text_column=text_column, streaming=False, argument=argument)
    read = splits.get("validation") or splits.get("test")
    documents = read() if read else concatenate_datasets([read() for read in splits.values()])
    return check_text(documents, f"{argument}={source!r}")


def open_splits(
    source: str, *, config: str | None, text_column: str, streaming: bool, argument: str
) -> dict[str, Callable[[], Any]]:
    """Returns a function for each split that reads its documents. Nothing is read before it is called."""
    name = f"{argument}={source!r}"
    if source.startswith("file://"):
        source = url2pathname(urlparse(source).path)
    readers: dict[str, Callable[[], Any]] | None = None
    column = text_column
    if source == "austen":
        _refuse_config(name, config)
        readers = {split: partial(_shipped, split) for split in ("train", "validation")}
    elif "://" not in source:
        with readable(source, argument):
            readers, column = _local_splits(name, source, config, text_column, streaming)
    with readable(source, argument):
        found = _splits_of_the_hub(name, source, config, streaming) if readers is None else readers

    def reading(read: Callable[[], Any]) -> Callable[[], Any]:
        def read_text() -> Any:
            with readable(source, argument):
                documents = read()
                if streaming and isinstance(documents, Dataset):
                    documents = documents.to_iterable_dataset()
                if documents.column_names is None:  # a stream finds its columns by reading its start
                    documents = documents._resolve_features()
            return _text(name, documents, column)

        return read_text

    return {split: reading(read) for split, read in found.items()}


def _local_splits(
    name: str, source: str, config: str | None, text_column: str, streaming: bool
) -> tuple[dict[str, Callable[[], Any]] | None, str]:
    """Returns a reader for each split of local files, or None if no file has this name; and the column of the text."""
    path = Path(source).expanduser()
    if not source:
        raise Refused(f"{name} must name a data set.")
    if path.is_dir() and config is not None:
        folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
        if config not in folders:
            raise Refused(f"{name} has no configuration {config!r}: it must be a subfolder, one of {folders}.")
        path, name = path / config, f"{name} with the configuration {config!r}"
    if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):  # written by `save_to_disk`
        saved = load_from_disk(str(path))
        splits = (
            {str(split): data for split, data in saved.items()} if isinstance(saved, DatasetDict) else {"train": saved}
        )
        return {split: partial(lambda data: data, data) for split, data in splits.items()}, text_column
    found = find_files(path, name)
    if found is None:
        if looks_local(source):
            raise Refused(f"{name} could not be read: no file or folder has this name, and none matches it.")
        return None, text_column
    if not path.is_dir():
        _refuse_config(name, config)
    splits = {
        split: partial(read_files, found.kind, files, text_column, streaming) for split, files in found.splits.items()
    }
    return splits, "text"


def _splits_of_the_hub(name: str, source: str, config: str | None, streaming: bool) -> dict[str, Callable[[], Any]]:
    """Returns a reader for each split of a data set of the Hub, or of files at an address."""
    path, settings = source, dict[str, Any]()
    if "://" in source:
        kind = KINDS.get(ending_of(Path(source)))
        if kind is None:
            raise Refused(f"{name} must be the address of a file that ends in {ENDINGS}.")
        path, settings = BUILDERS[kind]
        settings = settings | {"data_files": source}
    splits = load_dataset(path, config, streaming=streaming, **settings)
    return {str(split): partial(splits.get, split) for split in splits}


def _refuse_config(name: str, config: str | None) -> None:
    if config is not None:
        raise Refused(
            f"{name} has no configuration {config!r}: only a folder or a data set of the Hub has configurations."
        )


def _shipped(split: str) -> Dataset:
    novels = _novels()
    texts = [text for title, text in novels.items() if (title == HELD_OUT_NOVEL) == (split == "validation")]
    return Dataset.from_dict({"text": texts})


@contextmanager
def readable(source: str, argument: str = "dataset") -> Iterator[None]:
    """Turns every failure to read into a ValueError that names the source and the innermost reason."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # other libraries and damaged files can raise anything
        reason: BaseException = error
        while not isinstance(reason, Unreadable) and (inner := reason.__cause__ or reason.__context__) is not None:
            reason = inner
        if isinstance(reason, Unreadable):
            raise ValueError(f"{argument}={source!r} could not be read: {reason}") from error
        raise ValueError(
            f"{argument}={source!r} could not be read: {type(reason).__name__}: {' '.join(str(reason).split())} "
            "(a data set is 'austen', a local file, folder or pattern, or a name on the Hub)"
        ) from error


def _text(name: str, documents: Any, column: str) -> Any:
    """Returns the data set with only its text, in the column "text"."""
    if column not in documents.column_names:
        raise ValueError(f"text_column={column!r} must be one of {documents.column_names} for {name}.")
    feature = documents.features[column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(f"text_column={column!r} of {name} must hold strings; it holds {feature}.")
    documents = documents.select_columns([column])
    return documents if column == "text" else documents.rename_column(column, "text")


def check_text(documents: Any, name: str) -> Any:
    """Returns the documents. Raises a ValueError if one is null or all are empty. A stream is not checked."""
    if isinstance(documents, IterableDataset):
        return documents
    column = documents.data.column("text")
    if column.null_count and (null := next((row for row, text in enumerate(documents["text"]) if text is None), None)):
        raise ValueError(f"row {null + 1} of {name} is null: remove such rows.")
    if not any(text.strip() for text in documents["text"]):
        raise ValueError(f"{name} has no text: {len(documents)} documents, all empty.")
    return documents


def _hold_out(name: str, documents: Any, held_out: float) -> dict:
    if isinstance(documents, IterableDataset):
        if held_out < 1:
            raise ValueError(
                f"held_out={held_out}: a stream without a validation split needs a whole number of documents, or a "
                "data set to validate on."
            )
        return {"train": documents.skip(int(held_out)), "validation": documents.take(int(held_out))}
    if len(documents) == 1 and held_out < 1:
        text = documents[0]["text"]
        boundary = len(text) - int(len(text) * held_out)
        parts = {"train": text[:boundary], "validation": text[boundary:]}
        if text.strip() and not all(part.strip() for part in parts.values()):
            raise ValueError(f"held_out={held_out} of the {len(text)} characters of {name} leaves an empty part.")
        return {split: Dataset(table_of([part])) for split, part in parts.items()}
    count = int(held_out) if held_out >= 1 else max(round(len(documents) * held_out), 1)
    if count >= len(documents):
        raise ValueError(f"held_out={held_out} of the {len(documents)} documents of {name} leaves none.")
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
    """Joins the lines of each paragraph. Single line breaks become spaces, so the number of bytes stays the same.

    The e-text of the novels breaks lines near column 70. The author did not write these breaks.
    """
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def train_tokenizer(texts: Iterable[str], vocab_size: int, exact: bool = True) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of `vocab_size` tokens, including EOS, the first id, and the mask, the last one.

    Args:
        exact: whether to refuse a text that gives fewer tokens.

    Raises:
        ValueError: if `vocab_size` is below `LEAST_VOCABULARY`; with `exact`, if the text gives fewer tokens.
    """
    if vocab_size < LEAST_VOCABULARY:
        raise ValueError(f"vocab_size={vocab_size} must be at least {LEAST_VOCABULARY}: 256 bytes, EOS and the mask.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the mask is added later
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
    if exact and len(fast) != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is more than this text gives: pass at most {len(fast)}, or leave it out."
        )
    return fast


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the highest id + 1. It exceeds `len(tokenizer)` if ids are missing or do not start at 0."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_with_mask(tokenizer: PreTrainedTokenizerBase, mask_token_id: int) -> int:
    """Returns the number of ids that a model needs for a tokenizer and a mask. The mask may come after all ids."""
    return max(vocabulary_size(tokenizer), mask_token_id + 1)


def add_mask_token(tokenizer: PreTrainedTokenizerBase, mask_token_id: int | None = None) -> int:
    """Gives a tokenizer a mask token if it has none, and returns the id of the mask (50257 for GPT-2).

    The mask comes after all other ids. If ids are missing in between, a new token would take the id of another one. So
    such a tokenizer stays without a mask, and only the model has one.

    Args:
        mask_token_id: the mask of an existing model. A tokenizer that cannot have its mask at this id stays without.
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
        special_tokens_in_text: whether a special token spelled in the text becomes that token, for text whose
            documents were joined by a spelled EOS. Otherwise its characters are encoded, see [`encode_text`].

    Raises:
        ValueError: if a document is null or cannot be encoded. The message shows its first characters.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer has no eos_token, but documents must end with one: set it.")
    if None in texts:
        raise ValueError("a document is null: remove such rows from the data set.")
    ids = encode_text(texts, tokenizer, "document", special_tokens_in_text=special_tokens_in_text)
    return [[*row, tokenizer.eos_token_id] for row in ids]


def tokenize(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    workers: int | None = None,
    special_tokens_in_text: bool = False,
) -> Dataset:
    """Encodes every document into its ids, "input_ids", and the number of bytes of its text, "n_bytes".

    The result is cached beside the documents, under a name made from them and the tokenizer. So a text is tokenised
    only once, whatever the number of workers.

    Args:
        workers: number of processes. None: this process, with the tokenizer's threads.
        special_tokens_in_text: see [`encode`].

    Raises:
        ValueError: if the tokenizer is not a fast one; see also [`encode`].
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer={type(tokenizer).__name__} must be a fast tokenizer, of the library tokenizers.")

    def encode_batch(batch: dict) -> dict:
        ids = encode_documents(batch["text"], tokenizer, partial(encode, special_tokens_in_text=special_tokens_in_text))
        return {"input_ids": ids, "n_bytes": [len(text.encode()) for text in batch["text"]]}

    # An explicit name: `datasets` would hash the function, whose tokenizer keeps state from its last call.
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    name = Hasher.hash((documents._fingerprint, rules, tokenizer.eos_token_id, special_tokens_in_text))
    width = "uint16" if vocabulary_size(tokenizer) <= 2**16 else "int32"
    return documents.map(
        encode_batch,
        batched=True,
        batch_size=max(min(DOCUMENTS_AT_ONCE, TEXT_AT_ONCE * len(documents.data) // max(documents.data.nbytes, 1)), 1),
        remove_columns=documents.column_names,
        features=Features({"input_ids": List(Value(width)), "n_bytes": Value("int64")}),
        new_fingerprint=name,
        num_proc=workers,
        desc="tokenising",
    )
