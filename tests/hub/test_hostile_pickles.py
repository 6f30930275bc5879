# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Conversion runs no code of a pickle, whatever its form and the file that it lies in."""

import io
import pickle
import re
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from radd_hf.hub.convert import convert
from support.paths import GOLDEN

HUB, RUN = GOLDEN / "hub", GOLDEN / "run"


# Pickles that would make the file MARK, by the function that is called: (module, name, argument as Python code).
CALLS = [
    ("os", "system", "'touch MARK'"),
    ("posix", "system", "'touch MARK'"),
    ("os", "popen", "'touch MARK'"),
    ("os", "mkdir", "'MARK'"),
    ("builtins", "exec", "'import os; os.mkdir(\"MARK\")'"),
    ("builtins", "eval", '\'__import__("os").mkdir("MARK")\''),
    ("builtins", "open", "'MARK', 'w'"),
    ("io", "open", "'MARK', 'w'"),
    ("subprocess", "call", "['touch', 'MARK'],"),
    ("subprocess", "check_output", "['touch', 'MARK'],"),
    ("pathlib", "Path.touch", "PATH,"),
    ("runpy", "run_path", "'SCRIPT',"),
    ("timeit", "timeit", "'import os; os.mkdir(\"MARK\")', 'pass', TIMER, 1"),
    ("shutil", "copyfile", "'SCRIPT', 'MARK'"),
    ("importlib", "import_module", "'antigravity',"),
    ("codecs", "open", "'MARK', 'w'"),
    ("torch", "load", "'SCRIPT',"),
    ("torch.hub", "load", "'SCRIPT', 'main'"),
    ("torch.ops", "load_library", "'SCRIPT',"),
    ("torch.utils.data._utils.worker", "os.system", "'touch MARK'"),
    ("numpy", "fromfile", "'SCRIPT',"),
    ("functools", "partial", "print,"),
    ("operator", "methodcaller", "'touch',"),
    ("types", "SimpleNamespace", ""),
]


def call_of(module: str, name: str, argument: str, mark: Path, script: Path) -> bytes:
    """A pickle that calls a function when it is opened."""
    names = {"PATH": mark, "TIMER": time.perf_counter}
    argument = argument.replace("MARK", str(mark)).replace("SCRIPT", str(script))
    given = eval(f"({argument.rstrip(',')},)" if argument else "()", names)
    arguments = pickle.dumps(given, 2)[2:-1]
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def forms_of(mark: Path) -> dict[str, bytes]:
    """The ways in which a pickle can make an object, and the ways in which one can be no pickle at all."""
    command = f"touch {mark}"
    system, text = b"cposix\nsystem\n", b"X" + len(command).to_bytes(4, "little") + command.encode()
    call = system + text + b"\x85R"
    return {
        "reduce": call,
        "inst": b"(" + text + b"iposix\nsystem\n",
        "obj": b"(" + system + text + b"o",
        "newobj": system + text + b"\x85\x81",
        "newobj_ex": system + text + b"\x85}\x92",
        "stack_global": short("posix") + short("system") + b"\x93" + text + b"\x85R",
        "build": b"ctypes\nSimpleNamespace\n)R}" + short("x") + call + b"sb",
        "extension": b"\x82\x01" + text + b"\x85R",
        "persistent": call + b"Q",
        "persistent_text": b"Pposix.system\n",
        "memo": call + b"q\x000h\x00",
        "key": b"}" + call + b"Ns",
        "in_a_list": b"]" + call + b"a",
        "in_a_rebuilt_tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(" + call + b"K\x00)))tR",
        "in_a_rebuilt_parameter": b"ctorch._utils\n_rebuild_parameter\n(" + call + b"\x89}tR",
        "of_a_dictionary": b"ccollections\nOrderedDict\n)R}" + short("__reduce__") + call + b"sb",
        "getattr": b"cbuiltins\ngetattr\n(ctorch\nTensor\n" + short("__init__") + b"tR",
        "newobj_of_a_class": b"cpathlib\nPath\n" + short(str(mark)) + b"\x85\x81",
        "twice": b"\x80\x02" + call + b"0" + call,
        "nested": b"(" * 10_000 + call,
        "deep": b"]" * 100_000 + b"a" * 99_999,
        "huge_text": b"\x8d" + (2**62).to_bytes(8, "little") + b"x",
        "huge_bytes": b"B" + (2**32 - 1).to_bytes(4, "little") + b"x",
        "huge_array": b"\x96" + (2**62).to_bytes(8, "little") + b"x",
        "huge_number": b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x",
        "negative_number": b"\x8b" + (-1).to_bytes(4, "little", signed=True),
        "huge_memo": b"Nr\xff\xff\xff\xff" + call,
        "missing_memo": b"h\xff",
        "empty_stack": b"R",
        "no_opcode": b"\xff\xfe",
        "nothing": b"",
        "truncated": call[:-7],
        "text": b"no pickle",
    }


def file_of_1_6(pickled: bytes) -> bytes:
    """What torch.save writes, with another pickle in it."""
    memory, made = io.BytesIO(), io.BytesIO()
    torch.save({}, memory)
    with zipfile.ZipFile(memory) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, pickled if entry.endswith("data.pkl") else old.read(entry))
    return made.getvalue()


def file_before_1_6(pickled: bytes) -> bytes:
    header = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return header + pickled + pickle.dumps([], 2)


def file_of_tar(pickled: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    return made.getvalue()


FILES = {"zip": file_of_1_6, "legacy": file_before_1_6, "tar": file_of_tar, "bare": lambda pickled: pickled}


@pytest.mark.parametrize("kind", FILES)
def test_no_pickle_runs_code_and_each_ends_in_a_sentence(tmp_path, run, hub, kind):
    mark, script = tmp_path / "mark", tmp_path / "script.py"
    script.write_text(f"import os; os.mkdir({str(mark)!r})")
    payloads = {f"{module}.{name}": call_of(module, name, argument, mark, script) for module, name, argument in CALLS}
    payloads |= forms_of(mark)
    (hub / "model.safetensors").unlink()
    places = {run: run / "checkpoints-meta" / "checkpoint.pth", hub: hub / "pytorch_model.bin"}
    places[run / "checkpoints-meta" / "other.pth"] = run / "checkpoints-meta" / "other.pth"
    for name, payload in payloads.items():
        for source, file in places.items():
            file.write_bytes(FILES[kind](b"\x80\x02}" + short("model") + payload + b"s."))
            with pytest.raises(ValueError, match=rf"{re.escape(file.name)} |source=") as refused:
                convert(source, tmp_path / "target")
            assert len(str(refused.value)) < 700, name
            assert not mark.exists(), name
    assert not (tmp_path / "target").exists()
    print(f"{len(payloads)} payloads in files of the kind {kind} at {len(places)} places: none ran")


@pytest.mark.parametrize(("module", "name", "argument"), CALLS[:10])
def test_the_payloads_would_work(tmp_path, module, name, argument):
    mark = tmp_path / "mark"
    pickle.loads(b"\x80\x02" + call_of(module, name, argument, mark, tmp_path / "script.py") + b".")
    for _ in range(100):  # a command that is not waited for
        if mark.exists():
            return
        time.sleep(0.05)
    pytest.fail("it did not run")


def test_an_archive_that_grows_when_it_is_opened_is_refused(tmp_path, run):
    file = run / "checkpoints-meta" / "checkpoint.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 4_000_000 + b"}.")
        bomb.writestr("archive/version", b"3\n")
    with pytest.raises(
        ValueError, match=r"checkpoint\.pth is not a whole file of torch\.save.* more bytes than it has"
    ):
        convert(run, tmp_path / "target")


def test_a_file_of_an_old_torch_is_read(tmp_path, run):
    checkpoint = torch.load(run / "checkpoints-meta" / "checkpoint.pth", weights_only=True)
    torch.save(checkpoint, run / "checkpoints-meta" / "checkpoint.pth", _use_new_zipfile_serialization=False)
    convert(run, tmp_path / "old")
    convert(RUN, tmp_path / "new")
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("old", "new"))
    assert all(torch.equal(old[name], new[name]) for name in new)


def test_our_layout_in_a_hostile_pickle_is_refused(tmp_path):
    source, mark = tmp_path / "ours", tmp_path / "mark"
    convert(HUB, source)
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(
        file_of_1_6(b"\x80\x02}" + short("a") + forms_of(mark)["reduce"] + b"s.")
    )
    with pytest.raises(ValueError, match="cannot be loaded: its weights are damaged, or opening them would run code"):
        convert(source, tmp_path / "target")
    assert not mark.exists()
