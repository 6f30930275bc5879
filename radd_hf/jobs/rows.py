# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the rows of a file, and writes them with their results.

    txt       each line is a row with the column "text"
    jsonl     each object is a row; also json: objects or a list of objects
    parquet   each row is a row

Input files may be compressed (.gz, .bz2, .xz, .zst).
"""

import base64
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.files import ENDINGS, KINDS, ending_of, parquet_schema, read_rows
from ..endings import visible
from ..results import check_output, to_json

# Number of rows that are read, sorted by length and put into batches together.
WINDOW = 16384
OUTPUTS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class RowsFile:
    """Describes a file after one pass over it. schema: types of its columns in a parquet output."""

    path: Path
    columns: tuple[str, ...]
    rows: int
    sha256: str
    schema: pa.Schema | None = None

    @classmethod
    def examine(cls, argument: str, name: str, output: Path) -> "RowsFile":
        """Reads a file once, to report its faults before the work starts.

        Args:
            argument: the user's name for the argument, for messages.
            output: file that the rows will be written to. In parquet the values of a column must have one type.

        Raises:
            ValueError: for a missing file, another kind of file, a file without rows, and where [`read_rows`] does.
        """
        path = Path(name)
        if path.is_dir() or ending_of(path) not in KINDS:
            raise ValueError(f"{argument}={name!r} must be a file that ends in {ENDINGS}.")
        if not path.is_file():
            raise ValueError(f"{argument}={name!r}: no such file.")
        columns, rows, types = dict[str, None](), 0, None
        sha256 = hash_of(path)
        if ending_of(path) == ".parquet":
            columns |= dict.fromkeys(_names(parquet_schema(path), argument, name))
        if ending_of(output) == ".parquet":
            types = _Types(f"{argument}={name!r}")
        for window in windows_of(path):
            columns |= dict.fromkeys(key for row in window for key in row)
            rows += len(window)
            if types is not None and ending_of(path) != ".parquet":
                types.add(window, list(columns))
        if not rows:
            raise ValueError(f"{argument}={name!r} has no rows.")
        if types is not None and ending_of(path) == ".parquet":
            types.schema = parquet_schema(path)
        return cls(path, tuple(columns), rows, sha256, None if types is None else types.checked())

    def check_unchanged(self) -> None:
        """Raises a ValueError if the file was changed after it was read."""
        if not self.path.is_file() or hash_of(self.path) != self.sha256:
            raise ValueError(
                f"{str(self.path)!r} was changed while the job ran, so the results belong to other rows. Restore the "
                "file and run the command again, or name another output."
            )

    @property
    def windows(self) -> int:
        return -(-self.rows // WINDOW)


def windows_of(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a file, `WINDOW` at a time."""
    rows = read_rows(path)
    while window := list(islice(rows, WINDOW)):
        yield window


def hash_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _names(schema: pa.Schema, argument: str, name: str) -> list[str]:
    twice = {column for column in schema.names if schema.names.count(column) > 1}
    if twice:
        raise ValueError(f"{argument}={name!r} has several columns named {min(twice)!r}: give each its own name.")
    return schema.names


class _Types:
    """Finds the types of columns in parquet. `source` is the user's input, for messages."""

    # Larger integers are not exact in a column of floats.
    EXACT = 2**53

    def __init__(self, source: str):
        self.source, self.schema = source, pa.schema([])
        self.inexact = set[str]()  # columns with such integers

    def add(self, rows: list[dict], columns: list[str]) -> None:
        for column in columns:
            values = [row.get(column) for row in rows]
            try:
                schema = pa.schema([(column, pa.array(values).type)])
                self.schema = pa.unify_schemas([self.schema, schema], promote_options="permissive")
            except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError) as error:
                raise self._misfit(column, error) from error
            if any(type(value) is int and abs(value) > self.EXACT for value in values):
                self.inexact.add(column)

    def checked(self) -> pa.Schema:
        """Returns the types. Raises a ValueError for types that parquet does not have."""
        for field in self.schema:
            if field.name in self.inexact and pa.types.is_floating(field.type):
                raise self._misfit(field.name, f"it has floats and integers beyond {self.EXACT}")
            try:
                pq.write_table(pa.schema([field]).empty_table(), io.BytesIO())
            except pa.ArrowException as error:
                raise self._misfit(field.name, error) from error
        return self.schema

    def _misfit(self, column: str, reason: object) -> ValueError:
        why = " ".join(str(reason).split())
        return ValueError(
            f"{self.source}: the column {column!r} does not fit parquet ({why}): name an output that ends in .jsonl."
        )


def check_text_column(columns: Sequence[str], text_column: str) -> None:
    """Raises a ValueError if the column does not exist."""
    if text_column not in columns:
        raise ValueError(f"text_column={text_column!r} must be one of {list(columns)}.")


def check_rows_output(argument: str, name: str) -> Path:
    """Returns the file to write. Raises a ValueError if it cannot be written, and for an unknown ending."""
    if Path(name).suffix not in OUTPUTS:
        raise ValueError(f"{argument}={name!r} must end in {' or '.join(OUTPUTS)}.")
    check_output(argument, name)
    path = Path(name)
    return path.resolve() if path.is_symlink() else path  # writing keeps a link and replaces its target


# ---------------------------------------------------------------------------------------------------------
# The file to write
# ---------------------------------------------------------------------------------------------------------


class RowsWriter:
    """Writes rows one after another. The file appears only when the `with` block ends without an error.

    Args:
        results: types of the results by name. An input column with the name of a result becomes "input_NAME".
        source: the input.
        partial: file that collects the rows, on the same disk; it becomes `path` at the end.
    """

    def __init__(self, path: Path, results: Mapping[str, pa.DataType], source: RowsFile, partial: Path):
        self.path, self.partial = path, partial
        self.names = input_names(source.columns, results)
        self.types = dict(results)
        self.schema = None
        if source.schema is not None:
            fields = [pa.field(self.names[field.name], field.type) for field in source.schema]
            self.schema = pa.schema([*results.items(), *fields])

    def __enter__(self) -> "RowsWriter":
        self.stack = ExitStack()
        self.stream = self.stack.enter_context(self.partial.open("wb"))
        if self.schema is not None:
            self.parquet = self.stack.enter_context(pq.ParquetWriter(self.stream, self.schema))
        return self

    def add(self, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Writes rows of the input with their results."""
        joined = [
            {name: results.get(name) for name in self.types} | {self.names[name]: row[name] for name in row}
            for row, results in rows
        ]
        if self.schema is not None:
            self.parquet.write_table(pa.Table.from_pylist(joined, schema=self.schema))
            return
        for row in joined:
            self.stream.write(json_line(row).encode())

    def __exit__(self, kind: Any, *failure: Any) -> None:
        if kind is None and self.schema is not None:
            self.parquet.close()  # writes the end of the file
        if kind is None:
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.stack.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink(missing_ok=True)


def input_names(columns: Sequence[str], results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the name of each input column in the output. It differs from all names of results."""
    names = {}
    for column in columns:
        name = column
        while name in results or (name != column and name in columns):
            name = f"input_{name}"
        names[column] = name
    return names


def json_line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line of JSON, with null for NaN, bytes in base64 and dates as text."""
    return visible(to_json(row, ensure_ascii=False, default=_as_text)) + "\n"


def _as_text(value: Any) -> str:
    """Returns a value without a JSON type as text: bytes in base64, others as Python's `str` does."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
