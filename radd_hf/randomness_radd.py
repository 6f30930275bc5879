# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Independent streams of random numbers from one seed."""

import hashlib


def stream_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed for the stream of that name, e.g. `stream_seed(0, "masks", step)`.

    Hashed rather than added up: generators of equal or shifted seeds, one for masks and one for dropout, say, would
    give correlated numbers.
    """
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
