# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A web page on which the shipped checkpoint writes.

    python app.py                    # on this machine alone, at the address it prints
    python app.py --help

It needs gradio (`pip install 'radd_hf[demo]'`). A Space of the Hub runs this file as it is.
"""

import sys
from pathlib import Path

from radd_hf.app.web import main

if __name__ == "__main__":
    main(sys.argv[1:], model=str(Path(__file__).parent / "checkpoints" / "radd-austen"))
