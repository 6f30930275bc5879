"""Whatever happens to the files of a checkpoint is found and named, and the run goes on from the one before.

`RADD_DAMAGES` is how many places of every file are damaged: 3 in `make test`, more in `make torture`.
"""

import json
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from accelerate import Accelerator
from safetensors.torch import load_file

from radd_hf.hub.runs import MANIFEST, all_checkpoints, damage_of, read_manifest
from radd_hf.processes import on_main
from radd_hf.training import train
from radd_hf.training.checkpoints import complete, delete_old, find_checkpoint, make_partial, set_aside_after
from support.damage import Payload, rewrite_manifest
from support.launches import TINY, free_port
from support.paths import contents
from support.toys import random_model

PLACES = int(os.environ.get("RADD_DAMAGES", "3"))
STATE = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "progress.json", "manifest.json")


def start(folder: Path, **settings) -> None:
    flags = [part for name, value in (TINY | {"n_samples": 0} | settings).items() for part in (f"--{name}", str(value))]
    train.main([*flags, "--output_dir", str(folder)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_text, tiny_tokenizer) -> Path:
    """The folder of a run with checkpoints at 4 and 8, which have adapters, so that every kind of file is there."""
    base, folder = (tmp_path_factory.mktemp(name) for name in ("base", "finished"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    starting = {"embedding_std": 0.5, "zero_init_residual": True}
    random_model(**sizes, **starting, vocab_size=300, max_position_embeddings=16).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    start(folder / "run", dataset=tiny_text, init_from=base, vocab_size=300, lora_rank=2)
    return folder / "run"


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_text) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    start(folder, dataset=tiny_text)
    return folder


@pytest.fixture
def folder(plain, tmp_path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "run"))


# Damage


def damages(name: str, whole: bytes, older: bytes) -> Iterator[tuple[str, bytes | None]]:
    """What may become of a file: a few words, and its bytes; None where it is missing."""
    yield "missing", None
    yield "empty", b""
    chance, length = random.Random(name), len(whole)
    places = {"begin": 0, "middle": length // 2, "end": length - 1}
    places |= {f"byte {place}": place for place in (chance.randrange(length) for _ in range(PLACES))}
    for where, place in places.items():
        yield f"cut at {where}", whole[:place]
        for mask in (1 << chance.randrange(8), 0x20, 0xFF):  # one bit, the case of a letter, all bits
            yield f"{mask} flipped at {where}", whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
        stop = min(length, place + chance.choice([1, 16, 512, 4096, length]))
        yield f"zeros from {where} to {stop}", whole[:place] + bytes(stop - place) + whole[stop:]
    yield "half zeros", whole[: length // 2] + bytes(length - length // 2)
    yield "longer", whole + b"\0"
    yield "of an older step", older


def test_every_damage_of_every_file_of_a_checkpoint_is_found_and_named(finished):
    newest, before = finished / "checkpoints/step_8", contents(finished / "checkpoints/step_4")
    assert damage_of(newest) is None
    files = contents(newest)
    assert {f"state/{name}" for name in STATE} < files.keys()
    assert "adapter/adapter_model.safetensors" in files
    tried = 0
    for name, whole in files.items():
        for what, damaged in damages(name, whole, before[name]):
            if damaged == whole:  # zeros where zeros were, and what two steps have in common
                continue
            (newest / name).unlink(missing_ok=True)
            if damaged is not None:
                (newest / name).write_bytes(damaged)
            found = damage_of(newest)
            assert found is not None, (name, what)
            assert name in found or (name == MANIFEST and what == "of an older step"), (name, what, found)
            tried += 1
        (newest / name).write_bytes(whole)
    assert damage_of(newest) is None
    print(f"{tried} damaged files of {len(files)} kinds tried, {tried} found and named")


@pytest.mark.parametrize("name", [*(f"state/{name}" for name in STATE), "tokenizer.json", "model.safetensors"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(folder, plain, tiny_text, name):
    file = folder / "checkpoints/step_8" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    start(folder, dataset=tiny_text)
    log = (folder / "train.log").read_text()
    assert f"step_8 is damaged: {name}" in log
    assert "resuming from step_4" in log
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step_4", "step_8", "step_8_damaged"}
    for state in ("model", "optimizer", "ema"):
        ours, theirs = (load_file(run / f"checkpoints/step_8/state/{state}.safetensors") for run in (folder, plain))
        assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_a_damaged_checkpoint_is_refused_if_that_was_asked_for_and_nothing_is_changed(folder, tiny_text):
    (folder / "checkpoints/step_8/state/ema.safetensors").write_bytes(b"")
    before = contents(folder / "checkpoints")
    with pytest.raises(
        ValueError, match=r"step_8 is damaged: state/ema\.safetensors has 0 bytes.*Without strict=True "
    ):
        start(folder, dataset=tiny_text, strict=True)
    assert contents(folder / "checkpoints") == before


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(folder, tiny_text):
    (folder / "checkpoints/step_8" / MANIFEST).unlink()
    (folder / "checkpoints/step_4/tokenizer.json").unlink()
    before = contents(folder / "checkpoints")
    why = r"step_8 is damaged: state/manifest\.json is missing: the checkpoint is half-deleted, or an older version of "
    why += r"radd_hf wrote it; step_4 is damaged: tokenizer\.json is missing"
    with pytest.raises(
        ValueError, match=rf"no checkpoint to resume from \({why}\)\. Pass another output_dir, or delete"
    ):
        start(folder, dataset=tiny_text)
    assert contents(folder / "checkpoints") == before


def test_damaged_checkpoints_are_never_the_last_ones_that_are_kept(folder, tiny_text):
    for step in (12, 16):
        shutil.copytree(folder / "checkpoints/step_8", folder / f"checkpoints/step_{step}")
    (folder / "checkpoints/step_12_damaged").mkdir()
    start(folder, dataset=tiny_text, max_steps=12, keep_last=1)
    log = (folder / "train.log").read_text()
    assert "step_16 is damaged: it was renamed: state/manifest.json says step 8; resuming from step_8" in log
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step_12", "step_12_damaged", "step_12_damaged_2", "step_16_damaged"}
    assert damage_of(folder / "checkpoints/step_12") is None


def test_a_run_that_is_refused_for_another_reason_leaves_a_damaged_checkpoint_in_its_place(folder, tiny_text):
    (folder / "checkpoints/step_8/config.json").unlink()
    with pytest.raises(ValueError, match="seed=1 must be 0, as in step_4"):
        start(folder, dataset=tiny_text, seed=1)
    assert [path.name for path in all_checkpoints(folder)] == ["step_4", "step_8"]


def test_what_cannot_be_read_is_damage(folder, monkeypatch):
    opened = Path.open

    def refuse(path, *given, **settings):
        if path.name == "optimizer.safetensors":
            raise PermissionError(13, "Permission denied")
        return opened(path, *given, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    newest = folder / "checkpoints/step_8"
    assert damage_of(newest) == "state/optimizer.safetensors cannot be read (Permission denied)"


def test_files_that_are_something_else_are_damage(folder):
    newest = folder / "checkpoints/step_8"
    for name in ("state/manifest.json", "state/ema.safetensors", "tokenizer.json"):
        whole = (newest / name).read_bytes()
        (newest / name).unlink()
        (newest / name).mkdir()
        assert damage_of(newest) == f"{name} is not a file"
        (newest / name).rmdir()
        os.mkfifo(newest / name)
        assert damage_of(newest) == f"{name} is not a file"
        (newest / name).unlink()
        if name == "state/manifest.json":
            (newest / name).write_bytes(whole)
            continue
        (newest / name).symlink_to(Path(name).name)
        assert damage_of(newest) == f"{name} cannot be read (Too many levels of symbolic links)"
        (newest / name).unlink()
        (newest / name).write_bytes(whole)


def test_what_a_user_puts_beside_the_files_is_no_damage(folder):
    (folder / "checkpoints/step_8/notes.txt").write_text("the best so far")
    assert damage_of(folder / "checkpoints/step_8") is None


# Identities


@pytest.mark.parametrize("name", [name for name in STATE if name != "manifest.json"])
def test_a_part_that_another_save_wrote_is_found_although_the_manifest_has_its_checksum(folder, name):
    """As two runs in one folder leave it."""
    newest = folder / "checkpoints/step_8"
    shutil.copy(folder / "checkpoints/step_4/state" / name, newest / "state" / name)
    rewrite_manifest(newest)
    assert f"state/{name} has save_id=" in damage_of(newest)


def test_all_saves_of_a_run_have_its_identity_also_after_a_restart(folder, tiny_text):
    start(folder, dataset=tiny_text, max_steps=12)
    found = [read_manifest(path).identities for path in all_checkpoints(folder)]
    assert len(found) == 3
    assert len({identities["run_id"] for identities in found}) == 1
    assert len({identities["save_id"] for identities in found}) == 3


# Pickles


@pytest.mark.parametrize("name", [f"state/{name}" for name in STATE if name != "manifest.json"])
def test_a_planted_pickle_runs_nothing(folder, tiny_text, tmp_path, name):
    newest = folder / "checkpoints/step_8"
    (newest / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    rewrite_manifest(newest)
    with pytest.raises(ValueError, match=rf"step_8 is damaged: {name} cannot be read"):
        start(folder, dataset=tiny_text, strict=True)
    assert not (tmp_path / "ran").exists()


def test_pickles_of_accelerate_and_torch_beside_the_state_are_not_read(folder, tiny_text, tmp_path):
    newest = folder / "checkpoints/step_8"
    for name in ("optimizer.bin", "scheduler.bin", "scaler.pt", "random_states_0.pkl", "pytorch_model.bin"):
        (newest / "state" / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        (newest / "state" / part).mkdir()
        (newest / "state" / part / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    rewrite_manifest(newest)
    start(folder, dataset=tiny_text, max_steps=9)
    assert not (tmp_path / "ran").exists()


def test_code_that_is_planted_with_the_tokenizer_is_not_run(folder, tiny_text, tmp_path):
    newest = folder / "checkpoints/step_8"
    (newest / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Planted:\n    pass\n")
    said = json.loads((newest / "tokenizer_config.json").read_text())
    said |= {"tokenizer_class": "Planted", "auto_map": {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}}
    (newest / "tokenizer_config.json").write_text(json.dumps(said))
    rewrite_manifest(newest)
    with pytest.raises(ValueError, match="step_8 cannot be restored"):
        start(folder, dataset=tiny_text, max_steps=9)
    assert not (tmp_path / "ran").exists()


# Names


def test_links_and_names_beside_the_checkpoints_never_matter(folder, tiny_text, tmp_path, caplog):
    place, elsewhere = folder / "checkpoints", tmp_path / "elsewhere"
    shutil.copytree(place / "step_8", elsewhere)
    kept = contents(elsewhere)
    for name in ("step_12", "step_99", "step_2", "partial_3", "deleted_1", "step_8_backup_link"):
        (place / name).symlink_to(elsewhere)
    (place / "step_latest").symlink_to("step_8")
    (place / "step_13").symlink_to("nowhere")
    shutil.copytree(place / "step_8", place / "step_12_backup")
    (place / "step_8" / "link").symlink_to(elsewhere)
    assert find_checkpoint(folder, strict=True).name == "step_8"
    assert f"{place / 'step_99'} is a link, and stays untouched" in caplog.text
    start(folder, dataset=tiny_text, max_steps=12, keep_last=1)
    assert contents(elsewhere) == kept
    assert [path.name for path in all_checkpoints(folder)] == ["step_12"]
    assert (place / "step_12_before").is_symlink()
    for name in ("step_99", "step_2", "partial_3", "deleted_1", "step_8_backup_link", "step_13", "step_latest"):
        assert (place / name).is_symlink(), name
    assert (place / "step_12_backup" / "config.json").is_file()


def test_a_folder_that_may_not_be_read_does_not_begin_a_run_anew(folder, tiny_text, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="checkpoints"):
        find_checkpoint(folder, strict=False)


# Saves and deletions that are killed


def test_a_checkpoint_loses_its_name_before_its_first_file(tmp_path, monkeypatch):
    identities = {"run_id": "a", "save_id": "b"}
    for step in (1, 2):
        partial = tmp_path / "checkpoints" / f"partial_{step}"
        make_partial(partial)
        (partial / "state" / "progress.json").write_text(json.dumps(identities))
        assert damage_of(complete(partial, identities, tmp_path / "metrics.jsonl")) is None

    def killed(path):
        (path / "state" / "progress.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        delete_old(tmp_path, keep_last=1)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step_2"]
    monkeypatch.undo()
    make_partial(tmp_path / "checkpoints/partial_3")
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_2", "partial_3"}


def test_what_killed_saves_left_is_removed_when_the_run_goes_on(folder, tiny_text):
    for name in ("partial_2/state", "partial_8", "deleted_3"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    start(folder, dataset=tiny_text)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step_4", "step_8"}


def test_later_checkpoints_alone_are_set_aside(tmp_path):
    for step in (2, 4, 10):
        (tmp_path / f"checkpoints/step_{step}").mkdir(parents=True)
    set_aside_after(tmp_path, 4)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_2", "step_4", "step_10_damaged"}


def test_every_file_and_folder_is_on_the_disk_before_a_checkpoint_has_its_name(folder, tiny_text, monkeypatch):
    synced, unsynced, sync, rename = set(), [], os.fsync, Path.replace

    def record(descriptor):
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def look(path, target):
        if path.name == "partial_12":
            everything = {str(each) for each in (*path.rglob("*"), path, folder / "metrics.jsonl")}
            unsynced.append(everything - synced)
            synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "replace", look)
    start(folder, dataset=tiny_text, max_steps=12)
    assert unsynced == [set()]
    assert str(folder / "checkpoints") in synced


# Several processes


def work(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator()

    def fail(error: Exception) -> None:
        raise error

    said = [on_main(accelerator, lambda: f"of process {accelerator.process_index}")]
    for error in (OSError("the disk is full"), ValueError("step_8 is damaged")):
        try:
            on_main(accelerator, lambda: fail(error))  # noqa: B023
        except (OSError, ValueError) as raised:
            said.append(f"{type(raised).__name__}: {raised}")
    (folder / str(rank)).write_text(json.dumps(said))
    accelerator.end_training()


def test_what_the_main_process_cannot_do_ends_all_of_them(tmp_path):
    mp.spawn(work, args=(tmp_path, free_port()), nprocs=2)
    for rank in (0, 1):
        said = json.loads((tmp_path / str(rank)).read_text())
        assert said == ["of process 0", "OSError: the disk is full", "ValueError: step_8 is damaged"]
