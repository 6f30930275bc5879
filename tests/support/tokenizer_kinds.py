# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny tokenizers of all common kinds, trained on one page. They treat the start of a text differently."""

import json
import random
import string
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAGE = "Emma un able was unable , and . It to be seen on a fine day of spring ; Mr. Knightley's"
WORDS = PAGE.split()
SPECIAL = ["<unk>", "</s>", "<mask>"]


def page() -> list[str]:
    drawn = random.Random(0)
    return [" ".join(drawn.choices(WORDS, k=12)).replace(" ,", ",").replace(" .", ".") for _ in range(200)]


def made(tokenizer: Tokenizer, trainer, beside: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator([*page(), *string.ascii_letters, *beside], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", mask_token="<mask>", unk_token="<unk>")


def byte_level(add_prefix_space: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return made(
        tokenizer,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    return made(tokenizer, trainer, beside=string.punctuation)


def unigram(whitespace_is_kept: bool) -> PreTrainedTokenizerFast:
    """Makes a tokenizer like those of T5 and XLM-R, whose model has the special tokens among its pieces."""
    spaces = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = (
        spaces if whitespace_is_kept else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return made(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )


def llama() -> PreTrainedTokenizerFast:
    """Makes a tokenizer like Llama's: it puts a space before a text, and spells unknown characters in bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = made(
        tokenizer, trainers.BpeTrainer(vocab_size=560, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    )
    rules = json.loads(trained.backend_tokenizer.to_str())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["content"] in SPECIAL]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)),
        eos_token="</s>",
        mask_token="<mask>",
        unk_token="<unk>",
    )


def word_piece() -> PreTrainedTokenizerFast:
    """Makes a tokenizer like BERT's, which drops spaces and letter case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    return made(tokenizer, trainer, beside=string.punctuation + string.digits)


KINDS = {
    "byte-level": lambda: byte_level(False),
    "byte-level with a space": lambda: byte_level(True),
    "Metaspace always": lambda: metaspace("always"),
    "Metaspace first": lambda: metaspace("first"),
    "Unigram": lambda: unigram(True),
    "T5": lambda: unigram(False),
    "Llama": llama,
    "WordPiece": word_piece,
}
