# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of speculation writes texts and prints what they took."""

import re

import pytest

from benchmarks import speculation


def test_every_k_is_a_line_of_the_table(capsys):
    flags = (
        "--lengths 8 --k 2 4 --samples 2 --calls 1 --repeats 1 --hidden_size 24 --layers 1 --heads 2 --vocab_size 50"
    )
    speculation.main(flags.split())
    printed = capsys.readouterr().out
    rows = re.findall(
        r"^\| (random|forward) \| 8 \| (\d) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", printed, re.M
    )
    assert [(order, k) for order, k, *_ in rows] == [(order, k) for order in speculation.ORDERS for k in "124"] * 2
    for _, k, tokens, evaluations, *_ in rows:
        assert 1 <= float(tokens) <= int(k)
        assert float(tokens) * float(evaluations) == pytest.approx(1, abs=0.01)
    assert (
        len(re.findall(r"^(random|forward) order, 8 tokens: (does not pay|pays most with k = [24])", printed, re.M))
        == 4
    )


def test_more_sequences_than_generate_takes_are_refused(capsys):
    with pytest.raises(SystemExit):
        speculation.main(["--k", "65"])
    assert "--k 65 must be at most 64" in capsys.readouterr().err
