# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Rows are read of every kind of file, and written with their results beside them."""

import datetime
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from radd_hf.data.files import read_rows
from radd_hf.jobs import rows as rows_module
from radd_hf.jobs.rows import RowsFile, RowsWriter, check_rows_output, windows_of

RESULTS = {"row": pa.int64(), "text": pa.string(), "error": pa.string()}


def results_of(count: int) -> list[dict]:
    return [{"row": row, "text": f"text {row}", "error": None} for row in range(count)]


def written(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, output: Path) -> list[dict]:
    source, results = RowsFile.examine("input", str(path), output), results_of(9)
    with RowsWriter(output, RESULTS, source, path.with_suffix(".partial")) as writer:
        for window in windows_of(path):
            writer.add([(row, results.pop(0)) for row in window])
    return written(output)


def test_a_line_of_text_is_a_row_whatever_stands_in_it(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\n\ntwo\u2028\x0cthree\n  four \nfive".encode())
    assert [row["text"] for row in read_rows(file)] == ["one", "", "two\u2028\x0cthree", "  four ", "five"]
    file.write_bytes(b"one\n")
    assert [row["text"] for row in read_rows(file)] == ["one"]
    with gzip.open(tmp_path / "b.txt.gz", "wb") as stream:
        stream.write(b"one\ntwo\n")
    assert [row["text"] for row in read_rows(tmp_path / "b.txt.gz")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"one\n\xff\n", "line 2: the byte 0xff is not UTF-8"),
        ("a.txt", b"one\n\0\n", "line 2: a NUL"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: "),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2 must be an object with columns"),
        ("a.parquet", b"PAR1 and nothing else", "a.parquet: Arrow"),
        ("a.txt.gz", b"\x1f\x8b\x08\0", "ends before its compressed data does"),
        ("a.jsonl", b"", "has no rows"),
        ("a.csv", b"text\na\n", "must be a file that ends in .txt, .jsonl"),
    ],
)
def test_a_file_that_is_at_fault_is_refused_before_work_starts(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)) as refused:
        RowsFile.examine("input", str(tmp_path / name), tmp_path / "o.jsonl")
    assert reason in str(refused.value)
    with pytest.raises(ValueError, match="no such file"):
        RowsFile.examine("input", str(tmp_path / "absent.txt"), tmp_path / "o.jsonl")
    with pytest.raises(ValueError, match="must be a file that ends in"):
        RowsFile.examine("input", str(tmp_path), tmp_path / "o.jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_of_the_input_stay_beside_the_results(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(rows_module, "WINDOW", 2)
    file = tmp_path / "in.jsonl"
    rows = [{"id": 1, "text": "a [MASK]"}, {"id": 2, "text": "ü [MASK]", "note": [1, 2]}, {"id": None, "text": "c"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = write(file, tmp_path / f"out.{kind}")
    expected = [
        result | {"id": row["id"], "input_text": row["text"]} for result, row in zip(results_of(3), rows, strict=True)
    ]
    expected[1] |= {"note": [1, 2]}
    if kind == "parquet":
        expected = [{**row, "note": row.get("note")} for row in expected]
    assert found == expected
    assert found[1]["input_text"] == "ü [MASK]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", f"out.{kind}"]


def test_a_parquet_file_keeps_its_types(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.large_string()),
            "when": pa.array([datetime.datetime(2026, 1, 2), None]),
            "score": pa.array([1, None], pa.int16()),
            "error": pa.array(["x", "y"]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    found = write(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert found[0]["when"] == datetime.datetime(2026, 1, 2)
    assert found[0]["input_error"] == "x"
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.field("score").type == pa.int16()
    assert schema.field("input_text").type == pa.large_string()
    as_json = write(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert as_json[0]["when"] == "2026-01-02 00:00:00"
    assert as_json[1]["score"] is None


def test_what_parquet_cannot_hold_is_refused_before_work_starts(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "a", "id": 1}\n{"text": "b", "id": "two"}\n')
    with pytest.raises(ValueError, match=r"the column 'id' does not fit parquet .*: name an output"):
        RowsFile.examine("input", str(file), tmp_path / "out.parquet")
    file.write_text('{"text": "\\ud800"}\n')
    with pytest.raises(ValueError, match="the column 'text' does not fit parquet"):
        RowsFile.examine("input", str(file), tmp_path / "out.parquet")
    assert write(file, tmp_path / "out.jsonl")[0]["input_text"] == "\ud800"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ('{"text": "a", "x": {}}\n', "'x' does not fit parquet (Cannot write struct type"),
        (
            '{"text": "a", "x": 1152921504606846977}\n' * 2 + '{"text": "a", "x": 1.5}\n',
            "has floats and integers beyond",
        ),
    ],
)
def test_types_that_a_parquet_file_cannot_have_are_refused_before_work_starts(tmp_path, rows, reason, monkeypatch):
    monkeypatch.setattr(rows_module, "WINDOW", 2)
    (tmp_path / "in.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=re.escape(reason)):
        RowsFile.examine("input", str(tmp_path / "in.jsonl"), tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_columns_of_parquet_are_taken_with_the_types_that_they_have(tmp_path):
    tables = {
        "m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "h": pa.array([2**63 + 5], pa.uint64()),
        "b": pa.array([b"\xff\x00"]),
    }
    pq.write_table(pa.table({"text": ["a"], **tables}), tmp_path / "in.parquet")
    packed = tmp_path / "in.parquet.gz"
    with gzip.open(packed, "wb") as stream:
        stream.write((tmp_path / "in.parquet").read_bytes())
    (row,) = write(packed, tmp_path / "out.parquet")
    assert (row["m"], row["h"], row["b"]) == ([("a", 1)], 2**63 + 5, b"\xff\x00")
    (row,) = write(packed, tmp_path / "out.jsonl")
    assert (row["h"], row["b"]) == (2**63 + 5, "/wA=")
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array(["a"])], names=["x", "x"]), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match="has several columns named 'x'"):
        RowsFile.examine("input", str(tmp_path / "in.parquet"), tmp_path / "out.jsonl")


def test_a_file_that_was_not_written_to_its_end_is_not_there(tmp_path):
    (tmp_path / "in.txt").write_text("a\nb\n")
    for output in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        source = RowsFile.examine("input", str(tmp_path / "in.txt"), output)
        with pytest.raises(KeyError), RowsWriter(output, RESULTS, source, tmp_path / "partial") as writer:
            writer.add([({"text": "a"}, results_of(1)[0]), ({"unknown": "b"}, results_of(1)[0])])
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_an_output_has_one_of_two_endings_and_a_folder(tmp_path):
    for name, reason in (("a.txt", "must end in .jsonl or .parquet"), ("absent/a.jsonl", "there is no folder")):
        with pytest.raises(ValueError, match=reason):
            check_rows_output("output", str(tmp_path / name))
