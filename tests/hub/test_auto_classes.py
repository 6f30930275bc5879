"""A checkpoint folder is a whole model: loaded by the auto classes in a process that cannot import radd_hf."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, pipeline
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import radd_hf
from radd_hf import RaddConfig, RaddForMaskedLM, RaddGenerationConfig
from support.launches import WITHOUT_RADD_HF
from support.paths import AUTO_MAP, ROOT, SHIPPED
from support.toys import random_model

LOAD_GENERATE_SAVE = """
import json, torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

folder, again = sys.argv[1:]
ids = torch.arange(6)[None]
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "radd"
logits = []
for auto in (AutoModel, AutoModelForMaskedLM):
    model = auto.from_pretrained(folder, trust_remote_code=True)
    logits.append(model(ids).logits)
sample = model.generate(prefix=[1, 2], length=8, generator=torch.Generator().manual_seed(0))
model.save_pretrained(again)
logits.append(AutoModel.from_pretrained(again, trust_remote_code=True)(ids).logits)
assert all(torch.equal(logits[0], other) for other in logits)
assert "radd_hf" not in sys.modules
print(json.dumps({"logits": logits[0][..., :-1].tolist(), "sample": sample.tolist(), "class": type(model).__name__}))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    model = random_model(vocab_size=11, max_position_embeddings=8)
    model.generation_config = RaddGenerationConfig(steps=4, top_k=5)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_folder_holds_the_code_the_full_auto_map_and_our_names(folder):
    files = {path.name for path in folder.iterdir()}
    assert files == {*SHIPPED, "config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    for name in SHIPPED:
        assert (folder / name).read_text() == (ROOT / "radd_hf" / name).read_text()
        assert not (folder / name).is_symlink()


def test_a_stranger_loads_generates_saves_and_loads_again(folder, tmp_path):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-W",
        "error:::transformers_modules",
        "-c",
        WITHOUT_RADD_HF + LOAD_GENERATE_SAVE,
        folder,
        tmp_path / "again",
    ]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert finished.returncode == 0, finished.stderr
    seen = json.loads(finished.stdout.splitlines()[-1])

    model = RaddForMaskedLM.from_pretrained(folder)
    ours = model(torch.arange(6)[None]).logits[..., :-1]
    torch.testing.assert_close(torch.tensor(seen["logits"]), ours, rtol=1e-6, atol=1e-6)
    sample = model.generate(prefix=[1, 2], length=8, generator=torch.Generator().manual_seed(0))
    assert seen == seen | {"sample": sample.tolist(), "class": "RaddForMaskedLM"}
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in folder.iterdir()}


def test_importing_the_package_registers_the_classes(folder):
    assert type(AutoConfig.from_pretrained(folder)) is RaddConfig
    for auto in (AutoModel, AutoModelForMaskedLM):
        assert type(auto.from_pretrained(folder)) is RaddForMaskedLM


@pytest.mark.parametrize("code", ["the package", "the folder"])
def test_whoever_asks_for_a_causal_model_is_told_in_one_line_what_to_use(folder, monkeypatch, code):
    config, settings = AutoConfig.from_pretrained(folder), {}
    if code == "the folder":
        settings["trust_remote_code"] = True
        monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})  # as without the package
        monkeypatch.setattr(AutoModelForCausalLM._model_mapping, "_extra_content", {})
        config = AutoConfig.from_pretrained(folder, **settings)
        assert type(config) is not RaddConfig
    asked = [
        lambda: AutoModelForCausalLM.from_pretrained(folder, **settings),
        lambda: AutoModelForCausalLM.from_config(config, **settings),
        lambda: pipeline("text-generation", model=str(folder), **settings),
    ]
    for call in asked:
        with pytest.raises(LookupError, match="RADD fills masks and is not a causal language model") as told:
            call()
        assert "load AutoModelForMaskedLM" in str(told.value)
        assert "\n" not in str(told.value)
        assert "model.generate(prefix=..., max_new_tokens=..." in str(told.value)


def test_the_generation_config_travels_with_the_model(folder):
    loaded = RaddForMaskedLM.from_pretrained(folder).generation_config
    assert (loaded.steps, loaded.top_k, loaded.method) == (4, 5, None)


def test_every_shipped_file_is_linked_at_the_root():
    needed = {Path(path).name for path in get_relative_import_files(ROOT / "radd_hf" / "modeling_radd.py")}
    assert needed | {"modeling_radd.py"} == set(SHIPPED)
    for name in SHIPPED:
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).resolve() == (ROOT / "radd_hf" / name).resolve()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_import_nothing_but_torch_transformers_hub_and_the_standard_library(name):
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse((ROOT / "radd_hf" / name).read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1 if node.level else node.module.split(".")[0] in allowed
            if node.level:
                assert f"{node.module}.py" in SHIPPED


def test_the_package_names_its_version():
    assert radd_hf.__version__


# Private names that shipped code may use, and why.
ALLOWED = {
    "_version": "after hasattr",
    "_attn_implementation": "how transformers calls a setting of every model",
    "_hf_hook": "how accelerate calls the hook of an offloaded module",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_code_uses_no_private_name_of_torch_without_a_default(name):
    """`getattr(torch.X, "_name", default)` is a string and passes; `torch.X._name` may be gone in the next torch."""
    tree = ast.parse((ROOT / "radd_hf" / name).read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not any(part.startswith("_") for part in parts), f"{name}: {node.module}"
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            assert on_self or node.attr in ALLOWED or node.attr in own, f"{name}:{node.lineno}: {node.attr}"
