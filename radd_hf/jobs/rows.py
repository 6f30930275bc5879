# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the rows of a file, and writes them with their results.

    txt       a row for each line, in the column "text"
    jsonl     a row for each object; json: also a list of them
    parquet   a row for each row

Files to read may be compressed (.gz, .bz2, .xz, .zst).
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.files import ENDINGS, KINDS, ending_of, read_rows
from ..endings import visible
from ..results import check_output, to_json

# Rows that are read, sorted by length and put into batches together.
WINDOW = 16384
OUTPUTS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class RowsFile:
    """Holds what one pass over a file found. `schema` is that of a parquet file to write, without the results."""

    path: Path
    columns: tuple[str, ...]
    rows: int
    sha256: str
    schema: pa.Schema | None = None

    @classmethod
    def examine(cls, argument: str, name: str, output: Path) -> "RowsFile":
        """Reads a file once, so that its faults are reported before work starts.

        Args:
            argument: the user's word for the file, for messages.
            output: where the rows will be written; for parquet their types must agree.

        Raises:
            ValueError: for no such file, another kind of file, no row, and what [`read_rows`] refuses.
        """
        path = Path(name)
        if path.is_dir() or ending_of(path) not in KINDS:
            raise ValueError(f"{argument}={name!r} must be a file that ends in {ENDINGS}.")
        if not path.is_file():
            raise ValueError(f"{argument}={name!r}: there is no such file.")
        columns, rows, typed = dict[str, None](), 0, ending_of(output) == ".parquet"
        schema = pa.schema([]) if typed else None
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        for window in windows_of(path):
            columns |= dict.fromkeys(key for row in window for key in row)
            rows += len(window)
            if schema is not None:
                schema = _with_types_of(schema, window, list(columns), argument, name)
        if not rows:
            raise ValueError(f"{argument}={name!r} has no rows.")
        if typed and ending_of(path) == ".parquet":
            schema = pq.read_schema(path).remove_metadata()  # the types of the file itself
        return cls(path, tuple(columns), rows, digest, schema)

    @property
    def windows(self) -> int:
        return -(-self.rows // WINDOW)


def windows_of(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a file, `WINDOW` at a time."""
    rows = read_rows(path)
    while window := list(islice(rows, WINDOW)):
        yield window


def _with_types_of(schema: pa.Schema, window: list[dict], columns: list[str], argument: str, name: str) -> pa.Schema:
    """Returns the schema with the types of these rows."""
    for column in columns:
        try:
            found = pa.array([row.get(column) for row in window]).type
            schema = pa.unify_schemas([schema, pa.schema([(column, found)])], promote_options="permissive")
        except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{argument}={name!r}: the column {column!r} does not fit parquet ({reason}): name an output that ends "
                "in .jsonl."
            ) from error
    return schema


def check_rows_output(argument: str, name: str) -> Path:
    """Returns the file to write; raises a ValueError where it could not be written, or for another ending."""
    if Path(name).suffix not in OUTPUTS:
        raise ValueError(f"{argument}={name!r} must end in {' or '.join(OUTPUTS)}.")
    check_output(argument, name)
    return Path(name)


# ---------------------------------------------------------------------------------------------------------
# The file to write
# ---------------------------------------------------------------------------------------------------------


class RowsWriter:
    """Writes rows as they come; the file appears when the `with` block ends without an error, else never.

    Args:
        results: the names and types of the results; a column of the input with such a name becomes "input_NAME".
        source: the input.
    """

    def __init__(self, path: Path, results: Mapping[str, pa.DataType], source: RowsFile):
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
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
    """Returns the output's name of each input column, other than the names of results."""
    names = {}
    for column in columns:
        name = column
        while name in results or (name != column and name in columns):
            name = f"input_{name}"
        names[column] = name
    return names


def json_line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line of JSON: dates and the like as text, null for NaN."""
    return visible(to_json(row, ensure_ascii=False, default=str)) + "\n"
