# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Long documents in pieces: the ids are those of the whole text, for every kind of tokenizer."""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from radd_hf.data import long_documents
from radd_hf.data.documents import encode
from radd_hf.data.long_documents import can_be_cut, cut_text, encode_documents

WORDS = ["truth", "a", "wife", "man's", "12345", "don't", "Ünïcödé", "café", "日本語。", "e\u0301t", "x", "--", "(so)"]
GAPS = [" ", " ", " ", " ", "  ", "\n", "\n\n", " \n", "\r\n", "\t", "", ", ", ".\n", "。\n", " <tag> ", "New York"]
LLAMA = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def random_text(seed: int, words: int = 700) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(GAPS) for _ in range(words))


def make(model: str, splitter, normalizer=None, **settings) -> PreTrainedTokenizerFast:
    """A tokenizer that was trained on such texts, with added tokens that reach over a space or take one along."""
    kinds = {
        "bpe": (models.BPE(unk_token="?"), trainers.BpeTrainer),
        "wordpiece": (models.WordPiece(unk_token="?"), trainers.WordPieceTrainer),
        "unigram": (models.Unigram(), trainers.UnigramTrainer),
    }
    tokenizer = Tokenizer(kinds[model][0])
    tokenizer.pre_tokenizer, tokenizer.normalizer = splitter, normalizer
    tokenizer.decoder = decoders.ByteLevel()
    special = {"special_tokens": ["<eos>", "?"], "show_progress": False, "vocab_size": 400}
    if model == "unigram":
        special["unk_token"] = "?"
    tokenizer.train_from_iterator([random_text(seed) for seed in range(9)], kinds[model][1](**special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="?")
    fast.add_tokens(["New York", "a wife"])
    return fast


METASPACE = pre_tokenizers.Metaspace
BYTES = pre_tokenizers.ByteLevel
TOKENIZERS = {
    "GPT-2": lambda: make("bpe", BYTES(add_prefix_space=False)),
    "GPT-2 with a space before": lambda: make("bpe", BYTES(add_prefix_space=True)),
    "Llama 3": lambda: make(
        "bpe",
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA), "isolated"), BYTES(add_prefix_space=False, use_regex=False)]
        ),
        normalizers.NFC(),
    ),
    "BERT": lambda: make("wordpiece", pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()),
    "words and digits": lambda: make(
        "bpe", pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(True)])
    ),
    "SentencePiece, first": lambda: make("unigram", METASPACE(prepend_scheme="first"), normalizers.NFKC()),
    "SentencePiece, always": lambda: make("bpe", METASPACE(prepend_scheme="always")),
    "SentencePiece, never": lambda: make("unigram", METASPACE(prepend_scheme="never")),
}


@pytest.fixture
def short(monkeypatch):
    """Pieces so short that a test's text has many."""
    for name, value in {"PIECE": 60, "AROUND": 40, "AT_ONCE": 300}.items():
        monkeypatch.setattr(long_documents, name, value)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_ids_of_pieces_are_those_of_the_whole(short, kind):
    tokenizer = TOKENIZERS[kind]()
    assert can_be_cut(tokenizer)
    texts = [random_text(seed) for seed in range(100, 130)] + ["short", "", "x" * 500, " " * 500, "wife " * 90]
    expected = encode(texts, tokenizer)
    for found, ids in zip(encode_documents(texts, tokenizer, encode), expected, strict=True):
        assert found.tolist() == ids
    pieces = list(cut_text(texts[0], lambda parts: [ids[:-1] for ids in encode(parts, tokenizer)]))
    assert len(pieces) > 10
    assert "".join(pieces) == texts[0]
    assert max(map(len, pieces)) < 10 * long_documents.PIECE


@pytest.mark.parametrize(
    "splitter",
    [
        None,
        METASPACE(split=False),
        pre_tokenizers.Split(Regex(r"(?<=e) "), "isolated"),
    ],
    ids=["none", "one word", "looks back"],
)
def test_a_tokenizer_that_may_look_far_back_is_given_the_whole(short, splitter):
    tokenizer = make("bpe", splitter)
    assert not can_be_cut(tokenizer)
    text, asked = random_text(7), []

    def watched(texts: list[str], tokenizer) -> list[list[int]]:
        asked.extend(texts)
        return encode(texts, tokenizer)

    assert encode_documents([text], tokenizer, watched)[0].tolist() == encode([text], tokenizer)[0]
    assert asked == [text]


@pytest.mark.parametrize("step", [normalizers.Prepend("_"), normalizers.Strip()])
def test_a_normalizer_that_knows_where_a_text_begins_is_given_the_whole(step):
    assert not can_be_cut(make("bpe", METASPACE(), normalizers.Sequence([normalizers.NFC(), step])))


def test_a_tokenizer_is_never_given_more_text_than_was_said(short):
    tokenizer = TOKENIZERS["GPT-2"]()
    asked: list[int] = []

    def watched(texts: list[str], tokenizer) -> list[list[int]]:
        asked.append(sum(map(len, texts)))
        return encode(texts, tokenizer)

    encode_documents([random_text(seed, 3000) for seed in range(5)], tokenizer, watched)
    assert max(asked) <= long_documents.AT_ONCE + 4 * long_documents.PIECE
    assert len(asked) > 100


def test_without_the_comparison_some_ids_would_be_others(short, monkeypatch):
    monkeypatch.setattr(long_documents, "is_between_words", lambda *_: True)
    monkeypatch.setattr(long_documents, "PLACES", long_documents.PLACES[1:])
    for kind in ("Llama 3", "GPT-2 with a space before", "SentencePiece, always"):
        tokenizer, text = TOKENIZERS[kind](), random_text(3, 3000)
        assert encode_documents([text], tokenizer, encode)[0].tolist() != encode([text], tokenizer)[0]
