# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Serves a web page on which the shipped checkpoints fill texts and solve Sudoku puzzles.

    python app.py                    # on this machine alone, at the address it prints
    python app.py --help

It needs gradio (`pip install 'radd_hf[demo]'`). A Space of the Hub runs this file as it is.
"""

from pathlib import Path

from radd_hf.endings import run_program


def main(argv: list[str]) -> None:
    from radd_hf.app.web import main as web_main  # here: a missing gradio then ends the program with one line

    web_main(argv, model=str(Path(__file__).parent / "checkpoints" / "radd-austen"))


if __name__ == "__main__":
    run_program(main, "app.py")
