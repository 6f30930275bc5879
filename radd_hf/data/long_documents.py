# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tokenises documents of any length in bounded memory.

A tokenizer needs more than a hundred bytes of memory for a byte of text. So a long document is cut into pieces whose
tokens, joined, are those of the whole. Fast tokenizers first split a text into words and then tokenise each word by
itself. So a cut between two words changes nothing if the words around it stay the same. Three conditions ensure that:

    the tokenizer   splits into words by rules that do not look back beyond the present word (`can_be_cut`)
    the place       is before white space that ends a word
    a comparison    the text around the place has the same tokens in one part and in two

If the tokenizer fails the first condition, or a text has no such place, the document is tokenised whole.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

# Numbers of characters: least length of a piece; compared on either side of a cut; tokenised together.
PIECE, AROUND, AT_ONCE = 2**17, 2**9, 2**20
# Cut before a space between two letters or digits; if there is none, before other white space.
PLACES = (re.compile(r"(?<=\w)(?= \w)"), re.compile(r"(?<=\S)(?=\s)"))
TRIES = 64  # places to compare before the piece is made longer

# Steps of a tokenizer that do not depend on where a text begins. `Prepend` and `Strip`, for example, do.
NORMALIZERS = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Lowercase",
    "StripAccents",
    "BertNormalizer",
    "ByteLevel",
    "Replace",
}
PRE_TOKENIZERS = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Split"),
    *("UnicodeScripts", "Whitespace", "WhitespaceSplit"),
}

Encode = Callable[[list[str]], list[list[int]]]


def encode_documents(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, encode: Callable[[list[str], Any], list[list[int]]]
) -> list[np.ndarray]:
    """Encodes each document as (T,) int32 ids with EOS at the end: the ids that `encode` gives for the whole.

    Args:
        encode: from (texts, tokenizer) to the ids of each text, EOS at the end.
    """
    if None in texts or sum(map(len, texts)) <= AT_ONCE:
        return [np.array(ids, dtype=np.int32) for ids in encode(texts, tokenizer)]

    def ids_of(parts: list[str]) -> list[list[int]]:
        return [ids[:-1] for ids in encode(parts, tokenizer)]

    cut = any(len(text) >= 2 * PIECE for text in texts) and can_be_cut(tokenizer)
    parts_of = [cut_text(text, ids_of) if cut else iter([text]) for text in texts]
    pieces = ((number, piece) for number, parts in enumerate(parts_of) for piece in parts)
    found: list[list[np.ndarray]] = [[] for _ in texts]
    for group in groups(pieces):
        for (number, _), ids in zip(group, ids_of([piece for _, piece in group]), strict=True):
            found[number].append(np.array(ids, dtype=np.int32))
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    return [np.concatenate([*parts, end]) for parts in found]


def groups(pieces: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Groups pieces to tokenise together: several, for the tokenizer's threads, but of bounded total size."""
    group, size = list[tuple[int, str]](), 0
    for number, piece in pieces:
        if group and size + len(piece) > AT_ONCE:
            yield group
            group, size = [], 0
        group.append((number, piece))
        size += len(piece)
    if group:
        yield group


def cut_text(text: str, ids_of: Encode) -> Iterator[str]:
    """Cuts a text into pieces whose ids, joined, are those of the text."""
    start = 0
    while len(text) - start >= 2 * PIECE:
        place = next_place(text, start + PIECE, ids_of)
        if place is None:
            break
        yield text[start:place]
        start = place
    yield text[start:]


def next_place(text: str, start: int, ids_of: Encode) -> int | None:
    """Finds the first place from `start` on where the text may be cut. Returns None if there is none."""
    while start < len(text) - AROUND:
        stop = min(start + PIECE, len(text) - AROUND)
        for pattern in PLACES:
            for count, found in enumerate(pattern.finditer(text, start, stop)):
                if is_between_words(text, found.start(), ids_of):
                    return found.start()
                if count == TRIES:
                    break
        start = stop
    return None


def is_between_words(text: str, place: int, ids_of: Encode) -> bool:
    """Tells whether the text around a place has the same ids in two parts as in one."""
    before, after = text[max(place - AROUND, 0) : place], text[place : place + AROUND]
    first, second, both = ids_of([before, after, before + after])
    return first + second == both


def can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tells whether a tokenizer splits a text into words by rules that do not depend on where the text begins."""
    if not tokenizer.is_fast:
        return False
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizers, splitters = steps(rules["normalizer"]), steps(rules["pre_tokenizer"])
    return (
        bool(splitters)  # without one, the whole text is a word
        and rules["model"].get("dropout") in (None, 0)
        and {step["type"] for step in normalizers} <= NORMALIZERS
        and {step["type"] for step in splitters} <= PRE_TOKENIZERS
        and all(step.get("split", True) for step in splitters)  # otherwise Metaspace makes the text a single word
        # No rule may look back.
        and not any("(?<" in json.dumps(step.get("pattern", "")) for step in (*normalizers, *splitters))
    )


def steps(rule: dict | None) -> list[dict]:
    """Returns a normalizer or pre-tokenizer as the list of its steps."""
    if rule is None:
        return []
    if rule["type"] == "Sequence":
        return [step for part in rule.get("normalizers", rule.get("pretokenizers", [])) for step in steps(part)]
    return [rule]
