# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""From text to blocks of token ids: documents -> tokenizer -> ids with EOS after each document -> (S, L) blocks.

Shapes: S sequences, L length.
"""

import gzip
import hashlib
import re
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"

# Jane Austen's six novels in the order of the shipped file; each begins at the line that is its title.
NOVELS = ("EMMA", "MANSFIELD PARK", "NORTHANGER ABBEY", "Persuasion", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY")
HELD_OUT_NOVEL = "Persuasion"


def load_documents(source: str, split: str) -> list[str]:
    """The documents of a data set.

    Args:
        source: "austen", Jane Austen's novels (shipped, public domain, their lines joined to paragraphs), or the path
            of a UTF-8 text file, taken as it is.
        split: "train", "validation" or "all". Of the novels, Persuasion is the validation set; of a file, its last 5 %.
    """
    if split not in ("train", "validation", "all"):
        raise ValueError(f"split={split!r} must be 'train', 'validation' or 'all'.")
    if source == "austen":
        splits = {title: "validation" if title == HELD_OUT_NOVEL else "train" for title in NOVELS}
        return [text for title, text in _novels().items() if split in ("all", splits[title])]
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"dataset={source!r} must be 'austen' or the path of a text file; there is no such file.")
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError(f"dataset={source!r} is empty.")
    boundary = len(text) - len(text) // 20
    return [{"train": text[:boundary], "validation": text[boundary:], "all": text}[split]]


def _novels() -> dict[str, str]:
    compressed = resources.files("radd_hf").joinpath("corpora/austen.txt.gz").read_bytes()
    text = gzip.decompress(compressed).decode("utf-8")
    starts = [0, *(text.index(f"\n{title}\n") + 1 for title in NOVELS[1:]), len(text)]
    return {title: unwrap(text[begin:end]) for title, begin, end in zip(NOVELS, starts, starts[1:], strict=False)}


def unwrap(text: str) -> str:
    """Joins the lines of each paragraph: single line breaks become spaces, as many bytes as before.

    The e-text of the novels breaks its lines near column 70, which is no part of what the author wrote.
    """
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def train_tokenizer(documents: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens in all; the last id is the mask, the first EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the mask comes after
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS_TOKEN, mask_token=MASK_TOKEN)
    if len(fast) != vocab_size:
        raise ValueError(f"vocab_size={vocab_size} is more than this text can fill; it gives {len(fast)} tokens.")
    return fast


def add_mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Gives a tokenizer a mask token if it has none, and returns its id (50257 for GPT-2)."""
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    return tokenizer.mask_token_id


def encode(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """All documents as one row of ids (T,), EOS after each."""
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer has no eos_token, and documents end in it: set one.")
    ids: list[int] = []
    for encoded in tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    return torch.tensor(ids)


def pack(ids: Tensor, length: int) -> Tensor:
    """Blocks (S, L) for training; the remainder, which fills no block, is left out."""
    if len(ids) < length:
        raise ValueError(f"length={length} is longer than the data, {len(ids)} tokens; it must be shorter.")
    return ids[: len(ids) // length * length].view(-1, length)


def cut(ids: Tensor, length: int) -> list[Tensor]:
    """Blocks (L,) for evaluation, the last one shorter where the text ends: every token is in one."""
    return list(ids.split(length))


def fingerprint(ids: Tensor) -> str:
    """Twelve hexadecimal digits that tell data sets apart, in results and when a run is resumed."""
    return hashlib.sha256(ids.to(torch.int32).numpy().tobytes()).hexdigest()[:12]
