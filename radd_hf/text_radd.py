# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Encodes text with blanks as token ids, and decodes them.

    "It was [MASK:4] of spring."  ->  ids, with four masks in the blank  (encode_blanks)

Such a row of ids, some of them masks, is a canvas.

A text may spell a special token, such as "<|endoftext|>". Then its characters are encoded, not the special token
([`encode_text`]). Many tokenizers encode a text in one way at the beginning, and in another way after other text. A
piece of text after a blank gets the ids that it has after other text ([`encode_after_text`]).

Shapes: L tokens, K blanks.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

# A text that continues another is encoded after one of these. There are several: one token may cover this character and
# the beginning of the text, and a small vocabulary may lack the character.
BEFORE = ("a", "0", ".", "1")
# Most characters of a text that is read at once; a tokenizer takes some 200 bytes for each.
MAX_CHARACTERS = 2**20
# Special tokens that a warning has already named.
REPORTED: set[str] = set()


def check_tokenizer(tokenizer: Any) -> None:
    """Raises a TypeError unless it is a tokenizer; the name of one is not."""
    if not callable(tokenizer):
        raise TypeError(f"tokenizer={tokenizer!r} must be a tokenizer of transformers, loaded.")


def encode_text(
    texts: Sequence[str], tokenizer: Any, name: str = "text", *, special_tokens_in_text: bool = False
) -> list[list[int]]:
    """Returns the ids of each text. Nothing is added, and the spelling of a special token is encoded as characters.

    Args:
        name: what messages call a text.
        special_tokens_in_text: whether the spelling of a special token stands for that token. With True a text must not
            spell the mask.

    Raises:
        ValueError: for a text with a lone surrogate, for one that spells a special token whose characters the tokenizer
            cannot encode, and for one with unknown characters if the tokenizer has no unknown token.
    """
    for text in texts:
        check_unicode(text, name)
    if not texts:
        return []
    with _unknown_named(name, texts[0]):
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    special = special_ids(tokenizer)
    return [
        # Most texts spell no special token, and are encoded only once.
        ids if special.isdisjoint(ids) else _encode_spelled(text, ids, tokenizer, name, special_tokens_in_text)
        for text, ids in zip(texts, rows, strict=True)
    ]


def _encode_spelled(text: str, ids: list[int], tokenizer: Any, name: str, special_tokens_in_text: bool) -> list[int]:
    """Returns the ids of a text whose `ids` hold special tokens: it spells them, or they stand for unknown text."""
    unknown, special = tokenizer.unk_token_id, special_ids(tokenizer)
    if special_tokens_in_text:
        if tokenizer.mask_token_id in ids:
            raise ValueError(
                f"{name}={quoted(text)} spells the mask, {_place(text, tokenizer.mask_token)}, and "
                "special_tokens_in_text=True would mask the text there: take the mask or the option out."
            )
        return ids
    with _unknown_named(name, text):
        split = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    if special.isdisjoint({*ids} - {unknown}) and split.count(unknown) >= ids.count(unknown):
        _report_unknown(text, ids.count(unknown), tokenizer, name)
        return ids  # it spells no special token, or only the unknown one, whose characters are unknown, too
    spelled = {token: tokenizer.convert_ids_to_tokens(token) for token in special.intersection(ids)}
    read = _without_spaces(_decode(split, tokenizer))  # WordPiece puts spaces between characters
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
            "These characters are read as plain text, not as the special token, here and in other texts. "
            "(Scripts that read data have the option --special_tokens_in_text true.)"
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
    """Warns once that the tokenizer does not know some characters of texts."""
    word = tokenizer.unk_token
    if count and f"unknown {word}" not in REPORTED:
        REPORTED.add(f"unknown {word}")
        logger.warning(
            f"{name}={quoted(text)} has text that the tokenizer does not know and replaces by {count} {word}. The "
            "model does not see such text, here and in other texts, and a likelihood is not that of the whole text."
        )


def special_ids(tokenizer: Any) -> set[int]:
    """Returns the ids of special tokens, which do not stand for characters of a text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})  # it also has reserved tokens, which have no role
    return {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}


def check_unicode(text: str, name: str) -> None:
    """Raises a ValueError for a text with a lone surrogate. Python makes one from a byte that is not UTF-8."""
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
    """Returns the ids that each text has after other text.

    Tokenizers treat the beginning of a text in a special way: SentencePiece puts a space before it, and WordPiece
    begins a new word. If that changes the text, it is encoded after a character whose tokens are then cut off.

    Raises:
        ValueError: as [`encode_text`], and for a text that the tokenizer cannot encode directly after other text.
    """
    rows = encode_text(texts, tokenizer, name)
    return [_encode_after_text(text, ids, tokenizer, name) for text, ids in zip(texts, rows, strict=True)]


def _encode_after_text(text: str, alone: list[int], tokenizer: Any, name: str) -> list[int]:
    """Returns the ids that a text has after other text; `alone` are its ids by itself."""
    heads, wholes = list[list[int]](), list[list[int]]()
    for before in BEFORE:
        with suppress(ValueError):  # a tokenizer without an unknown token may not know this character
            (head,), (whole,) = encode_text([before], tokenizer), encode_text([before + text], tokenizer, name)
            heads.append(head)
            wholes.append(whole)
    if not heads:
        raise ValueError(f"{name}={quoted(text)} cannot stand directly after other text: begin it with a space.")
    rests = [whole[len(head) :] for head, whole in zip(heads, wholes, strict=True) if whole[: len(head)] == head]
    wanted = _decode(wholes[0], tokenizer)
    for ids in (alone, *rests):
        if _decode(heads[0] + ids, tokenizer) == wanted:
            return ids
    raise ValueError(
        f"{name}={quoted(text)} cannot stand directly after other text: after {BEFORE[0]!r} the tokenizer reads "
        f"{quoted(_decode(heads[0] + alone, tokenizer))}. Begin it with a space."
    )


def decode_after_text(rows: Sequence[Sequence[int]], tokenizer: Any, **settings: Any) -> list[str]:
    """Returns the text that each row of ids stands for after other text: a word keeps the space before it.

    Args:
        settings: arguments of `tokenizer.decode`.
    """
    head = next((ids for before in BEFORE if (ids := _head(tokenizer, before))), [])
    before = _decode(head, tokenizer)
    return [_decode([*head, *ids], tokenizer, **settings).removeprefix(before) for ids in rows]


def _head(tokenizer: Any, before: str) -> list[int]:
    """Returns the ids of a text; an empty list if the tokenizer cannot encode it."""
    with suppress(ValueError):
        return encode_text([before], tokenizer)[0]
    return []


def decode_span(ids: Sequence[int], begin: int, end: int, tokenizer: Any, **settings: Any) -> str:
    """Returns the part of the text of all ids that the ids from `begin` to `end` (exclusive) stand for."""
    if begin == 0:
        return _decode(ids[:end], tokenizer, **settings)
    return decode_after_text([ids[begin:end]], tokenizer, **settings)[0]


def _decode(ids: Sequence[int], tokenizer: Any, **settings: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False, **settings)


def check_tokenizer_mask(tokenizer: Any, mask_token_id: int) -> None:
    """Raises a ValueError if the tokenizer's mask has another id than the model's. A tokenizer may have no mask."""
    theirs = getattr(tokenizer, "mask_token_id", None)
    if theirs is not None and theirs != mask_token_id:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has its mask {tokenizer.mask_token!r} at id {theirs}, and the model "
            f"at {mask_token_id}: it must be the tokenizer that the model was trained with."
        )


# ---------------------------------------------------------------------------------------------------------
# From text with blanks
# ---------------------------------------------------------------------------------------------------------

# Matches the beginning of a blank, in small or large letters. So a misspelled blank is an error, and not read as text.
BLANK_BEGINS = r"\[(?i:MASK)"
BLANK = re.compile(r"\[MASK(?::([0-9]{1,9}))?\]")
# Most tokens of all blanks of a text together. That is longer than any model's text, but a typing error cannot fill the
# memory.
MAX_BLANKS = 2**16


def encode_blanks(text: str, tokenizer: Any, mask_token_id: int) -> list[int]:
    """Returns the canvas of a text with blanks: its token ids, with `mask_token_id` at each position to fill.

    `[MASK]`, or the tokenizer's own mask token, is a blank of one token. `[MASK:n]` is a blank of n tokens. The text
    around the blanks is encoded without special tokens: the spelling of one is encoded as characters.

    A backslash before a blank makes it text: "\\[Mask of Zorro]" is the text "[Mask of Zorro]". Two backslashes are one
    backslash and a blank. Before anything else a backslash is text.

    One space before a blank belongs to the blank, since a token begins with the space before its word: "It was [MASK]
    of" is the canvas of "It was cold of" with " cold" masked. Other white space stays text. A piece of text after a
    blank is encoded as a continuation, even if the tokenizer puts a space before every text.

    Args:
        text: with any number of blanks, or none.
        tokenizer: of transformers.
        mask_token_id: the model's `config.mask_token_id`.

    Returns:
        L ids.

    Raises:
        ValueError: for a blank that is malformed or empty, for blanks of more than `MAX_BLANKS` tokens together, for
            more than `MAX_CHARACTERS` characters, and for text that the tokenizer cannot encode (see [`encode_text`]
            and [`encode_after_text`]).
    """
    return encode_with_blanks(text, tokenizer, mask_token_id).ids


class BlankedText(NamedTuple):
    """Holds a text with K blanks: its canvas, and the pieces of text around the blanks.

    ids: (L,) the canvas.
    spans: where each blank begins and ends (exclusive) in the canvas.
    pieces: the K + 1 pieces of text around the blanks, each without the space that belongs to the blank after it.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    pieces: list[str]

    def fills(self, ids: Sequence[int], tokenizer: Any, **settings: Any) -> list[str]:
        """Returns the text in each blank of the filled canvas `ids`; a first word keeps the space before it."""
        return [decode_span(ids, *span, tokenizer, **settings) for span in self.spans]

    def filled(self, fills: Sequence[str]) -> str:
        """Returns the given text with its blanks filled.

        The given pieces are not decoded from ids: a tokenizer may change a text, to small letters, say.
        """
        return self.pieces[0] + "".join(fill + piece for fill, piece in zip(fills, self.pieces[1:], strict=True))


def encode_with_blanks(text: str, tokenizer: Any, mask_token_id: int, name: str = "text") -> BlankedText:
    """Encodes as [`encode_blanks`] does, and returns the places of the blanks and the text around them, too."""
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
    """Returns the K + 1 pieces of text around the K blanks, and the number of tokens of each blank."""
    spellings = BLANK_BEGINS + (f"|{re.escape(mask_token)}" if mask_token else "")
    # A run of backslashes is read only once, from its beginning: it may be long.
    blank_begins = re.compile(rf"(?<!\\)(\\*+)(?:{spellings})")
    pieces, sizes = list[str](), list[int]()
    parts = list[str]()  # of the current piece; adding to a string would copy it each time
    total = end = 0  # tokens of the blanks read so far, and where the part of the text that was read ends
    for found in blank_begins.finditer(text):
        begin, escapes = found.end(1), len(found[1])
        parts += [text[end : found.start()], "\\" * (escapes // 2)]
        end = begin
        if escapes % 2:  # a backslash makes the blank text
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
