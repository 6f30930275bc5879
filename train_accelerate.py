# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Trains a RADD model on one or many devices.

    accelerate launch train_accelerate.py --config configs/austen.yaml --output_dir runs/austen

`--help` lists every setting. The training loop is in `radd_hf/training/train.py`. Where radd_hf is installed,
`radd train` and `accelerate launch -m radd_hf train` run the same.
"""

from radd_hf.processes import run_script
from radd_hf.training.train import main

if __name__ == "__main__":
    run_script(main)
