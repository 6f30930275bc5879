"""Loading from and publishing to the Hub, as a user's own process does it, against a stand-in for the Hub on loopback.

Every scenario is a script run in a fresh process with its own cache; it prints what it saw as one line of JSON, and the
tests are sentences about that. A script may connect to loopback only.
"""

import http.client
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from radd_hf import RaddConfig, RaddForMaskedLM
from support.hub_scripts import OWNER, run_script
from support.hub_stand_in import HubStandIn
from support.launches import WITHOUT_RADD_HF
from support.paths import AUTO_MAP, GOLDEN, ROOT, SHIPPED, contents
from support.texts import AUTHORS_CODE, README_CODE
from support.toys import random_model

AUTHORS = "JingyangOu/radd-t-dce"
MODEL_FILES = {*SHIPPED, "config.json", "generation_config.json", "model.safetensors"}
IDS = torch.arange(6)[None]

STRANGER = (
    WITHOUT_RADD_HF
    + """
import torch, transformers
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(6)[None]).logits[..., :-1].tolist()

def sample_of(model):
    return model.generate(prefix=[1, 2], length=8, generator=torch.Generator().manual_seed(0)).tolist()
"""
)


@pytest.fixture(scope="module")
def hub():
    with HubStandIn() as hub:
        yield hub
        assert not hub.surprises


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def tiny_model(tokenizer, seed: int = 0) -> RaddForMaskedLM:
    return random_model(seed, vocab_size=len(tokenizer), max_position_embeddings=16)


def seen_by_us(model) -> dict:
    """The logits and the sample that the scripts report, from this process."""
    with torch.no_grad():
        logits = model(IDS).logits[..., :-1]
    sample = model.generate(prefix=[1, 2], length=8, generator=torch.Generator().manual_seed(0))
    return {"logits": logits, "sample": sample.tolist()}


def assert_same(seen: dict, model) -> None:
    ours = seen_by_us(model)
    torch.testing.assert_close(torch.tensor(seen["logits"]), ours["logits"], rtol=1e-6, atol=1e-6)
    assert seen["sample"] == ours["sample"]


# ---------------------------------------------------------------------------------------------------------
# The stand-in itself


def test_the_stand_in_answers_in_the_hubs_words(golden):
    with HubStandIn() as hub:
        commit = hub.publish(AUTHORS, golden / "hub")
        connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc)

        def ask(method, path, **headers):
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

        config = (golden / "hub" / "config.json").read_bytes()
        status, headers, body = ask("HEAD", f"/{AUTHORS}/resolve/main/config.json")
        assert (status, headers["X-Repo-Commit"], headers["Content-Length"]) == (200, commit, str(len(config)))
        assert (body, ask("GET", f"/{AUTHORS}/resolve/{commit}/config.json")[2]) == (b"", config)
        status, headers, body = ask("GET", f"/{AUTHORS}/resolve/main/config.json", Range="bytes=10-")
        assert (status, body, headers["Content-Range"]) == (
            206,
            config[10:],
            f"bytes 10-{len(config) - 1}/{len(config)}",
        )
        for path, code in {
            f"/{AUTHORS}/resolve/main/absent.json": "EntryNotFound",
            f"/{AUTHORS}/resolve/absent/config.json": "RevisionNotFound",
            "/someone/absent/resolve/main/config.json": "RepoNotFound",
        }.items():
            status, headers, _ = ask("HEAD", path)
            assert (status, headers["X-Error-Code"]) == (404, code)
        assert ask("POST", "/api/repos/create")[0] == 401, "uploading needs a token"
        assert not hub.surprises
        assert ask("GET", "/api/whoami-v2")[0] == 501
        assert hub.surprises == ["GET /api/whoami-v2"]
        connection.close()


# ---------------------------------------------------------------------------------------------------------
# The authors' repository, as it is on the Hub

LOAD_THE_AUTHORS = """
import torch
from transformers import AutoModel
from safetensors.torch import load_file
import radd_hf

name, golden, *lines_of_the_page = sys.argv[1:]
golden = load_file(golden)
expected = golden["logits"][..., :-1]
seen = {}
for way, lines in zip(("class", "auto class"), lines_of_the_page, strict=True):
    scope = {}
    exec(lines, scope)
    model = scope["model"]
    with torch.no_grad():
        logits = model(golden["input_ids"]).logits
    distance = (logits[..., :-1] - expected).norm() / expected.norm()
    seen[way] = {"class": type(model).__module__, "distance": distance.item(), "training": model.training}
try:
    AutoModel.from_pretrained(name, trust_remote_code=True)
except (OSError, ValueError) as error:
    seen["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def authors(hub, place):
    hub.publish(AUTHORS, GOLDEN / "hub")
    golden = GOLDEN / "forward.safetensors"
    assert all(AUTHORS in lines for lines in AUTHORS_CODE)
    return run_script(OWNER + LOAD_THE_AUTHORS, AUTHORS, golden, *AUTHORS_CODE, hub=hub, home=place / "authors")


@pytest.mark.parametrize("way", ["class", "auto class"])
def test_the_authors_repository_gives_the_authors_logits(authors, way):
    assert authors[way]["class"] == "radd_hf.modeling_radd"
    assert authors[way]["distance"] < 1e-5
    assert not authors[way]["training"]


def test_the_auto_class_alone_cannot_tell_what_the_authors_repository_is(authors):
    """Their config.json names neither a model type nor code, hence `config=RaddConfig.from_pretrained(name)`."""
    assert authors["error"].startswith("ValueError: Unrecognized model in JingyangOu/radd-t-dce.")
    assert "`model_type`" in authors["error"]


# ---------------------------------------------------------------------------------------------------------
# A repository of ours, in a process without radd_hf

LOAD_OURS = """
name, old, again, lines_of_the_readme = sys.argv[1:]
exec(lines_of_the_readme.replace("checkpoints/radd-austen", name).replace("length=24", "length=64"), {})
model = AutoModel.from_pretrained(name, trust_remote_code=True)
twin = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
seen = {"logits": logits_of(model), "twin": logits_of(twin), "sample": sample_of(model)}
seen["text"] = tokenizer.decode(model.generate(prefix="It is", length=16, tokenizer=tokenizer)[0])
seen["code"] = [getattr(sys.modules[type(model).__module__], "EDITION", "old")]
if old != "-":
    before = AutoModel.from_pretrained(name, revision=old, trust_remote_code=True)
    seen["before"] = {"logits": logits_of(before), "sample": sample_of(before)}
    seen["code"].append(getattr(sys.modules[type(before).__module__], "EDITION", "old"))
if again != "-":
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
assert "radd_hf" not in sys.modules
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def published(hub, place, tiny_tokenizer):
    """`someone/radd-tiny`: a first commit, and a second with other weights and other code."""
    model, successor = tiny_model(tiny_tokenizer, seed=0), tiny_model(tiny_tokenizer, seed=1)
    for version, folder in ((model, place / "first"), (successor, place / "second")):
        version.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
    with (place / "second" / "modeling_radd.py").open("a") as code:
        code.write('\nEDITION = "new"\n')
    first = hub.publish("someone/radd-tiny", place / "first")
    hub.publish("someone/radd-tiny", place / "second")
    return {"first": first, "model": model, "successor": successor}


@pytest.fixture(scope="module")
def stranger(hub, place, published):
    arguments = ("someone/radd-tiny", published["first"], place / "again", README_CODE)
    return run_script(STRANGER + LOAD_OURS, *arguments, hub=hub, home=place / "stranger")


def test_a_stranger_loads_our_repository_and_generates(stranger, published):
    assert_same(stranger, published["successor"])
    assert stranger["twin"] == stranger["logits"]
    assert stranger["text"].startswith("It is")


def test_a_revision_brings_its_own_weights_and_code(stranger, published):
    assert_same(stranger["before"], published["model"])
    assert stranger["code"] == ["new", "old"]


def test_what_was_loaded_from_the_hub_is_saved_as_a_whole_folder_again(stranger, place):
    expected = contents(place / "second")
    assert contents(place / "again").keys() == expected.keys()
    assert {name: contents(place / "again")[name] for name in MODEL_FILES} == {
        name: expected[name] for name in MODEL_FILES
    }
    assert json.loads((place / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_a_second_load_works_offline_from_the_cache(stranger, hub, published, place):
    before = list(hub.requests)
    arguments = ("someone/radd-tiny", published["first"], "-", README_CODE)
    offline = run_script(STRANGER + LOAD_OURS, *arguments, hub=hub, home=place / "stranger", HF_HUB_OFFLINE="1")
    assert hub.requests == before
    kept = ("logits", "twin", "sample", "before", "code")
    assert {key: offline[key] for key in kept} == {key: stranger[key] for key in kept}


# ---------------------------------------------------------------------------------------------------------
# Publishing

PUSH = """
from transformers import AutoTokenizer
from radd_hf import RaddForMaskedLM

folder, again = sys.argv[1:]
model, tokenizer = RaddForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
for ours in (model, tokenizer):
    ours.push_to_hub("someone/new")
    ours.save_pretrained(again)
print(json.dumps("pushed"))
"""

PUSH_ON = """
model = AutoModel.from_pretrained("someone/new", trust_remote_code=True)
model.push_to_hub("someone/newer")
model.save_pretrained(sys.argv[1])
print(json.dumps({"logits": logits_of(model), "sample": sample_of(model)}))
"""


@pytest.fixture(scope="module")
def pushed(hub, place, published):
    run_script(OWNER + PUSH, place / "first", place / "new", hub=hub, home=place / "author", HF_TOKEN="hf_token")
    seen = run_script(STRANGER + PUSH_ON, place / "newer", hub=hub, home=place / "reader", HF_TOKEN="hf_token")
    return seen, published["model"]


def test_pushing_uploads_what_save_pretrained_writes_and_a_model_card(pushed, hub, place):
    uploaded = dict(hub.files("someone/new"))
    assert b"library_name: transformers" in uploaded.pop("README.md")
    assert uploaded.keys() == MODEL_FILES | {"tokenizer.json", "tokenizer_config.json"}
    assert uploaded == contents(place / "new")


def test_a_stranger_loads_what_was_pushed(pushed):
    assert_same(*pushed)


def test_a_stranger_pushes_a_whole_repository_on(pushed, hub, place):
    uploaded = dict(hub.files("someone/newer"))
    del uploaded["README.md"]
    assert uploaded == contents(place / "newer")
    assert uploaded == {name: hub.files("someone/new")[name] for name in MODEL_FILES}


# ---------------------------------------------------------------------------------------------------------
# The repository's root as a code repository

LOAD_BY_CODE_REPOSITORY = """
seen = {}
for name in sys.argv[2:]:
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    twin = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)
    seen[name] = {"logits": logits_of(model), "twin": logits_of(twin), "sample": sample_of(model)}
model.save_pretrained(sys.argv[1])
print(json.dumps(seen))
"""


def with_code_elsewhere(folder: Path, target: Path, code_repository: str) -> Path:
    """A copy of a checkpoint folder without its code, which is to come from `code_repository`."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.py"))
    config = json.loads((target / "config.json").read_text())
    config["auto_map"] = {auto: f"{code_repository}--{name}" for auto, name in AUTO_MAP.items()}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_the_root_of_the_checkout_is_a_code_repository(hub, place, published):
    """Under its own path, and published as `someone/radd_hf`."""
    local = with_code_elsewhere(place / "first", place / "by_path", str(ROOT))
    (place / "code").mkdir()
    for name in SHIPPED:
        shutil.copy(ROOT / name, place / "code" / name)
    hub.publish("someone/radd_hf", place / "code")
    hub.publish("someone/by_name", with_code_elsewhere(place / "first", place / "by_name", "someone/radd_hf"))

    arguments = (place / "rejoined", local, "someone/by_name")
    seen = run_script(STRANGER + LOAD_BY_CODE_REPOSITORY, *arguments, hub=hub, home=place / "by_code")
    for loaded in seen.values():
        assert_same(loaded, published["model"])
        assert loaded["twin"] == loaded["logits"]
    expected = {name: contents(place / "first")[name] for name in MODEL_FILES} | contents(place / "code")
    assert contents(place / "rejoined") == expected, "saving brings the code along"


# ---------------------------------------------------------------------------------------------------------
# Memory

MEASURE_MEMORY = r"""
import re, torch
from pathlib import Path
from radd_hf import RaddForMaskedLM

def resident(kind):
    return 1024 * int(re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])

tiny, big = sys.argv[1:]
ids = torch.arange(8)[None]
with torch.no_grad():
    RaddForMaskedLM.from_pretrained(tiny)(ids)  # whatever importing and a first forward cost
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    model = RaddForMaskedLM.from_pretrained(big)
    after_loading = resident("VmHWM") - before
    logits = model(ids).logits
assert logits[..., :-1].isfinite().all()
weights = sum(parameter.nbytes for parameter in model.parameters())
print(json.dumps({"weights": weights, "loading": after_loading, "peak": resident("VmHWM") - before}))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from Linux' /proc")
def test_loading_and_a_first_forward_cost_no_more_memory_than_the_weights(hub, place):
    """The weights stay in the mapped file; were they copied, both would be resident, twice the weights.

    The peak is VmHWM of the process itself, mapped pages included: `ru_maxrss` would begin with that of its parent.
    """
    random_model(max_position_embeddings=16).save_pretrained(place / "small")
    big = RaddForMaskedLM(RaddConfig())  # small: 162 M parameters, 649 MB
    torch.nn.init.normal_(big.lm_head.weight, std=0.02)
    big.save_pretrained(place / "big")
    del big
    seen = run_script(OWNER + MEASURE_MEMORY, place / "small", place / "big", hub=hub, home=place / "measured")
    shutil.rmtree(place / "big")
    assert seen["weights"] == 4 * 162_265_682
    assert seen["loading"] < 0.2 * seen["weights"], "from_pretrained reads no weights"
    assert seen["peak"] < 1.2 * seen["weights"]
