# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Cuts token ids into the rows of an optimizer step: documents end to end -> blocks of L tokens -> B blocks a step.

A block is a position in the text of all documents. So its borders do not depend on the number of workers or processes.
The blocks of a step are a function of (seed, step): every process asks for its rows, and a restart asks for the rest.

Shapes: S blocks, B rows of an optimizer step, b rows of them in one forward pass, L length, T tokens.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..randomness_radd import stream_seed
from .documents import DOCUMENTS_AT_ONCE, encode, readable
from .long_documents import encode_documents

# The fingerprint of a data set uses at most this many tokens, in stretches spread evenly over it.
FINGERPRINT_TOKENS = 2**24

# Number of optimizer steps whose blocks are read from a stream and shuffled together.
WINDOW = 16


class Blocks(Sequence[Tensor]):
    """The tokenised documents, laid end to end and cut every L tokens: block i is an (L,) int64 tensor.

    The ids stay in the files of the data set, which are mapped into memory.

    Args:
        tokens: the result of `data.tokenize`.
        length: L.
        tail: whether the last block may be shorter, so every token is in a block. Evaluation needs this. Otherwise the
            remainder that fills no block is left out.

    Raises:
        ValueError: if, without `tail`, the data has fewer tokens than `length`.
    """

    def __init__(self, tokens: Dataset, length: int, tail: bool = False):
        table = tokens.with_format("arrow")[:]
        chunks = [chunk.flatten() for chunk in table["input_ids"].chunks]
        self.pieces = [chunk.to_numpy(zero_copy_only=True) for chunk in chunks if len(chunk)]
        self.starts = np.cumsum([0, *map(len, self.pieces)])  # the first token of each piece, and T
        self.n_tokens = int(self.starts[-1])
        self.n_bytes = int(table["n_bytes"].to_numpy().sum())
        self.length = length
        if length < 1 or self.n_tokens < (1 if tail else length):
            raise ValueError(f"length={length} must be at least 1 and at most {self.n_tokens}, the tokens of the data.")
        self.n_blocks = -(-self.n_tokens // length) if tail else self.n_tokens // length

    def __len__(self) -> int:
        return self.n_blocks

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = index % len(self) * self.length
        return torch.from_numpy(self._ids(start, min(start + self.length, self.n_tokens)).astype(np.int64))

    def rows(self, indices: np.ndarray) -> Tensor:
        """Returns whole blocks (b, L), with one gather from each piece of text that holds some of them."""
        rows = np.empty((len(indices), self.length), dtype=np.int64)
        starts = indices * self.length  # (b,)
        piece = np.searchsorted(self.starts, starts, side="right") - 1
        inside = starts + self.length <= self.starts[piece + 1]  # the others span two pieces or more
        for number in np.unique(piece[inside]):
            here = inside & (piece == number)
            first = starts[here] - self.starts[number]
            rows[here] = self.pieces[number][first[:, None] + np.arange(self.length)]
        for place in np.flatnonzero(~inside):
            rows[place] = self._ids(int(starts[place]), int(starts[place]) + self.length)
        return torch.from_numpy(rows)

    def _ids(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens start .. stop - 1 of the whole text."""
        parts = []
        piece = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[piece + 1]))
            parts.append(self.pieces[piece][start - self.starts[piece] : end - self.starts[piece]])
            start, piece = end, piece + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def fingerprint(self) -> str:
        """Returns twelve hexadecimal digits that identify the data set, in results and when a run resumes."""
        digest, stretches = hashlib.sha256(), 256
        if self.n_tokens <= FINGERPRINT_TOKENS:
            digest.update(self._ids(0, self.n_tokens).astype(np.int32).tobytes())
        else:
            digest.update(str(self.n_tokens).encode())
            size = FINGERPRINT_TOKENS // stretches
            for start in np.linspace(0, self.n_tokens - size, stretches).astype(np.int64):
                digest.update(self._ids(int(start), int(start) + size).astype(np.int32).tobytes())
        return digest.hexdigest()[:12]


def bytes_of(blocks: Blocks, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the number of bytes of the text in blocks, or None if an unknown token replaces a part of it."""
    lost = any(bool((block == token).any()) for token in lost_tokens(tokenizer) for block in blocks)
    return None if lost else blocks.n_bytes


def lost_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Returns the id that replaces text unknown to the tokenizer, or an empty set if it knows all text."""
    return {tokenizer.unk_token_id} - {
        None,
        tokenizer.eos_token_id,
    }  # GPT-2's unknown token is its EOS, and it knows all bytes


class ShuffledBlocks:
    """Yields every block once an epoch, in a new order each time. The permutation is a function of (seed, epoch)."""

    def __init__(self, blocks: Blocks, batch_size: int, seed: int):
        self.blocks, self.batch_size, self.seed = blocks, batch_size, seed
        self.permutations: dict[int, Tensor] = {}

    def rows(self, step: int, rows: range) -> Tensor:
        """Returns the blocks (b, L) of some rows of a step."""
        samples = np.arange(rows.start, rows.stop) + step * self.batch_size
        epochs, places = np.divmod(samples, len(self.blocks))
        self.permutations = {int(epoch): self._permutation(int(epoch)) for epoch in np.unique(epochs)}
        chosen = np.empty(len(samples), dtype=np.int64)
        for epoch, permutation in self.permutations.items():
            here = epochs == epoch
            chosen[here] = permutation.numpy()[places[here]]
        return self.blocks.rows(chosen)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self.permutations:
            return self.permutations[epoch]
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "epoch", epoch))
        return torch.randperm(len(self.blocks), generator=generator)

    def state_dict(self) -> dict:
        """Returns an empty state, since the next blocks are a function of the step."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class StreamedBlocks:
    """Blocks of a stream of documents, which are read as they are needed, without a copy on disk.

    The blocks of `WINDOW` steps are read together and shuffled by (seed, window). A stream that ends is read again.
    Every process reads and tokenises the whole stream and keeps its own rows. So blocks do not depend on the number of
    processes. A restart continues at the document where the window began.
    """

    def __init__(
        self,
        source: str,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        batch_size: int,
        seed: int,
        special_tokens_in_text: bool = False,
    ):
        self.source, self.documents, self.tokenizer = source, documents, tokenizer
        self.special_tokens_in_text = special_tokens_in_text
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.window = -1  # the window in memory
        self.blocks = torch.empty(0, length, dtype=torch.int64)  # (WINDOW B, L)
        self.rest: list[int] = []  # ids that were read and are in no block yet
        self.passes = 0  # finished passes over the documents
        self.reader: Iterator[dict] = iter(())
        self.opened_at: dict | None = None
        self._open(documents.state_dict())
        self.start = {"window": 0, "rest": [], "passes": 0, "stream": self.opened_at}  # where the window began

    def rows(self, step: int, rows: range) -> Tensor:
        """Returns the blocks (b, L) of some rows of a step. A step before the present window is refused."""
        window, place = divmod(step, WINDOW)
        if window < self.window:
            raise ValueError(f"step={step} is over: the stream is at window {self.window} of {WINDOW} steps.")
        while self.window < window:
            self._read_window()
        first = place * self.batch_size
        return self.blocks[first + rows.start : first + rows.stop]

    def _read_window(self) -> None:
        self.window += 1
        # `datasets` applies a state at the first read. Until then its own `state_dict` is the initial one.
        stream = self.documents.state_dict() if self.opened_at is None else self.opened_at
        self.start = {"window": self.window, "rest": list(self.rest), "passes": self.passes, "stream": stream}
        wanted = WINDOW * self.batch_size * self.length
        while len(self.rest) < wanted:
            texts = self._next_texts()
            spelled = partial(encode, special_tokens_in_text=self.special_tokens_in_text)
            for ids in encode_documents(texts, self.tokenizer, spelled):
                self.rest += ids.tolist()
        blocks = torch.tensor(self.rest[:wanted]).view(-1, self.length)  # (WINDOW B, L)
        del self.rest[:wanted]
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "window", self.window))
        self.blocks = blocks[torch.randperm(len(blocks), generator=generator)]

    def _next_texts(self) -> list[str]:
        while True:
            with readable(self.source):
                texts = [document["text"] for document in islice(self.reader, DOCUMENTS_AT_ONCE)]
            if texts:
                self.opened_at, self.untouched = None, False
                return texts
            if self.untouched:  # every later pass would be empty, too
                raise ValueError(f"dataset={self.source!r} has no documents besides those held out.")
            self.passes += 1
            self._open(None)

    def _open(self, stream: dict | None) -> None:
        self.documents.set_epoch(self.passes)  # a loaded state is valid in its own pass only
        self.opened_at = stream  # valid until something is read; None at the start of a later pass
        self.untouched = stream is None
        if stream is not None:
            self.documents.load_state_dict(stream)
        self.reader = iter(self.documents)

    def state_dict(self) -> dict:
        """Returns where the window in memory began, as JSON can store it."""
        return self.start

    def load_state_dict(self, state: dict) -> None:
        self.start, self.window = state, state["window"] - 1
        self.rest, self.passes = list(state["rest"]), state["passes"]
        self._open(state["stream"])
