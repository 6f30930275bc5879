# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Loads a model larger than the memory of one device: over several devices, main memory and disk, in any precision.

    python examples/big_model.py                                  fill the fastest devices first
    python examples/big_model.py --max_memory '{"cpu": "8MB"}'    leave the rest on disk
    python examples/big_model.py --model me/large --dtype float16 --max_memory '{"0": "20GiB", "cpu": "60GiB"}'

Loading maps the weights from their file and never holds them twice. A layer is never split. Layers on disk are read at
every evaluation. This is slow, but needs the memory of only one layer. In float32 the samples stay the same. In half
precision rounding may change a token.
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
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder or Hub repository of a RADD model")
    parser.add_argument("--dtype", default="auto", help="precision: auto (as saved), float32, bfloat16 or float16")
    parser.add_argument("--max_memory", type=json.loads, help='limits by device: {"0": "20GiB", "cpu": "60GiB"}')
    parser.add_argument("--prefix", default="It was a", help="text to continue")
    parser.add_argument("--length", type=int, default=24, help="tokens of the text, with the prefix")
    args = parser.parse_args(argv)
    limits = args.max_memory and {int(name) if name.isdigit() else name: size for name, size in args.max_memory.items()}

    with TemporaryDirectory() as offload:  # for weights saved in another precision; others are read from their file
        model = RaddForMaskedLM.from_pretrained(
            args.model, dtype=args.dtype, device_map="auto", max_memory=limits, offload_folder=offload
        )
        tokenizer = load_tokenizer(args.model)
        # The map names the device of each module. It is missing if everything fits on one device.
        places = getattr(model, "hf_device_map", None) or {"the model": model.device}
        held = sum(parameter.nbytes for parameter in model.parameters() if parameter.device.type != "meta")
        for module, place in places.items():
            print(f"{module:<20} {place}")
        print(f"weights: {held:,} of {sum(parameter.nbytes for parameter in model.parameters()):,} bytes in memory")
        ids = model.generate(prefix=args.prefix, length=args.length, tokenizer=tokenizer, seed=0)
        print(tokenizer.decode(ids[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
