"""Token ids to the rows of a step: nothing lost, every block once an epoch, a stream goes on where it was left."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from radd_hf.data import blocks as blocks_module
from radd_hf.data.blocks import WINDOW, Blocks, ShuffledBlocks, StreamedBlocks
from radd_hf.data.documents import load_documents, tokenize
from support.texts import TEXTS

LENGTH, BATCH = 16, 8


@pytest.fixture(scope="module")
def tokens(tiny_tokenizer) -> Dataset:
    return tokenize(Dataset.from_dict({"text": TEXTS}), tiny_tokenizer)


@pytest.fixture
def stream(tiny_tokenizer):
    """A stream as a process finds it that has just started."""

    def open_(files: int = 3, texts: list[str] = TEXTS) -> StreamedBlocks:
        documents = Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=files)
        return StreamedBlocks("here", documents, tiny_tokenizer, LENGTH, BATCH, seed=0)

    return open_


def ids_of(tokens: Dataset) -> torch.Tensor:
    return torch.tensor([token for row in tokens["input_ids"] for token in row])


def test_blocks_are_the_documents_end_to_end_and_nothing_but_a_remainder_is_left_out(tokens):
    ids, blocks = ids_of(tokens), Blocks(tokens, LENGTH)
    assert len(blocks.pieces) > 1, "blocks cross the borders of pieces"
    assert torch.equal(torch.cat(list(blocks)), ids[: len(blocks) * LENGTH])
    assert 0 <= len(ids) - len(blocks) * LENGTH < LENGTH
    assert blocks.n_tokens == len(ids)
    assert blocks.n_bytes == sum(len(text.encode()) for text in TEXTS)


def test_with_its_tail_every_token_is_in_a_block(tokens):
    blocks = Blocks(tokens, 23, tail=True)
    assert torch.equal(torch.cat(blocks[:]), ids_of(tokens))
    assert 0 < len(blocks[-1]) < 23
    assert len(blocks[1:4]) == 3
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_a_selection_of_documents_has_blocks_of_those_alone(tokens):
    some = [5, 2, 250]
    assert torch.equal(torch.cat(Blocks(tokens.select(some), LENGTH, tail=True)[:]), ids_of(tokens.select(some)))


def test_fingerprints_tell_data_apart_but_not_how_they_are_stored(tokens, monkeypatch):
    whole = Blocks(tokens, LENGTH).fingerprint()
    rewritten = Dataset.from_dict(tokens[:])  # in int64, as one piece
    assert Blocks(rewritten, 2 * LENGTH).fingerprint() == whole
    assert Blocks(tokens.select(range(299)), LENGTH).fingerprint() != whole
    monkeypatch.setattr(blocks_module, "FINGERPRINT_TOKENS", 1024)
    sampled = Blocks(tokens, LENGTH).fingerprint()
    assert sampled not in (whole, Blocks(tokens.select(range(299)), LENGTH).fingerprint())


def test_a_text_shorter_than_a_block_is_refused(tokens):
    with pytest.raises(ValueError, match=r"length=1000000 must be at least 1 and at most \d+, the tokens of the data"):
        Blocks(tokens, 10**6)
    assert len(Blocks(tokens, 10**6, tail=True)) == 1


def test_every_block_comes_once_an_epoch_in_an_order_that_changes(tokens):
    blocks = Blocks(tokens.select(range(60)), LENGTH)
    shuffled, n = ShuffledBlocks(blocks, BATCH, seed=1), len(blocks)
    steps = -(-3 * n // BATCH)
    rows = [row for step in range(steps) for row in shuffled.rows(step, range(BATCH))]
    epochs = [sorted(row.tolist() for row in rows[epoch * n : (epoch + 1) * n]) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2] == sorted(block.tolist() for block in blocks)
    assert not torch.equal(torch.stack(rows[:n]), torch.stack(rows[n : 2 * n]))


def test_processes_share_a_step_of_shuffled_blocks_and_a_restart_needs_no_state(tokens):
    blocks = Blocks(tokens, LENGTH)
    whole = ShuffledBlocks(blocks, BATCH, seed=1).rows(7, range(BATCH))
    halves = [ShuffledBlocks(blocks, BATCH, seed=1).rows(7, rows) for rows in (range(4), range(4, BATCH))]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(ShuffledBlocks(blocks, BATCH, seed=2).rows(7, range(BATCH)), whole)


def test_a_step_may_be_longer_than_an_epoch(tokens):
    blocks = Blocks(tokens.select(range(3)), LENGTH)
    rows = ShuffledBlocks(blocks, 4 * len(blocks), seed=0).rows(0, range(4 * len(blocks)))
    counts = {tuple(block.tolist()): 4 for block in blocks}
    assert all(sum(torch.equal(row, torch.tensor(block)) for row in rows) == n for block, n in counts.items())


def test_a_stream_loses_nothing_and_is_read_again_at_its_end(tokens, stream):
    ids, reader, windows = ids_of(tokens), stream(files=1), 12
    rows = torch.cat([reader.rows(step, range(BATCH)) for step in range(windows * WINDOW)])  # (steps B, L)
    assert rows.numel() > 2 * len(ids)
    in_order = ids.repeat(-(-rows.numel() // len(ids)))[: rows.numel()].view(windows, -1, LENGTH)
    for window, expected in zip(rows.view(windows, -1, LENGTH), in_order, strict=True):
        assert sorted(window.tolist()) == sorted(expected.tolist())
        assert not torch.equal(window, expected), "shuffled"


@pytest.mark.parametrize("stop", [1, WINDOW - 1, WINDOW, 6 * WINDOW + 3, 11 * WINDOW + 1])
def test_a_stream_goes_on_where_it_was_left(stream, stop):
    """Also in its later passes, which `datasets` begins with another file."""
    whole, steps = stream(), 18 * WINDOW
    expected = [whole.rows(step, range(BATCH)).clone() for step in range(steps)]
    assert whole.passes >= 3
    left = stream()
    for step in range(stop):
        left.rows(step, range(BATCH))
    resumed = stream()
    resumed.load_state_dict(json.loads(json.dumps(left.state_dict())))
    for step in range(stop, steps):
        assert torch.equal(resumed.rows(step, range(3, BATCH)), expected[step][3:])


def write_jsonl(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_compressed(file: Path, texts: list[str]) -> None:
    with gzip.open(file, "wt") as opened:
        opened.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def write_parquet(file: Path, texts: list[str]) -> None:
    Dataset.from_dict({"text": texts}).to_parquet(str(file), batch_size=7)


# ending: how a file of texts is written, and how many files there are
SOURCES = {
    "jsonl": (write_jsonl, 1),
    "shards.jsonl": (write_jsonl, 3),
    "jsonl.gz": (write_compressed, 2),
    "parquet": (write_parquet, 3),
    "txt": (lambda file, texts: file.write_text(" ".join(texts)), 40),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("held_out", [0, 3])
def test_a_stream_that_is_restarted_again_and_again_is_one_that_was_not(tmp_path, tiny_tokenizer, kind, held_out):
    write, n_files = SOURCES[kind]
    for number in range(n_files):
        write(tmp_path / f"{number:02}.{kind}", TEXTS[number::n_files])

    def start(state: str | None = None) -> StreamedBlocks:
        documents = load_documents(str(tmp_path), "train", streaming=True, held_out=held_out)
        blocks = StreamedBlocks(str(tmp_path), documents, tiny_tokenizer, LENGTH, BATCH, seed=0)
        if state is not None:
            blocks.load_state_dict(json.loads(state))
        return blocks

    chance, steps, whole = random.Random(0), 12 * WINDOW, start()
    expected = [whole.rows(step, range(BATCH)).clone() for step in range(steps)]
    assert whole.passes >= 2
    anywhere = chance.sample(range(steps), 5)
    window = chance.randrange(1, 11) * WINDOW
    within_a_window = [window + place for place in chance.sample(range(1, WINDOW), 5)]
    for stops in (anywhere, within_a_window):
        blocks = start()
        for step in range(steps):
            if step in stops:
                blocks = start(json.dumps(blocks.state_dict()))
            for rows in (range(3), range(3, BATCH)):  # as of two processes
                assert torch.equal(blocks.rows(step, rows), expected[step][rows.start : rows.stop])


def test_a_stream_that_breaks_off_says_which_and_why(tmp_path, tiny_tokenizer):
    (tmp_path / "0.jsonl").write_text('{"text": "a text"}')
    (tmp_path / "1.jsonl").write_text('{"text": ')
    documents = load_documents(str(tmp_path), "train", streaming=True, held_out=0)
    reader = StreamedBlocks(str(tmp_path), documents, tiny_tokenizer, LENGTH, BATCH, seed=0)
    with pytest.raises(ValueError, match=r"dataset='.*' could not be read: .*1\.jsonl, line 1: "):
        reader.rows(0, range(BATCH))


def test_an_empty_stream_and_a_step_that_has_passed_are_refused(stream, tiny_tokenizer):
    nothing = Dataset.from_dict({"text": TEXTS}).to_iterable_dataset().take(0)
    with pytest.raises(ValueError, match="dataset='here' has no documents"):
        StreamedBlocks("here", nothing, tiny_tokenizer, LENGTH, BATCH, seed=0).rows(0, range(BATCH))
    reader = stream()
    reader.rows(WINDOW, range(BATCH))
    with pytest.raises(ValueError, match="step=3 is over"):
        reader.rows(3, range(BATCH))


def test_rows_gathered_at_once_are_the_blocks_one_by_one_also_across_pieces(tokens):
    blocks = Blocks(tokens, LENGTH)
    chosen = torch.randint(len(blocks), (200,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(blocks.rows(chosen.numpy()), torch.stack([blocks[int(index)] for index in chosen]))


def test_what_spells_a_special_token_in_a_stream_is_its_characters(stream, tiny_tokenizer):
    rows = stream(texts=["a <|mask|> man" for _ in TEXTS]).rows(0, range(BATCH))
    assert not (rows == tiny_tokenizer.mask_token_id).any()
    assert any("mask|> man" in tiny_tokenizer.decode(row) for row in rows)
