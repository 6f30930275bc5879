# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the quality and the cost of what a RADD model writes, over methods and numbers of steps.

    accelerate launch eval_generation.py --model checkpoints/radd-austen --judge gpt2-large --reference austen

`--help` lists every setting. The code is in `radd_hf/evaluation/samples.py`. Where radd_hf is installed,
`radd quality` and `accelerate launch -m radd_hf quality` run the same.
"""

from radd_hf.evaluation.samples import main
from radd_hf.processes import run_script

if __name__ == "__main__":
    run_script(main)
