# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the zero-shot perplexity of a RADD model on a text, with its standard error.

    accelerate launch eval_ppl.py --model checkpoints/radd-austen --dataset austen

`--help` lists every setting. The code is in `radd_hf/evaluation/perplexity.py`. Where radd_hf is installed,
`radd eval` and `accelerate launch -m radd_hf eval` run the same.
"""

from radd_hf.evaluation.perplexity import main
from radd_hf.processes import run_script

if __name__ == "__main__":
    run_script(main)
