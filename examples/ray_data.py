# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills the blanks of a table of rows with Ray Data: one model in each actor, on one machine or a cluster.

    pip install 'ray[data]'
    python examples/ray_data.py checkpoints/radd-austen prompts.jsonl out/ --actors 2
    python examples/ray_data.py checkpoints/radd-austen prompts.parquet out/ --settings '{"temperature": 0.7}'

The input is .jsonl or .parquet with a column "text" of texts with blanks ("It was [MASK:4] of spring."), or columns
"prefix", "suffix" and "length". An actor uses a GPU if the cluster has one, or else one thread of a CPU. `out/` gets
Parquet files with the results and the columns of the input. The column "row" gives the order of the rows.

Another pipeline needs only `Predictor`. It also works in `datasets.map`, without Ray:

    from datasets import load_dataset
    prompts = load_dataset("json", data_files="prompts.jsonl", split="train")
    texts = prompts.map(Predictor("checkpoints/radd-austen"), batched=True, with_indices=True)
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.json
import pyarrow.parquet
import torch

from radd_hf import RaddForMaskedLM
from radd_hf.endings import run_program
from radd_hf.hub.loading import load, load_config, weights_hash
from radd_hf.jobs.batches import BATCH_TOKENS
from radd_hf.jobs.filling import RowFiller, columns_to_fill
from radd_hf.jobs.rows import input_names
from radd_hf.ranges import check_count
from radd_hf.settings_radd import plain


class Predictor:
    """Fills the blanks of batches of rows, with a model loaded once.

        rows.map_batches(Predictor, fn_constructor_args=["checkpoints/radd-austen"], batch_format="pyarrow", ...)
        dataset.map(Predictor("checkpoints/radd-austen"), batched=True, with_indices=True)

    The random numbers of a row depend on `seed` and the row's number, or on the row's own "seed" if there is such a
    column. So its result is the same in any batch, on any actor, and after a restart. The number comes from a column
    "row"; without one, `datasets` passes it (`with_indices=True`).

    The results are the columns of [`radd_hf.jobs.filling.RowFiller`]: text, fills, log_probabilities, ..., error. A
    refused row gets an error and does not stop the others. If a column of the batch has the name of a result, it is
    renamed "input_NAME".

    Args:
        model: folder or Hub repository of a RADD model. Each actor must find a folder under this name.
        text_column: the column of texts with blanks. Default: "text", or "prefix", "suffix" and "length".
        seed: the seed of rows without their own seed.
        settings: settings of `generate`, such as steps and temperature; `batch_tokens`, rows x length computed
            together.

    Raises:
        ValueError: for a model that cannot be loaded, or a setting that is refused.
    """

    def __init__(self, model: str, *, text_column: str | None = None, seed: int = 0, **settings: Any):
        self.arguments = {"model": model, "text_column": text_column, "seed": seed, **settings}
        self.text_column = text_column
        self.filler = RowFiller(*load(model, device=None), seed=seed, **settings)  # device None: a GPU, if any

    def __call__(self, batch: pa.Table | Mapping[str, Any], indices: Sequence[int] | None = None) -> Any:
        """Returns the batch with the columns of the results: a table, or a dictionary if columns were given.

        Args:
            batch: a table, or columns by name.
            indices: the numbers of the rows, for a batch without a column "row".

        Raises:
            ValueError: if the columns needed to fill blanks are missing, or a row has neither number nor seed.
        """
        table = table_of(batch)
        self.filler.columns = columns_to_fill(table.column_names, self.text_column)
        numbers = numbers_of(table, indices)
        results = self.filler(table.to_pylist(), numbers)

        types = {name: kind for name, kind in self.filler.results.items() if name != "row"}
        found = pa.Table.from_pylist(results, schema=pa.schema(types))  # a batch of errors has the same types, too
        place = {number: index for index, number in enumerate(numbers)}
        table = table.take([place[result["row"]] for result in results])
        names = input_names(table.column_names, types)
        table = table.rename_columns([names[name] for name in table.column_names])
        for name in types:
            table = table.append_column(name, found[name])
        return table.to_pydict() if type(batch) is dict else table

    # Pickling keeps only the arguments, and another process loads the model again. `datasets` hashes this state.
    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": self.arguments, "weights": weights_hash(self.filler.model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Predictor.__init__(self, **state["arguments"])


def table_of(batch: pa.Table | Mapping[str, Any]) -> pa.Table:
    """Returns a batch as a table. Its columns keep the types of the data set."""
    table = getattr(batch, "pa_table", batch)  # the table behind a batch of `datasets`
    return table if isinstance(table, pa.Table) else pa.table({name: plain(column) for name, column in table.items()})


def numbers_of(table: pa.Table, indices: Sequence[int] | None = None) -> list[int]:
    """Returns the number of each row. It determines the random numbers of a row without a seed."""
    if "row" in table.column_names:
        indices = table["row"].to_pylist()
        if not all(type(number) is int for number in indices) or len(set(indices)) < len(indices):
            raise ValueError("the column 'row' must hold a different integer for each row.")
    elif indices is None:
        if "seed" not in table.column_names or table["seed"].null_count:
            raise ValueError(
                f"the columns {table.column_names} have no 'row', and not every row has a 'seed': number the rows, "
                "because a result must not depend on the batch. With datasets pass with_indices=True; for Ray add the "
                "column when you write the file, or like `numbered` does."
            )
        indices = range(len(table))
    return pa.array(indices, pa.int64()).to_pylist()  # turns Arrow's numbers into Python's


def numbered(file: Path) -> pa.Table:
    """Reads a file. Numbers its rows in a column "row" if there is none."""
    table = pa.parquet.read_table(file) if file.suffix == ".parquet" else pa.json.read_json(file)
    return table if "row" in table.column_names else table.append_column("row", pa.array(range(len(table)), pa.int64()))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "model", help="folder or Hub repository of a RADD model; on a cluster every machine must find it"
    )
    parser.add_argument("input", type=Path, help=".jsonl or .parquet file with texts to fill")
    parser.add_argument("output", type=Path, help="folder to write Parquet files to")
    parser.add_argument(
        "--text_column", help="column of texts with blanks; default: text, or prefix, suffix and length"
    )
    parser.add_argument("--actors", type=int, default=1, help="number of models that work at the same time")
    parser.add_argument("--batch_size", type=int, default=256, help="rows that an actor takes at a time")
    parser.add_argument("--batch_tokens", type=int, default=BATCH_TOKENS, help="rows x length computed together")
    parser.add_argument("--seed", type=int, default=0, help="seed of rows without their own")
    parser.add_argument("--settings", type=json.loads, default={}, help='settings of generate: {"temperature": 0.7}')
    args = parser.parse_args(argv)

    # Refuses here, before any actor starts, what would fail in every one.
    if args.output.exists():
        raise ValueError(f"output={str(args.output)!r} exists already: pass another folder, or remove it.")
    for name in ("actors", "batch_size"):
        check_count(name, getattr(args, name))
    settings = {"seed": args.seed, "batch_tokens": args.batch_tokens, **args.settings}
    with torch.device("meta"):  # checks the settings on a network without weights
        RowFiller(RaddForMaskedLM(load_config(args.model)), None, **settings)
    table = numbered(args.input)
    if not len(table):
        raise ValueError(f"input={str(args.input)!r} has no rows.")
    columns_to_fill(table.column_names, args.text_column)
    numbers_of(table)

    import ray  # imported here, since `datasets.map` works without it

    if not ray.is_initialized():
        ray.init()
    blocks = [table.slice(first, args.batch_size) for first in range(0, len(table), args.batch_size)]
    results = ray.data.from_arrow(blocks).map_batches(
        Predictor,
        fn_constructor_args=[args.model],
        fn_constructor_kwargs={"text_column": args.text_column, **settings},
        batch_format="pyarrow",  # in numpy's format, integers with nulls would be floats
        batch_size=args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
        num_cpus=0,  # if actors held every CPU, the tasks that write files would wait forever
    )
    results.write_parquet(str(args.output.absolute()), mode="error")

    written = pa.dataset.dataset(args.output)
    refused = written.count_rows(filter=~pa.dataset.field("error").is_null())
    print(f"{args.output}: {written.count_rows():,} rows")
    if refused:
        raise ValueError(f"{refused} of {len(table)} rows were refused; the column 'error' says why.")


if __name__ == "__main__":
    run_program(main, Path(sys.argv[0]).name)
