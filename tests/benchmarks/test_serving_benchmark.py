# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of `radd serve` asks a server and counts its answers."""

import os

from benchmarks import serving
from support.paths import ROOT
from support.toys import random_model


def test_clients_are_answered_with_the_texts_that_they_have_alone(tmp_path, monkeypatch, tiny_tokenizer):
    random_model(vocab_size=300, max_position_embeddings=32).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    sizes = ["--clients", "3", "--requests", "2", "--blank", "2", "--rounds", "1"]
    result = serving.main(["--model", str(tmp_path), *sizes])
    assert (result["answers"], result["compared"], result["lost"], result["different"]) == (6, 6, 0, 0)
    assert result["ratio"] == result["served_tokens_per_second"] / result["offline_tokens_per_second"] > 0
