# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishes a model: weights, code, tokenizer, and a model card that says how to use it and where it comes from.

    hf auth login
    python eval_ppl.py --model runs/mine/checkpoints/step_6400 --dataset austen --output result.json
    python examples/push_to_hub.py runs/mine/checkpoints/step_6400 me/my-radd --license apache-2.0 \
        --recipe runs/mine/config.yaml --evaluation result.json
    python examples/push_to_hub.py checkpoints/radd-austen me/radd-austen --endpoint
    python examples/push_to_hub.py checkpoints/radd-austen me/radd-austen --dry_run

The model card is made from the files in the folder (`radd_hf/hub/model_card.py`). The title and the sections that you
wrote into the folder's README.md stay. `--endpoint` adds `handler.py` and `requirements.txt`; an inference endpoint of
the Hub needs them to serve the model.
"""

import argparse
from pathlib import Path

from huggingface_hub import upload_file
from transformers.utils.logging import disable_progress_bar

from radd_hf.endings import run_program
from radd_hf.hub.convert import endpoint_files
from radd_hf.hub.loading import load_model, load_tokenizer
from radd_hf.hub.model_card import card_of, check_license, check_repository


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with a model and its tokenizer")
    parser.add_argument("repository", help="repository on the Hub, such as me/my-radd; created if it does not exist")
    parser.add_argument("--recipe", type=Path, help="config.yaml of the training run, for the model card")
    parser.add_argument(
        "--evaluation", type=Path, help="result file that eval_ppl.py wrote with --output, for the model card"
    )
    parser.add_argument("--license", help="license of the weights, such as apache-2.0; default: that of the model card")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--endpoint", action="store_true", help="add the files of an inference endpoint")
    parser.add_argument("--dry_run", action="store_true", help="print the model card and upload nothing")
    args = parser.parse_args(argv)
    disable_progress_bar()
    check_repository("repository", args.repository)
    check_license("license", args.license)

    # Loaded in the precision of the folder, which is published unchanged.
    model = load_model(str(args.folder), dtype="auto", argument="folder")
    tokenizer = load_tokenizer(str(args.folder), "a folder that has one")
    card = card_of(
        args.folder,
        recipe=args.recipe,
        evaluation=args.evaluation,
        license=args.license,
        repository=args.repository,
        model=model,
    )
    if args.dry_run:
        print(card)
        return
    model.push_to_hub(args.repository, private=args.private)  # the code files go with it
    tokenizer.push_to_hub(args.repository)
    beside = {"README.md": card.encode()} | (endpoint_files() if args.endpoint else {})
    for name, content in beside.items():
        upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=args.repository)
    print(f"{args.repository} is published.")


if __name__ == "__main__":
    run_program(main, "push_to_hub")
