"""Text to blocks of ids: nothing lost, nothing held out is trained on."""

import re

import pytest
import torch

from radd_hf.data import NOVELS, add_mask_token, cut, encode, fingerprint, load_documents, pack, train_tokenizer, unwrap


def test_the_novels_are_six_and_persuasion_is_held_out():
    train, validation, everything = (load_documents("austen", name) for name in ("train", "validation", "all"))
    assert len(everything) == len(NOVELS) == 6
    assert len(train) == 5
    assert sorted(train + validation) == sorted(everything)
    assert validation[0].startswith("Persuasion\n")
    assert "Anne Elliot" not in "".join(train)
    assert [text.splitlines()[0] for text in everything] == list(NOVELS)


def test_the_lines_of_a_paragraph_are_joined_byte_for_byte():
    assert unwrap("It is a truth\nuniversally acknowledged,\n\nthat a single\nman") == (
        "It is a truth universally acknowledged,\n\nthat a single man"
    )
    novel = load_documents("austen", "validation")[0]
    assert len(novel.encode()) == 466_771
    assert not re.search(r"[^\n]\n[^\n]", novel)


def test_a_text_file_is_split_without_loss_or_overlap(tiny_text):
    train, validation, everything = (load_documents(str(tiny_text), name)[0] for name in ("train", "validation", "all"))
    assert train + validation == everything == tiny_text.read_text()


def test_a_trained_tokenizer_has_the_size_asked_for_and_the_mask_last(tiny_tokenizer):
    assert len(tiny_tokenizer) == 300
    assert tiny_tokenizer.mask_token_id == 299
    assert tiny_tokenizer.eos_token_id == 0
    text = "A wife, of course!\n  Ünïcödé too."
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


def test_a_tokenizer_cannot_be_larger_than_its_text_allows():
    with pytest.raises(ValueError, match="vocab_size=4000 is more than this text can fill"):
        train_tokenizer(["too little text"], 4000)


def test_a_tokenizer_without_a_mask_token_is_given_one(tiny_tokenizer):
    assert add_mask_token(tiny_tokenizer) == 299
    tiny_tokenizer._special_tokens_map["mask_token"] = None
    assert add_mask_token(tiny_tokenizer) == tiny_tokenizer.mask_token_id == 299


def test_each_document_ends_in_eos_and_every_token_is_in_a_block(tiny_tokenizer):
    ids = encode(["a wife", "a man"], tiny_tokenizer)
    assert (ids == tiny_tokenizer.eos_token_id).sum() == 2
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert torch.equal(torch.cat(cut(ids, 4)), ids)
    blocks = pack(ids, 4)
    assert torch.equal(blocks.flatten(), ids[: blocks.numel()])
    assert 0 <= len(ids) - blocks.numel() < 4


def test_fingerprints_tell_data_apart():
    ids = torch.arange(10)
    assert fingerprint(ids) == fingerprint(ids.clone()) != fingerprint(ids.flip(0))


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("austen", "test", "split='test' must be"),
        ("/no/such/file", "train", "dataset='/no/such/file' must be 'austen'"),
    ],
)
def test_unknown_data_is_refused_by_name(source, name, message):
    with pytest.raises(ValueError, match=message):
        load_documents(source, name)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="is empty"):
        load_documents(str(tmp_path / "empty.txt"), "all")


def test_a_text_shorter_than_a_block_is_refused():
    with pytest.raises(ValueError, match="length=8 is longer than the data, 5 tokens"):
        pack(torch.arange(5), 8)
