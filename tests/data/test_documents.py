"""Documents to token ids: from every kind of source, nothing lost, nothing held out that is trained on."""

import gzip
import json
import re

import pytest
from datasets import Dataset, IterableDataset

from radd_hf.data.documents import (
    NOVELS,
    add_mask_token,
    encode,
    load_documents,
    tokenize,
    train_tokenizer,
    unwrap,
    vocabulary_size,
)
from support.texts import TEXTS
from support.tokenizer_kinds import KINDS
from support.tokenizers import letters


def texts_of(documents) -> list[str]:
    return [document["text"] for document in documents]


def write(folder, ending: str, texts: list[str] = TEXTS, column: str = "text", name: str = "documents"):
    path = folder / f"{name}{ending}"
    if ending == ".parquet":
        Dataset.from_dict({column: texts, "number": list(range(len(texts)))}).to_parquet(path)
    else:
        lines = "".join(json.dumps({column: text, "number": number}) + "\n" for number, text in enumerate(texts))
        path.write_bytes(gzip.compress(lines.encode()) if ending.endswith(".gz") else lines.encode())
    return path


def test_the_novels_are_six_and_persuasion_is_held_out():
    train, validation, everything = (
        texts_of(load_documents("austen", name)) for name in ("train", "validation", "all")
    )
    assert len(everything) == len(NOVELS) == 6
    assert len(train) == 5
    assert sorted(train + validation) == sorted(everything)
    assert validation[0].startswith("Persuasion\n")
    assert "Anne Elliot" not in "".join(train)
    assert {text.splitlines()[0] for text in everything} == set(NOVELS)


def test_the_lines_of_a_paragraph_are_joined_byte_for_byte():
    assert unwrap("It is a truth\nuniversally acknowledged,\n\nthat a single\nman") == (
        "It is a truth universally acknowledged,\n\nthat a single man"
    )
    novel = load_documents("austen", "validation")[0]["text"]
    assert len(novel.encode()) == 466_771
    assert not re.search(r"[^\n]\n[^\n]", novel)


def test_a_text_file_is_one_document_split_without_loss_or_overlap(tiny_text):
    train, validation, everything = (
        texts_of(load_documents(str(tiny_text), name)) for name in ("train", "validation", "all")
    )
    assert len(train) == len(validation) == len(everything) == 1
    assert train[0] + validation[0] == everything[0] == tiny_text.read_text()
    assert len(validation[0]) == pytest.approx(0.05 * len(everything[0]), abs=1)


def test_of_a_folder_of_text_files_each_is_a_document(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n\nof two paragraphs\n")
    assert len(load_documents(str(tmp_path), "all")) == 3
    assert texts_of(load_documents(f"{tmp_path}/*.txt", "validation")) == ["text 2\n\nof two paragraphs\n"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_documents_and_those_held_out_are_not_trained_on(tmp_path, ending, streaming):
    path = write(tmp_path, ending, column="body")
    parts = {
        name: load_documents(str(path), name, text_column="body", held_out=20, streaming=streaming)
        for name in ("train", "validation")
    }
    assert all(isinstance(part, IterableDataset) == streaming for part in parts.values())
    train, validation = (texts_of(parts[name]) for name in ("train", "validation"))
    assert len(validation) == 20
    assert (validation + train if streaming else train + validation) == TEXTS


def test_a_validation_split_of_its_own_is_what_is_held_out(tmp_path):
    write(tmp_path, ".jsonl", name="train")
    write(tmp_path, ".jsonl", ["held out"], name="validation")
    write(tmp_path, ".jsonl", ["for the end"], name="test")
    assert texts_of(load_documents(str(tmp_path), "train")) == TEXTS
    assert texts_of(load_documents(str(tmp_path), "validation")) == ["held out"]
    assert texts_of(load_documents(str(tmp_path), "test")) == ["for the end"]


def test_files_may_be_given_by_their_address(tmp_path):
    path = write(tmp_path, ".jsonl")
    assert texts_of(load_documents(path.as_uri(), "all")) == TEXTS


def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path):
    path = str(write(tmp_path, ".jsonl"))
    assert texts_of(load_documents(path, "train", held_out=0)) == TEXTS
    with pytest.raises(ValueError, match="has no split 'validation', and held_out=0 makes none"):
        load_documents(path, "validation", held_out=0)


def test_the_same_text_is_tokenised_once_whoever_asks(tmp_path, tiny_tokenizer, monkeypatch):
    path = str(write(tmp_path, ".jsonl"))
    first = tokenize(load_documents(path, "train"), tiny_tokenizer)
    tiny_tokenizer("a call before, which leaves its settings behind", truncation=True, max_length=4)
    monkeypatch.setattr("radd_hf.data.documents.encode", lambda *_: pytest.fail("tokenised again"))
    again = tokenize(load_documents(path, "train"), tiny_tokenizer, workers=2)
    assert again.cache_files == first.cache_files
    assert again[:] == first[:]


def test_another_tokenizer_or_text_is_tokenised_anew(tmp_path, tiny_tokenizer):
    documents = load_documents(str(write(tmp_path, ".jsonl")), "train")
    other = train_tokenizer(TEXTS, 280)
    changed = load_documents(str(write(tmp_path, ".jsonl", TEXTS[::-1])), "train")
    names = {
        tokenize(documents, tiny_tokenizer)._fingerprint,
        tokenize(documents, other)._fingerprint,
        tokenize(changed, other)._fingerprint,
    }
    assert len(names) == 3


@pytest.mark.parametrize("workers", [None, 2, 3])
def test_each_document_ends_in_eos_and_its_bytes_are_counted(tmp_path, tiny_tokenizer, workers):
    tokens = tokenize(load_documents(str(write(tmp_path, ".jsonl")), "all"), tiny_tokenizer, workers)
    for text, row in zip(TEXTS, tokens, strict=True):
        assert row["input_ids"] == [*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id]
        assert row["n_bytes"] == len(text.encode())


def test_a_trained_tokenizer_has_the_size_asked_for_and_the_mask_last(tiny_tokenizer):
    assert len(tiny_tokenizer) == 300
    assert tiny_tokenizer.mask_token_id == 299
    assert tiny_tokenizer.eos_token_id == 0
    text = "A wife, of course!\n  Ünïcödé too."
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


def test_a_tokenizer_cannot_be_larger_than_its_text_allows():
    assert 258 < len(train_tokenizer(TEXTS, 4000, exact=False)) < 4000
    with pytest.raises(ValueError, match="vocab_size=4000 is more than this text gives: pass at most"):
        train_tokenizer(["too little text"], 4000)


def test_a_tokenizer_has_all_bytes_eos_and_the_mask_at_least():
    assert len(train_tokenizer(TEXTS, 258)) == 258
    with pytest.raises(ValueError, match="vocab_size=257 must be at least 258: 256 bytes, EOS and the mask"):
        train_tokenizer(TEXTS, 257)


@pytest.mark.parametrize("ids", [range(26), range(1, 27), range(0, 78, 3), range(70_000, 70_026)])
def test_a_mask_is_never_a_letter_and_comes_after_all_ids(ids):
    tokenizer = letters(ids)
    size = vocabulary_size(tokenizer)
    assert size == max(ids) + 1
    assert add_mask_token(tokenizer) == size
    assert tokenizer.mask_token_id in (None, size)
    assert tokenizer("cab", add_special_tokens=False)["input_ids"] == [ids[2], ids[0], ids[1]]
    assert tokenizer.decode([ids[25]]) == "z"


def test_a_mask_is_added_only_where_the_model_has_it():
    for mask, token in ((26, "<|mask|>"), (63, None)):
        tokenizer = letters(range(26))
        assert add_mask_token(tokenizer, mask) == mask
        assert tokenizer.mask_token == token


def test_ids_above_65535_are_kept_though_the_tokens_are_few(tmp_path):
    path = str(write(tmp_path, ".jsonl", ["abc"]))
    tokens = tokenize(load_documents(path, "all"), letters(range(70_000, 70_026)))
    assert tokens[0]["input_ids"] == [70_000, 70_001, 70_002, 70_025]


def test_a_tokenizer_without_a_mask_token_is_given_one(tiny_tokenizer):
    assert add_mask_token(tiny_tokenizer) == 299
    tiny_tokenizer._special_tokens_map["mask_token"] = None
    assert add_mask_token(tiny_tokenizer) == tiny_tokenizer.mask_token_id == 299


def test_the_mask_of_a_tokenizer_takes_the_space_before_it(tiny_tokenizer):
    ids = tiny_tokenizer("a man <|mask|> want")["input_ids"]
    assert ids == [*tiny_tokenizer("a man")["input_ids"], 299, *tiny_tokenizer(" want")["input_ids"]]


LITERALS = "a <|mask|> of<|endoftext|>a wife"


def test_what_spells_a_special_token_in_a_document_is_encoded_as_its_characters(tiny_tokenizer):
    tokens = tokenize(Dataset.from_dict({"text": [LITERALS]}), tiny_tokenizer)
    *ids, last = tokens[0]["input_ids"]
    assert tiny_tokenizer.decode(ids) == LITERALS
    assert not {tiny_tokenizer.mask_token_id, tiny_tokenizer.eos_token_id} & {*ids}
    assert last == tiny_tokenizer.eos_token_id
    assert tokens[0]["n_bytes"] == len(LITERALS)


def test_documents_that_were_joined_by_a_spelled_eos_are_parted_by_it_if_that_is_asked_for(tiny_tokenizer):
    text = "a man<|endoftext|>a wife"
    documents = Dataset.from_dict({"text": [text]})
    parted = tokenize(documents, tiny_tokenizer, special_tokens_in_text=True)
    assert parted[0]["input_ids"] == [*tiny_tokenizer(text)["input_ids"], 0]
    assert parted[0]["input_ids"].count(0) == 2
    assert tokenize(documents, tiny_tokenizer)[0]["input_ids"].count(0) == 1, "each is kept under a name of its own"
    with pytest.raises(ValueError, match=r"document='a <\|mask\|> of.*' spells the mask, '<\|mask\|>' at character 2"):
        encode([LITERALS], tiny_tokenizer, special_tokens_in_text=True)


def test_a_document_whose_special_tokens_cannot_be_characters_is_named():
    tokenizer = KINDS["Unigram"]()
    with pytest.raises(ValueError, match=r"document='able </s> on' spells the special token '</s>' at character 5"):
        encode(["Emma was", "able </s> on"], tokenizer)


def test_a_null_document_and_a_tokenizer_without_eos_are_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="a document is null"):
        encode(["text", None], tiny_tokenizer)
    tiny_tokenizer._special_tokens_map["eos_token"] = None
    with pytest.raises(ValueError, match="tokenizer has no eos_token"):
        encode(["text"], tiny_tokenizer)
    tiny_tokenizer.eos_token = "<|endoftext|>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, r"dataset='.*' has no split 'test'; it has \['all', 'train'\]"),
        ({"source": "/no/such/file"}, "dataset='/no/such/file' could not be read: no file or folder has this name"),
        ({"source": "no-such/name"}, "dataset='no-such/name' could not be read"),
        ({"text_column": "body"}, r"jsonl, line 1: text_column='body' must be one of \['text', 'number'\]"),
        ({"text_column": "number"}, r"documents\.jsonl, line 1: 'number' must be a string; it is 0"),
        ({"held_out": 300}, r"held_out=300 of the 300 documents .* leaves none"),
        ({"held_out": -1}, r"held_out=-1 must be a fraction"),
        ({"held_out": 1.5}, r"held_out=1\.5 must be a fraction"),
        ({"streaming": True}, r"held_out=0\.05: a stream without a validation split needs a whole number"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, settings, message):
    arguments = {"source": str(write(tmp_path, ".jsonl")), "split": "train"} | settings
    with pytest.raises(ValueError, match=message):
        load_documents(**arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.jsonl", b'{"text": "whole"}\n{"text": ', r"broken\.jsonl, line 2: Expecting value, at character 9"),
        ("latin.txt", b"caf\xe9", r"latin\.txt, line 1: the byte 0xe9 is not UTF-8"),
        ("broken.parquet", b"PAR1", r"broken\.parquet: ArrowInvalid"),
        ("empty.txt", b" \n", "has no text: 1 documents, all empty"),
        ("picture.png", b"", "must hold files of one kind"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_documents(str(tmp_path / name), "train")


def test_a_broken_file_is_refused_as_a_stream_too(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    with pytest.raises(ValueError, match=r"broken\.jsonl' could not be read"):
        load_documents(str(tmp_path / "broken.jsonl"), "train", streaming=True, held_out=1)
