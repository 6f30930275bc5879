# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers like those of users: without a mask, with ids that begin at 1 or are not contiguous."""

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def letters(ids: Iterable[int], **special: str) -> PreTrainedTokenizerFast:
    """Makes a tokenizer of lower-case letters with these ids. The last letter is its EOS."""
    vocabulary = dict(zip(string.ascii_lowercase, ids, strict=False))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"eos_token": list(vocabulary)[-1], "unk_token": "a"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
