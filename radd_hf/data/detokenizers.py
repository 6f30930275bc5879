# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Turns the spaced-out words of old benchmarks into text as people write it, one function a data set.

WikiText, Penn Treebank and One Billion Words come as words with spaces between them; a model that learned from ordinary
text is asked about ordinary text. What each function undoes is the convention under which zero-shot perplexities of
masked diffusion models are published: the rules, and their order, are those of `data.py` in the code of SEDD, MDLM and
RADD alike (github: louaaron/Score-Entropy-Discrete-Diffusion, kuleshov-group/mdlm, ML-GSAI/RADD), WikiText's going back
to Megatron-LM's zero-shot evaluation. They guess, and guess wrong here and there; what counts is that all guess alike.

Left out is one rule of theirs for WikiText that no text meets: it wants an apostrophe and a digit between two slashes.
"""

import re

# What is looked for, as it stands or as a pattern, and what is put in its place; the order matters.
Rules = tuple[tuple[str | re.Pattern[str], str], ...]


def _space_before(marks: str) -> Rules:
    """Takes the space before a mark that another space follows."""
    return tuple((f" {mark} ", f"{mark} ") for mark in marks)


def _spaces_within(pairs: tuple[str, ...], inside: str) -> Rules:
    """Takes the spaces on the inner side of brackets or quotation marks; `inside` is the pattern of what they hold."""
    rules = []
    for pair in pairs:
        start, end = re.escape(pair[0]), re.escape(pair[1])
        pattern = start + inside.format(start=start, end=end) + end
        rules.append((re.compile(pattern), rf"{pair[0]}\1{pair[1]}"))
    return tuple(rules)


WIKITEXT: Rules = (
    ("s '", "s'"),
    (" @-@ ", "-"),  # marks inside of numbers and compounds
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
    (re.compile("(?<= )N(?= )"), "1"),  # the treebank's sign for a number, several in a row included
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
    """Replaces unknown words, <unk> in the corpus, by question marks."""
    return _apply(PTB, sentence)


def detokenize_lm1b(sentence: str) -> str:
    return _apply(LM1B, sentence)


def detokenize_lambada(passage: str) -> str:
    """Begins a passage with a line break and straightens its quotation marks."""
    return "\n" + _apply(LAMBADA, passage).strip()
