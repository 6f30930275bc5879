# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m radd_hf` is the command `radd`."""

from .app.cli import program

if __name__ == "__main__":
    program()
