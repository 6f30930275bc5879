# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Loads a model that need not fit into memory: over several devices, main memory and the disk, in any precision.

    python examples/big_model.py                                  the fastest devices first, as much as they hold
    python examples/big_model.py --max_memory '{"cpu": "8MB"}'    the rest stays on the disk
    python examples/big_model.py --model me/large --dtype float16 --max_memory '{"0": "20GiB", "cpu": "60GiB"}'

Loading maps weights from their file and never holds them twice. A layer is never split; the layers on the disk are read
when they are needed, at every evaluation, which is slow but needs the memory of one layer. In float32 the samples are
the same; in half precision rounding changes a token now and then.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from radd_hf import RaddForMaskedLM
from radd_hf.hub.loading import load_tokenizer

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "radd-austen"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16")
    parser.add_argument("--max_memory", type=json.loads, help='of each device, such as {"0": "20GiB", "cpu": "60GiB"}')
    parser.add_argument("--prefix", default="It was a")
    parser.add_argument("--length", type=int, default=24)
    args = parser.parse_args(argv)
    limits = args.max_memory and {int(name) if name.isdigit() else name: size for name, size in args.max_memory.items()}

    with TemporaryDirectory() as offload:  # for weights that are not of the asked type; others are read where they are
        model = RaddForMaskedLM.from_pretrained(
            args.model, dtype=args.dtype, device_map="auto", max_memory=limits, offload_folder=offload
        )
        tokenizer = load_tokenizer(args.model)
        # The map names modules and their places; there is none where everything fits on one device.
        places = getattr(model, "hf_device_map", None) or {"the model": model.device}
        held = sum(parameter.nbytes for parameter in model.parameters() if parameter.device.type != "meta")
        for module, place in places.items():
            print(f"{module:<20} {place}")
        print(f"weights: {held:,} of {sum(parameter.nbytes for parameter in model.parameters()):,} bytes in memory")
        ids = model.generate(prefix=args.prefix, length=args.length, tokenizer=tokenizer, seed=0)
        print(tokenizer.decode(ids[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
