# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Turns the spaced-out words of old benchmarks into ordinary text, with one function for each data set.

WikiText, Penn Treebank and One Billion Words put spaces between all words and marks. A model that learned from ordinary
text should be scored on ordinary text. Published zero-shot perplexities of masked diffusion models use the rules below,
in this order: SEDD, MDLM and RADD share them in their `data.py` (github: louaaron/Score-Entropy-Discrete-Diffusion,
kuleshov-group/mdlm, ML-GSAI/RADD). The rules for WikiText come from Megatron-LM's zero-shot evaluation. The rules are
heuristics and sometimes wrong, but figures compare only under the same rules.

One of their rules for WikiText is left out, since it matches no text: an apostrophe and a digit between two slashes.
"""

import re

# Pairs of a text or pattern to find and its replacement. The order matters.
Rules = tuple[tuple[str | re.Pattern[str], str], ...]


def _space_before(marks: str) -> Rules:
    """Makes rules that remove the space before a mark if another space follows it."""
    return tuple((f" {mark} ", f"{mark} ") for mark in marks)


def _spaces_within(pairs: tuple[str, ...], inside: str) -> Rules:
    """Makes rules that remove the spaces just inside brackets or quotation marks.

    Args:
        pairs: the opening and the closing mark, as a string of two characters.
        inside: the pattern of the text between them.
    """
    rules = []
    for pair in pairs:
        start, end = re.escape(pair[0]), re.escape(pair[1])
        pattern = start + inside.format(start=start, end=end) + end
        rules.append((re.compile(pattern), rf"{pair[0]}\1{pair[1]}"))
    return tuple(rules)


WIKITEXT: Rules = (
    ("s '", "s'"),
    (" @-@ ", "-"),  # marks inside numbers and compounds
    (" @,@ ", ","),
    (" @.@ ", "."),
    *_space_before(":;.!?,"),
    *_spaces_within(("()", "[]", "{}", '""', "''"), r"\s*([^{end}]*?)\s*"),
    ("= = = =", "===="),  # headings
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)

PTB: Rules = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    (re.compile("(?<= )N(?= )"), "1"),  # N stands for a number in the treebank, also several in a row
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)

LM1B: Rules = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    *_space_before("?"),
    (re.compile(r" \?$"), "?"),
    *_space_before("!"),
    (re.compile(r" !$"), "!"),
    *_space_before(",:;"),
    (" / ", "/"),
    *_spaces_within(('""', "''", "()", "[]"), " ([^{start}{end}]+) "),
    ("$ ", "$"),
    ("£ ", "£"),
)

LAMBADA: Rules = (("“", '"'), ("”", '"'))


def _apply(rules: Rules, text: str) -> str:
    for found, put in rules:
        text = text.replace(found, put) if isinstance(found, str) else found.sub(put, text)
    return text


def detokenize_wikitext(line: str) -> str:
    return _apply(WIKITEXT, line)


def detokenize_ptb(sentence: str) -> str:
    """Detokenises a sentence. It replaces unknown words, <unk> in the corpus, by question marks."""
    return _apply(PTB, sentence)


def detokenize_lm1b(sentence: str) -> str:
    return _apply(LM1B, sentence)


def detokenize_lambada(passage: str) -> str:
    """Puts a line break before a passage, and straightens its quotation marks."""
    return "\n" + _apply(LAMBADA, passage).strip()
