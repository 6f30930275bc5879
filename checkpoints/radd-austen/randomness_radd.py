# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Makes independent streams of random numbers from one seed.

A stream is a sequence of random numbers for one purpose: the masks of a step, say, or the tokens of a sample. It
depends on the seed and the purpose, not on the order of computation. So batches, processes and restarts do not change
it.

Shapes: R rows, L length.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .settings_radd import LARGEST_INTEGER, is_integer, plain, shortened


def stream_seed(seed: int, *stream: str | int) -> int:
    """Returns the 63-bit seed of the stream of that name, e.g. `stream_seed(0, "masks", step)`.

    It is a hash. With a sum of seed and step, the generators of two purposes could get the same sum, and then give the
    same numbers.
    """
    # NumPy's numbers have another repr; as Python's numbers they give the same stream.
    digest = hashlib.sha256(repr((plain(seed), *map(plain, stream))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def text_seed(seed: int, text: int = 0) -> int:
    """Returns the seed of one of the texts that a call fills; they are numbered from 0."""
    return stream_seed(seed, "text", text)


# Generators of one call, at most; each takes five kilobytes.
MOST_GENERATORS = 2**16


def sample_generators(seed_of_text: int, samples: Sequence[int]) -> list[torch.Generator]:
    """Makes a generator for each of these samples of a text; `seed_of_text` is what [`text_seed`] returned.

    All that generates text calls this: `generate(seed=)`, the pipeline, the command line, the web page and
    `eval_generation.py`. So the same seed, settings and sample number give the same text in each of them.

    Raises:
        ValueError: for more than `MOST_GENERATORS` samples.
    """
    if len(samples) > MOST_GENERATORS:
        raise ValueError(
            f"num_return_sequences={len(samples)} with a seed must be at most {MOST_GENERATORS}, since each sample has "
            "a generator: make several calls."
        )
    return [torch.Generator().manual_seed(stream_seed(seed_of_text, "sample", sample)) for sample in samples]


def check_seed(seed: int) -> int:
    """Returns the seed, or raises a ValueError if it is not an integer in 0 .. 2^63 - 1."""
    seed = plain(seed)
    if not is_integer(seed, 0, LARGEST_INTEGER):
        raise ValueError(f"seed={shortened(seed)} must be an integer in 0 .. 2^63 - 1.")
    return seed


class Uniforms:
    """Draws uniform numbers in [0, 1) with 53 bits, (R, L) at each call.

    Padding takes no number. So a row with its own generator has the same numbers in any batch.

    Args:
        generator: one for all rows, a list with one for each row, or None for torch's default generator of `device`.
        not_padding: (R, L) bool, False at padding. The numbers are on the device of this tensor.

    Raises:
        ValueError: if a list does not have one generator for each row.
        TypeError: for an object of another type.
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        not_padding: Tensor,
        device: torch.device | None = None,
    ):
        self.not_padding, self.device = not_padding, not_padding.device if device is None else device
        rows = len(not_padding)
        self.sources: list[tuple[torch.Generator | None, int]]  # each with the number of rows it serves
        if generator is not None and not isinstance(generator, torch.Generator):
            if not isinstance(generator, (list, tuple)):
                raise TypeError(f"generator={generator!r} must be a torch.Generator, or a list of one for each row.")
            if len(generator) != rows:
                raise ValueError(f"generator is a list of {len(generator)}; the batch has {rows} rows, one for each.")
            self.sources = [(source, 1) for source in generator]
        else:
            self.sources = [(generator, rows)]
        for source, _ in self.sources:
            if source is not None and not isinstance(source, torch.Generator):
                raise TypeError(f"generator={source!r} must be a torch.Generator, or a list of one for each row.")

    def __call__(self) -> Tensor:
        device = self.not_padding.device
        counts = [int(rows.sum()) for rows in self.not_padding.split([rows for _, rows in self.sources])]
        draws = [
            torch.rand(
                count, generator=source, dtype=torch.float64, device=self.device if source is None else source.device
            ).to(device)
            for count, (source, _) in zip(counts, self.sources, strict=True)
        ]
        uniform = torch.zeros(self.not_padding.shape, dtype=torch.float64, device=device)
        return uniform.masked_scatter_(self.not_padding, torch.cat(draws))  # (R, L)


__all__ = ["Uniforms", "check_seed", "sample_generators", "stream_seed", "text_seed"]
