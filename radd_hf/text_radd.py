# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Encodes text with blanks as token ids, and decodes them.

    "It was [MASK:4] of spring."  ->  ids, masks in the blank  (encode_blanks)

Text is text: where it spells a special token, its characters are encoded ([`encode_text`]). Text behind other text has
the ids that it would have there, whatever the tokenizer does at the beginning of a text ([`encode_after_text`]).

Shapes: L tokens, K blanks.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

# Stand before a text that continues another; several, since the text's first token must not swallow them, and a small
# vocabulary has few characters.
BEFORE = ("a", "0", ".", "1")
# Characters of a text that is read at once; a tokenizer takes some 200 bytes for each.
MAX_CHARACTERS = 2**20
# Special tokens whose spelling in a text was reported.
REPORTED: set[str] = set()


def check_tokenizer(tokenizer: Any) -> None:
    """Raises a TypeError for what is no tokenizer, such as the name of one."""
    if not callable(tokenizer):
        raise TypeError(f"tokenizer={tokenizer!r} must be a tokenizer of transformers, loaded.")


def encode_text(
    texts: Sequence[str], tokenizer: Any, name: str = "text", *, special_tokens_in_text: bool = False
) -> list[list[int]]:
    """Returns the ids of each text: nothing is added, and what spells a special token is encoded as its characters.

    Args:
        name: what a text is, for messages.
        special_tokens_in_text: whether the spelling of a special token stands for that token. The mask's never does.

    Raises:
        ValueError: for a text with a lone surrogate; for one that spells a special token whose characters the tokenizer
            cannot encode, and for one that a tokenizer without an unknown token cannot.
    """
    for text in texts:
        check_unicode(text, name)
    if not texts:
        return []
    with _unknown_named(name, texts[0]):
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    special = special_ids(tokenizer)
    return [
        # Most texts spell none, and are encoded once.
        ids if special.isdisjoint(ids) else _encode_spelled(text, ids, tokenizer, name, special_tokens_in_text)
        for text, ids in zip(texts, rows, strict=True)
    ]


def _encode_spelled(text: str, ids: list[int], tokenizer: Any, name: str, special_tokens_in_text: bool) -> list[int]:
    """Returns the ids of a text whose `ids` hold special tokens, which it spells or which stand for unknown text."""
    unknown, special = tokenizer.unk_token_id, special_ids(tokenizer)
    if special_tokens_in_text:
        if tokenizer.mask_token_id in ids:
            raise ValueError(
                f"{name}={quoted(text)} spells the mask, {_place(text, tokenizer.mask_token)}; and "
                "special_tokens_in_text=True would mask the text there: take the mask or the option out."
            )
        return ids
    with _unknown_named(name, text):
        split = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    if special.isdisjoint({*ids} - {unknown}) and split.count(unknown) >= ids.count(unknown):
        _report_unknown(text, ids.count(unknown), tokenizer, name)
        return ids  # it spells none, or the unknown token, whose characters are as unknown
    spelled = {token: tokenizer.convert_ids_to_tokens(token) for token in special.intersection(ids)}
    read = _without_spaces(_decode(split, tokenizer))  # as WordPiece puts spaces between characters
    lost = special.intersection(split) | {each for each, word in spelled.items() if _without_spaces(word) not in read}
    if lost - {unknown}:
        word = tokenizer.convert_ids_to_tokens(min(lost - {unknown}))
        raise ValueError(
            f"{name}={quoted(text)} spells the special token {_place(text, word)}, and the tokenizer "
            "has no tokens for its characters: change it in the text."
        )
    new = set(spelled.values()) - REPORTED
    if new:
        REPORTED.update(new)
        logger.warning(
            f"{name}={quoted(text)} spells {', '.join(_place(text, word) for word in sorted(new, key=text.find))}. "
            "Text is text: these characters are read as they stand, not as the special token, here and elsewhere. "
            "(Scripts that read data take --special_tokens_in_text true.)"
        )
    return split


@contextmanager
def _unknown_named(name: str, text: str) -> Iterator[None]:
    """Turns the bare exception of a tokenizer without an unknown token into a ValueError that names the text."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(f"{name}={quoted(text)} has text that the tokenizer cannot encode: {error}") from error


def _report_unknown(text: str, count: int, tokenizer: Any, name: str) -> None:
    """Says once that the tokenizer does not know characters of texts."""
    word = tokenizer.unk_token
    if count and f"unknown {word}" not in REPORTED:
        REPORTED.add(f"unknown {word}")
        logger.warning(
            f"{name}={quoted(text)} has text that the tokenizer does not know, and reads as {count} {word}. The model "
            "does not see what stands there, here and in other texts, and a likelihood is not that of the text."
        )


def special_ids(tokenizer: Any) -> set[int]:
    """Returns the ids that stand for no characters of a text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})  # has reserved tokens, which have no role
    return {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}


def check_unicode(text: str, name: str) -> None:
    """Raises a ValueError for a text with a lone surrogate, which Python makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}={quoted(text)} has the lone surrogate {text[error.start]!r} at character {error.start}, which is "
            "no character of Unicode: decode the text from its true encoding."
        ) from None


def check_characters(text: str, name: str, most: int = MAX_CHARACTERS) -> None:
    """Raises a ValueError for a text that is too long to be read at once."""
    if len(text) > most:
        raise ValueError(f"{name}={quoted(text)} has {len(text)} characters; it must have at most {most}.")


def quoted(text: str) -> str:
    """Shows the beginning of a text in a message."""
    return repr(text) if len(text) <= 60 else f"{text[:57]!r} ..."


def _place(text: str, word: str) -> str:
    found = text.find(word)
    return f"{word!r}" if found < 0 else f"{word!r} at character {found}"


def _without_spaces(text: str) -> str:
    return "".join(text.casefold().split())


def encode_after_text(texts: Sequence[str], tokenizer: Any, name: str = "text") -> list[list[int]]:
    """Returns the ids of each text as they are where other text stands before it.

    Alone, a text begins with a space for a tokenizer of SentencePiece's habit, and with a word for WordPiece. Where it
    would read so, it is encoded behind a character whose tokens are then cut off.

    Raises:
        ValueError: as [`encode_text`], and for a text that the tokenizer cannot continue another with.
    """
    rows = encode_text(texts, tokenizer, name)
    return [_encode_after_text(text, ids, tokenizer, name) for text, ids in zip(texts, rows, strict=True)]


def _encode_after_text(text: str, alone: list[int], tokenizer: Any, name: str) -> list[int]:
    """Returns the ids of a text that follows other text; `alone` are its ids by itself."""
    heads, wholes = list[list[int]](), list[list[int]]()
    for before in BEFORE:
        with suppress(ValueError):  # of a tokenizer that has no unknown token
            (head,), (whole,) = encode_text([before], tokenizer), encode_text([before + text], tokenizer, name)
            heads.append(head)
            wholes.append(whole)
    if not heads:
        raise ValueError(f"{name}={quoted(text)} cannot stand directly behind other text. Begin it with a space.")
    rests = [whole[len(head) :] for head, whole in zip(heads, wholes, strict=True) if whole[: len(head)] == head]
    wanted = _decode(wholes[0], tokenizer)
    for ids in (alone, *rests):
        if _decode(heads[0] + ids, tokenizer) == wanted:
            return ids
    raise ValueError(
        f"{name}={quoted(text)} cannot stand directly behind other text: behind {BEFORE[0]!r} the tokenizer reads "
        f"{quoted(_decode(heads[0] + alone, tokenizer))}. Begin it with a space."
    )


def decode_after_text(rows: Sequence[Sequence[int]], tokenizer: Any, **settings: Any) -> list[str]:
    """Returns the text of each row of ids as it is where other text stands before it: a word keeps its space.

    Args:
        settings: for `tokenizer.decode`.
    """
    head = next((ids for before in BEFORE if (ids := _head(tokenizer, before))), [])
    before = _decode(head, tokenizer)
    return [_decode([*head, *ids], tokenizer, **settings).removeprefix(before) for ids in rows]


def _head(tokenizer: Any, before: str) -> list[int]:
    """Returns the ids of a text; none where the tokenizer has none."""
    with suppress(ValueError):
        return encode_text([before], tokenizer)[0]
    return []


def decode_span(ids: Sequence[int], begin: int, end: int, tokenizer: Any, **settings: Any) -> str:
    """Returns what the ids from `begin` to `end` (exclusive) add to the text of all ids."""
    if begin == 0:
        return _decode(ids[:end], tokenizer, **settings)
    return decode_after_text([ids[begin:end]], tokenizer, **settings)[0]


def _decode(ids: Sequence[int], tokenizer: Any, **settings: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False, **settings)


def check_tokenizer_mask(tokenizer: Any, mask_token_id: int) -> None:
    """Raises a ValueError for a tokenizer that has its mask at another id than the model; it may have none."""
    theirs = getattr(tokenizer, "mask_token_id", None)
    if theirs is not None and theirs != mask_token_id:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has its mask {tokenizer.mask_token!r} at id {theirs}, and the model "
            f"at {mask_token_id}: it must be the tokenizer that the model was trained with."
        )


# ---------------------------------------------------------------------------------------------------------
# From text with blanks
# ---------------------------------------------------------------------------------------------------------

# Finds the beginning of a blank in any spelling, so that a slip is an error and not text.
BLANK_BEGINS = r"\[(?i:MASK)"
BLANK = re.compile(r"\[MASK(?::([0-9]{1,9}))?\]")
# Longer than any model's text: a typing error must not fill the memory. Tokens of all blanks of a text together.
MAX_BLANKS = 2**16


def encode_blanks(text: str, tokenizer: Any, mask_token_id: int) -> list[int]:
    """Returns the canvas of a text with blanks: its token ids, with `mask_token_id` where text is wanted.

    `[MASK]`, or the tokenizer's own mask token, is a blank of one token, `[MASK:n]` one of n tokens. The text between
    is tokenised without special tokens: what spells one is encoded as its characters.

    A backslash before a blank makes it text: "\\[Mask of Zorro]" is the text "[Mask of Zorro]". Two are a backslash and
    a blank. Before anything else a backslash is text.

    One space before a blank belongs to the blank, since a token begins with the space before its word: "It was [MASK]
    of" is the canvas of "It was cold of" with " cold" masked. Other white space stays text. A piece of text that
    continues another is encoded so, also by tokenizers that put a space before all that they are given.

    Args:
        text: with any number of blanks, or none.
        tokenizer: of transformers.
        mask_token_id: the model's `config.mask_token_id`.

    Returns:
        L ids.

    Raises:
        ValueError: for a blank that is malformed or empty, blanks of more than `MAX_BLANKS` tokens together, more than
            `MAX_CHARACTERS` characters, and for text that the tokenizer cannot encode as it stands (see [`encode_text`]
            and [`encode_after_text`]).
    """
    return encode_with_blanks(text, tokenizer, mask_token_id).ids


class BlankedText(NamedTuple):
    """Holds a text with K blanks as a canvas, and as the text that is given.

    ids: (L,) the canvas. spans: where in it each blank begins and ends (exclusive). pieces: the K + 1 pieces of text
    around the blanks, each without the space that belongs to the blank after it.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    pieces: list[str]

    def fills(self, ids: Sequence[int], tokenizer: Any, **settings: Any) -> list[str]:
        """Returns the text in each blank of a filled canvas, with the space before it if it begins with a word."""
        return [decode_span(ids, *span, tokenizer, **settings) for span in self.spans]

    def filled(self, fills: Sequence[str]) -> str:
        """Returns the given text with its blanks filled.

        It is not decoded: a tokenizer may write a text in another way than it was given, in small letters say.
        """
        return self.pieces[0] + "".join(fill + piece for fill, piece in zip(fills, self.pieces[1:], strict=True))


def encode_with_blanks(text: str, tokenizer: Any, mask_token_id: int, name: str = "text") -> BlankedText:
    """Returns what [`encode_blanks`] does, with the places of the blanks and the text around them."""
    if not isinstance(text, str):
        raise ValueError(f"{name}={text!r} must be a string, with blanks such as [MASK] or [MASK:12].")
    check_tokenizer_mask(tokenizer, mask_token_id)
    check_characters(text, name)
    check_unicode(text, name)
    pieces, sizes = split_at_blanks(text, tokenizer.mask_token, name)
    pieces = [*(piece.removesuffix(" ") for piece in pieces[:-1]), pieces[-1]]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for piece, size in zip(pieces, [*sizes, 0], strict=True):
        if piece:
            encode = encode_after_text if ids else encode_text
            ids += encode([piece], tokenizer, name)[0]
        if size:
            spans.append((len(ids), len(ids) + size))
            ids += [mask_token_id] * size
    return BlankedText(ids, spans, pieces)


def split_at_blanks(text: str, mask_token: str | None, name: str = "text") -> tuple[list[str], list[int]]:
    """Returns the K + 1 pieces of text around the K blanks, and the tokens of each blank."""
    spellings = BLANK_BEGINS + (f"|{re.escape(mask_token)}" if mask_token else "")
    # A run of backslashes is looked at once, from its beginning: it may be long.
    blank_begins = re.compile(rf"(?<!\\)(\\*+)(?:{spellings})")
    pieces, sizes = list[str](), list[int]()
    parts = list[str]()  # of the present piece; adding to a string would copy it each time
    total = end = 0  # of what has been read of the text
    for found in blank_begins.finditer(text):
        begin, escapes = found.end(1), len(found[1])
        parts += [text[end : found.start()], "\\" * (escapes // 2)]
        end = begin
        if escapes % 2:  # what looks like a blank is text
            continue
        if mask_token and text.startswith(mask_token, begin):
            size, end = 1, begin + len(mask_token)
        else:
            blank = BLANK.match(text, begin)
            size = int(blank[1] or 1) if blank else 0
            if blank is None or not 1 <= size <= MAX_BLANKS:
                raise ValueError(
                    f"{name} has {text[begin : begin + 16]!r} at character {begin}; a blank is written [MASK] for one "
                    f"token or [MASK:n] for n tokens, n from 1 to {MAX_BLANKS}, and \\[ is a bracket that is text."
                )
            end = blank.end()
        total += size
        if total > MAX_BLANKS:
            raise ValueError(
                f"{name}={quoted(text)} has blanks of {total} tokens up to character {end}; all blanks of a text must "
                f"have at most {MAX_BLANKS} together."
            )
        sizes.append(size)
        pieces.append("".join(parts))
        parts = []
    return [*pieces, "".join([*parts, text[end:]])], sizes


__all__ = [
    "BlankedText",
    "check_characters",
    "check_tokenizer_mask",
    "check_unicode",
    "decode_after_text",
    "decode_span",
    "encode_after_text",
    "encode_blanks",
    "encode_text",
    "encode_with_blanks",
]
