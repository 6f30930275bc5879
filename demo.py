# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills a blank in a novel that the model was not trained on.

The shipped checkpoint (5.3 M parameters) was trained on five of Jane Austen's novels. The passage is from the sixth,
Persuasion. The checkpoint is loaded like any checkpoint of the Hub.
"""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

CHECKPOINT = Path(__file__).parent / "checkpoints" / "radd-austen"
OPENING = "I can listen no longer in silence."
PREFIX, BLANK, SUFFIX = 48, 22, 42  # tokens
METHODS: dict[str, dict[str, Any]] = {
    "tweedie, 8 steps": {"method": "tweedie", "steps": 8},
    "tweedie, 24 steps": {"method": "tweedie", "steps": 24},
    "tweedie, 1024 steps": {"method": "tweedie", "steps": 1024},
    "euler, 24 steps": {"method": "euler", "steps": 24},
    "first_hitting": {"method": "first_hitting"},
    "ordered, forward": {"method": "ordered"},
    "ordered, backward": {"method": "ordered", "order": "backward"},
    "ordered, random": {"method": "ordered", "order": "random"},
}


def main() -> None:
    # radd_hf is imported later: transformers would prefer its class to the folder's own code.
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)
    from radd_hf.data.documents import load_documents

    novel = load_documents("austen", "validation")[0]["text"]
    passage = novel[novel.index(OPENING) :][:2000]
    ids = tokenizer(passage)["input_ids"][: PREFIX + BLANK + SUFFIX]
    prefix, truth, suffix = ids[:PREFIX], ids[PREFIX : PREFIX + BLANK], ids[PREFIX + BLANK :]

    def one_line(tokens: list[int]) -> str:
        return " ".join(str(tokenizer.decode(tokens)).split())

    code = type(model).__module__.split(".")[0]
    print(f"{type(model).__name__} of {CHECKPOINT.name}, by the code in that folder ({code})")
    print(f"{model.num_parameters():,} parameters, {len(ids)} tokens, {BLANK} of them masked\n")
    print(f"{one_line(prefix)}\n    [{BLANK} masks]\n{one_line(suffix)}\n")
    print(f"the author wrote:        {one_line(truth)}\n")
    print(f"{'method':<22}{'evaluations':>12}{'seconds':>9}   filled with")
    for seed, (name, settings) in enumerate(METHODS.items()):
        started = time.perf_counter()
        output = model.generate(
            prefix=prefix,
            suffix=suffix,
            length=len(ids),
            temperature=0.7,
            generator=torch.Generator().manual_seed(seed),
            return_dict_in_generate=True,
            **settings,
        )
        seconds = time.perf_counter() - started
        filled = output.sequences[0, PREFIX : PREFIX + BLANK].tolist()
        print(f"{name:<22}{output.num_function_evaluations.item():>12}{seconds:>9.2f}   {one_line(filled)}")
    print("\nA step that fills no mask costs no evaluation, so 1024 steps take at most one evaluation for each mask.")


if __name__ == "__main__":
    main()
