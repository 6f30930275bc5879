# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What a job on a file costs is measured beside a full batch; what a GPU does in an hour is what was measured."""

import re

import pytest

from benchmarks import batches, hour, scoring
from support.paths import ROOT


@pytest.mark.parametrize(
    ("main", "texts"),
    [
        (batches.main, "12 texts; a generated token is in one of .* tokens on average, .* of them blank"),
        (scoring.main, "12 texts of .*, 16 passes"),
    ],
)
def test_a_job_is_timed_beside_a_batch_of_equal_lengths(capsys, monkeypatch, main, texts):
    monkeypatch.chdir(ROOT)
    main(["--rows", "12", "--batch_tokens", "256"])
    printed = capsys.readouterr().out
    assert re.search(rf"^{texts}$", printed, re.MULTILINE)
    assert len(re.findall(r"[\d,]+ tokens/s$", printed, re.MULTILINE)) == 2
    assert re.search(r"^ratio +\d\.\d\d$", printed, re.MULTILINE)


def test_the_table_of_an_hour_is_that_of_the_page(capsys):
    hour.main([])
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 6
    assert all(row in page for row in [printed.splitlines()[0], *rows])
