# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Tests the Predictor of examples/ray_data.py under `datasets.map` and, where Ray is installed, under Ray Data.

`make ray` installs Ray beside the environment and runs this file with two actors on two processors.
"""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from datasets import Dataset, load_dataset

from radd_hf.endings import status_of
from radd_hf.hub.loading import load
from radd_hf.jobs.filling import RowFiller
from ray_data import Predictor, main
from support.launches import QUIET
from support.paths import CHECKPOINT, ROOT

SETTINGS = {"seed": 5, "steps": 4}
ROWS = [
    {"text": "It was [MASK:4] of spring.", "name": "a"},
    {"text": "She [MASK:3] and [MASK:6].", "name": "b"},
    {"text": "Nothing to fill.", "name": "c"},
    {"text": "Emma had [MASK:4] of joy.", "name": "d", "seed": 2**62 + 1},
    {"text": "[MASK:12]", "name": "e"},
    {"text": "He [MASK:2]", "name": "f"},
    {"text": "It was [MASK:4] of joy.", "name": "g"},
]
RESULTS = ["text", "fills", "log_probabilities", "log_probability", "tokens", "nfe", "error"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(str(CHECKPOINT), **SETTINGS)


@pytest.fixture(scope="module")
def expected() -> list[dict]:
    """What the class that Predictor wraps gives for all rows at once."""
    return RowFiller(*load(str(CHECKPOINT)), **SETTINGS)(ROWS, range(len(ROWS)))


@pytest.fixture
def prompts(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def read(file: Path) -> Dataset:
    return load_dataset("json", data_files=str(file), split="train")


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    """Logits round differently in another batch, so log-probabilities are compared closely and the rest exactly."""
    assert len(rows) == len(expected)
    for row, result in zip(rows, expected, strict=True):
        for name in ("text", "fills", "tokens", "nfe", "error"):
            assert row[name] == result.get(name)
        if result["error"] is None:
            assert row["log_probabilities"] == pytest.approx(result["log_probabilities"], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------
# datasets.map
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 7])
def test_a_row_has_the_same_result_in_any_batch(batch_size, predictor, expected, prompts):
    written = read(prompts).map(predictor, batched=True, with_indices=True, batch_size=batch_size)
    assert_same(written.to_list(), expected)
    assert len({row.get("text") for row in expected}) == len(ROWS)


def test_results_stand_beside_the_columns_of_the_input(predictor, prompts):
    written = read(prompts).map(predictor, batched=True, with_indices=True)
    assert written.column_names == ["input_text", "name", "seed", *RESULTS]
    assert written["input_text"][:] == [row["text"] for row in ROWS]
    assert written["name"][:] == list("abcdefg")


def test_a_refused_row_has_its_reason_and_the_others_are_written(predictor, prompts):
    written = read(prompts).map(predictor, batched=True, with_indices=True, batch_size=3)
    assert "has no blank" in written["error"][2]
    assert written["text"][2] is None
    assert [row["error"] for row in written].count(None) == len(ROWS) - 1


def test_a_process_of_its_own_writes_the_same(predictor, expected, prompts):
    written = read(prompts).map(predictor, batched=True, with_indices=True, num_proc=2)
    assert_same(written.to_list(), expected)


def test_rows_are_what_their_column_row_says_wherever_they_stand(predictor, expected):
    table = pa.Table.from_pylist([row | {"row": number} for number, row in enumerate(ROWS)])
    mixed = table.take([4, 0, 6])
    assert_same(pa.table(predictor(mixed)).to_pylist(), [expected[number] for number in (4, 0, 6)])


def test_streams_and_data_sets_of_any_format_are_written(predictor, expected, prompts):
    stream = read(prompts).to_iterable_dataset().map(predictor, batched=True, with_indices=True)
    assert_same(list(stream), expected)
    for kind in ("arrow", "torch", "numpy", "pandas"):
        written = read(prompts).with_format(kind).map(predictor, batched=True, with_indices=True, batch_size=4)
        found = written.with_format(None).to_list()
        if kind != "arrow":  # which make floats of integers with gaps, so that a large seed is another
            assert "seed=4.61" in found.pop(3)["error"]
        assert_same(found, [row for row in expected if len(found) == len(expected) or row["row"] != 3])


def test_rows_with_seeds_need_no_number(predictor, expected):
    given = {"text": [ROWS[3]["text"]], "seed": [ROWS[3]["seed"]]}
    assert_same(pa.table(predictor(given)).to_pylist(), [expected[3]])


def test_columns_of_arrays_are_read_like_lists(predictor):
    """numpy, in which Ray hands over batches by default, has integers with gaps as floats."""
    gaps = {"prefix": ["It was", "She"], "suffix": [None, "."], "length": [12, None], "row": [0, 1]}
    arrays = gaps | {
        "length": np.array([12.0, np.nan]),
        "row": np.arange(2),
        "prefix": np.array(gaps["prefix"], object),
    }
    found, same = predictor(arrays), predictor(gaps)
    assert [found[name] for name in RESULTS] == [same[name] for name in RESULTS]


def test_several_samples_of_a_row_stand_together():
    several = Predictor(str(CHECKPOINT), number=2, steps=2)
    written = several(pa.table({"text": ["He [MASK:2]", "none", "[MASK:3] she"], "row": [8, 3, 5]})).to_pylist()
    assert [(row["row"], row["sample"]) for row in written] == [(8, 0), (8, 1), (3, 0), (5, 0), (5, 1)]
    assert [row["input_text"] for row in written[-2:]] == ["[MASK:3] she"] * 2


def test_the_same_model_and_settings_find_their_cache_and_others_do_not(predictor, prompts, tmp_path, caplog):
    def fingerprint(predictor: Predictor) -> str:
        return datasets.fingerprint.Hasher.hash(predictor)

    with caplog.at_level(logging.WARNING, logger="datasets"):
        first = read(prompts).map(predictor, batched=True, with_indices=True)
        again = read(prompts).map(Predictor(str(CHECKPOINT), **SETTINGS), batched=True, with_indices=True)
    assert "hash" not in caplog.text
    assert first.cache_files == again.cache_files != []
    assert fingerprint(predictor) != fingerprint(Predictor(str(CHECKPOINT), **SETTINGS | {"steps": 5}))
    # A model that has changed under its name.
    moved = tmp_path / "model"
    shutil.copytree(CHECKPOINT, moved)
    before = Predictor(str(moved), **SETTINGS)
    model, _ = load(str(moved))
    model.lm_head.bias.data += 1
    model.save_pretrained(moved)
    assert fingerprint(before) != fingerprint(Predictor(str(moved), **SETTINGS))


# ---------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------


def test_rows_without_number_or_seed_are_refused_with_the_way_to_number_them(predictor):
    with pytest.raises(ValueError, match=r"no 'row'.*with_indices=True"):
        predictor({"text": ["It was [MASK:4]."]})
    with pytest.raises(ValueError, match="not every row has a 'seed'"):
        predictor({"text": ["It was [MASK:4]."] * 2, "seed": [1, None]})
    for row in ([0, 0], [0, None], [0.5, 1.0]):
        with pytest.raises(ValueError, match="'row' must hold a different integer for each row"):
            predictor({"text": ["It was [MASK:4]."] * 2, "row": row})


def test_columns_without_a_request_are_refused(predictor):
    with pytest.raises(ValueError, match=r"\['body', 'row'\] have neither 'text'"):
        predictor({"body": ["It was [MASK:4]."], "row": [0]})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--actors", "0"], "actors=0 must be"),
        (["--batch_size", "0"], "batch_size=0 must be"),
        (["--batch_tokens", "0"], "batch_tokens=0 must be"),
        (["--seed", "-1"], "seed=-1 must be"),
        (["--settings", '{"temperature": -1}'], "temperature=-1 must be"),
        (["--settings", '{"max_time": 3}'], "max_time=3 makes a text depend"),
        (["--text_column", "body"], "text_column='body' must be one of"),
    ],
)
def test_a_command_line_is_refused_before_ray_starts(arguments, reason, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # which cannot be imported
    output = tmp_path / "out"
    command = [str(CHECKPOINT), str(prompts), str(output), *arguments]
    assert status_of(lambda: main(command), "ray_data.py") == 1
    assert reason in capsys.readouterr().err
    assert not output.exists()


def test_files_that_do_not_fit_are_refused_before_ray_starts(prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    empty, there = tmp_path / "empty.parquet", tmp_path / "there"
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), empty)
    there.mkdir()
    for model, source, output, reason in (
        (CHECKPOINT, empty, tmp_path / "out", "has no rows"),
        (CHECKPOINT, tmp_path / "absent.jsonl", tmp_path / "out", "absent.jsonl"),
        (CHECKPOINT, prompts, there, "exists already"),
        (tmp_path / "no_model", prompts, tmp_path / "out", "no_model"),
    ):
        assert status_of(lambda: main([str(model), str(source), str(output)]), "ray_data.py") == 1  # noqa: B023
        assert reason in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------
# Ray
# ---------------------------------------------------------------------------------------------------------

# A small Ray on this machine alone; `main` works in a Ray that runs.
RAY = """
import sys, ray
from ray_data import main
ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, _temp_dir=sys.argv[1])
try:
    for actors, batch_size in ((2, 2), (1, 3)):
        try:
            main([*sys.argv[2:5], sys.argv[5] + str(actors), "--actors", str(actors), "--batch_size", str(batch_size)])
        except ValueError as error:
            print(error)
finally:
    ray.shutdown()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="see `make ray`")
def test_ray_writes_the_same_with_two_actors_with_one_and_in_other_batches(prompts, tmp_path, expected):
    arguments = [str(CHECKPOINT), str(prompts), "--settings=" + json.dumps(SETTINGS), str(tmp_path / "out")]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as home:  # short: a socket's path has a limit
        environment = QUIET | {"HOME": home, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ":".join(sys.path)}
        ended = subprocess.run(
            [sys.executable, "-c", RAY, home, *arguments],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("1 of 7 rows were refused; the column 'error' says why.") == 2
    for folder in ("out1", "out2"):
        rows = pa.dataset.dataset(tmp_path / folder).to_table().sort_by("row").to_pylist()
        assert [row["name"] for row in rows] == list("abcdefg")
        assert_same(rows, expected)
