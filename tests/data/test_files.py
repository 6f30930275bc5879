"""Local files: which of a folder are read, which split each is of, and how a fault in one is told."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from radd_hf.data import files
from radd_hf.data.documents import load_documents, load_validation


def lay_out(folder: Path, **contents: str | bytes) -> Path:
    """Writes files, each keyword being a path in the folder."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(source, split="all", **settings) -> list[str]:
    return [document["text"] for document in load_documents(str(source), split, **settings)]


def test_of_a_folder_text_is_read_and_what_else_lies_there_is_left_out_and_named(tmp_path, caplog):
    others = {
        "b.txt.bak": "a backup",
        "a.txt~": "a backup",
        "LICENSE": "a licence",
        "README.txt": "about it",
        "NOTES.md": "notes",
        "cover.jpg": b"\xff\xd8",
        ".hidden.txt": "hidden",
        "__MACOSX/a.txt": b"\x00\x05",
    }
    lay_out(tmp_path, **{"a.txt": "one", "deep/b.txt": "two", "c.txt.gz": gzip.compress(b"three")}, **others)
    with caplog.at_level(logging.INFO, logger="radd_hf"):
        assert texts(tmp_path) == ["one", "three", "two"]
        assert texts(tmp_path, "train", streaming=True, held_out=0) == ["one", "three", "two"]
    (line,) = caplog.messages
    assert "3 files are read, ending in .txt; left out: 1 ending in .bak, 1 ending in .jpg, 1 ending in .md" in line
    assert "1 ending in .txt~, 2 hidden, 1 named LICENSE, 1 named README.txt" in line


def test_linked_files_and_folders_are_read_and_a_link_to_nothing_is_said(tmp_path, caplog):
    lay_out(tmp_path, **{"text/a.txt": "one", "elsewhere/b.txt": "two"})
    (tmp_path / "text/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text/more/round").symlink_to(tmp_path / "text")
    (tmp_path / "text/lost.txt").symlink_to(tmp_path / "nowhere.txt")
    with caplog.at_level(logging.INFO, logger="radd_hf"):
        assert texts(tmp_path / "text") == ["one", "two"]
    assert "2 files are read, ending in .txt; left out: 1 a broken link" in caplog.text


def test_a_word_in_a_name_makes_no_split(tmp_path):
    lay_out(tmp_path, **{"train journey.txt": "a", "driving-test.txt": "b", "validation of a theory.txt": "c"})
    assert sorted(texts(tmp_path)) == ["a", "b", "c"]
    assert sorted(texts(tmp_path, "train") + texts(tmp_path, "validation")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "validation.txt", "test.txt"),
        ("train/a.txt", "validation/a.txt", "test/a.txt"),
        ("data/Train-00000-of-00001.txt", "data/dev-00000-of-00001-5e3f.txt", "data/test_01.txt"),
        ("training/x.txt", "deep/val/train journey.txt", "testing/x.txt"),
    ],
)
def test_files_that_are_called_as_a_split_or_lie_in_its_folder_are_of_it(tmp_path, names):
    lay_out(tmp_path, **dict(zip(names, ("to train on", "held out", "for the end"), strict=True)))
    assert texts(tmp_path, "train") == ["to train on"]
    assert texts(tmp_path, "validation") == ["held out"]
    assert texts(tmp_path, "test") == ["for the end"]
    assert texts(tmp_path) == ["to train on", "held out", "for the end"]


def test_a_folder_of_which_only_some_files_name_their_split_is_refused_and_its_pattern_is_one_text(tmp_path):
    lay_out(tmp_path, **{"test.txt": "a test", "emma.txt": "a novel"})
    with pytest.raises(ValueError, match=r"test\.txt names the split 'test', but emma\.txt names none.*\*\.txt'"):
        texts(tmp_path)
    assert texts(f"{tmp_path}/**/*.txt") == ["a novel", "a test"]


@pytest.mark.parametrize("name", ["b[1].txt", "what?.txt", "a*.txt", "folder[1]/a.txt"])
def test_a_name_with_the_signs_of_a_pattern_is_found(tmp_path, name):
    lay_out(tmp_path, **{name: "this one", "b1.txt": "another"})
    assert texts(tmp_path / name) == ["this one"]
    assert texts((tmp_path / name).as_uri()) == ["this one"]
    if "/" in name:
        assert texts((tmp_path / name).parent) == ["this one"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(lay_out(tmp_path, **{"a.txt": "at home"})))
    assert texts("~/a.txt") == texts("~") == ["at home"]


def test_a_configuration_of_a_folder_is_a_folder_in_it(tmp_path):
    lay_out(tmp_path, **{"en/a.txt": "english", "fr/a.txt": "français"})
    assert texts(tmp_path, config="fr") == ["français"]
    assert texts(tmp_path) == ["english", "français"]
    with pytest.raises(ValueError, match=r"has no configuration 'de': it must be a subfolder, one of \['en', 'fr'\]"):
        texts(tmp_path, config="de")
    for source in (tmp_path / "en/a.txt", f"{tmp_path}/*/*.txt", "austen"):
        with pytest.raises(ValueError, match="has no configuration 'en': only a folder"):
            texts(source, config="en")


def test_what_is_named_to_be_scored_is_scored_whole(tmp_path):
    lay_out(tmp_path, **{"a.txt": "0123456789" * 40, "s/train.txt": "t", "s/test.txt": "for the end"})
    lay_out(tmp_path, **{"v/train.txt": "t", "v/test.txt": "for the end", "v/validation.txt": "held out"})

    def scored(name: str) -> list[str]:
        return load_validation(str(tmp_path / name), argument="validation_dataset")["text"][:]

    assert scored("a.txt") == ["0123456789" * 40]
    assert scored("s") == ["for the end"]
    assert scored("v") == ["held out"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_that_datasets_saved_is_read_as_it_was(tmp_path, streaming):
    rows = {"body": ["a", "b", "c"], "number": [1, 2, 3]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "one")
    DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict({"body": ["d"]})}).save_to_disk(
        tmp_path / "two"
    )
    given = {"text_column": "body", "streaming": streaming}
    assert texts(tmp_path / "one", "train", held_out=0, **given) == ["a", "b", "c"]
    assert texts(tmp_path / "two", **given) == ["a", "b", "c", "d"]
    assert texts(tmp_path / "two", "test", **given) == ["d"]


def test_columns_that_are_not_the_text_may_hold_anything(tmp_path):
    rows = [{"text": "a", "meta": 1}, {"meta": {"x": [1]}, "text": "b"}, {"text": "2020-01-01"}]
    lay_out(tmp_path, **{"a.jsonl": "\n\n".join(map(json.dumps, rows)), "b.json": json.dumps(rows, indent=1)})
    assert texts(tmp_path) == ["a", "b", "2020-01-01"] * 2


def test_line_ends_of_windows_and_a_byte_order_mark_are_taken_off_and_that_is_said(tmp_path, caplog):
    lay_out(tmp_path, **{"w.txt": b"\xef\xbb\xbfone\r\ntwo\r\n", "w.jsonl": b'\xef\xbb\xbf{"text": "one\\r\\n"}\r\n'})
    assert texts(tmp_path / "w.txt") == ["one\ntwo\n"]
    assert "w.txt: a byte order mark is left out and line ends CR LF are read as LF" in caplog.text
    assert texts(tmp_path / "w.jsonl") == ["one\r\n"], "what JSON says is kept"


@pytest.mark.parametrize("split", ["all", "train", "validation"])
def test_a_text_may_be_larger_than_a_string_of_arrow(tmp_path, split):
    lay_out(tmp_path, **{"a.txt": "0123456789" * 40})
    documents = load_documents(str(tmp_path), split)
    assert documents.features["text"].dtype == "large_string"
    assert documents.data.schema.field("text").type == "large_string"


def test_a_file_that_changed_is_read_anew(tmp_path):
    assert texts(lay_out(tmp_path, **{"a.txt": "before"}) / "a.txt") == ["before"]
    assert texts(lay_out(tmp_path, **{"a.txt": "after it"}) / "a.txt") == ["after it"]


ROW = '{"text": "a text"}\n'
CUT_SHORT = gzip.compress(ROW.encode() * 9, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", ROW * 2 + "\n" + '{"text": \n' + ROW, r"a\.jsonl, line 4: Expecting value, at character 9"),
        ("a.json", '[{"text": "a"},\n{"text": "b"]', r"a\.json, line 2: Expecting ',' delimiter"),
        ("a.jsonl", ROW + '{"text": null}', r"a\.jsonl, line 2: 'text' is null: remove such rows"),
        ("a.jsonl", ROW + '{"text": ["b"]}', r"a\.jsonl, line 2: 'text' must be a string; it is \['b'\]"),
        ("a.jsonl", ROW + '{"body": "b"}', r"a\.jsonl, line 2: text_column='text' must be one of \['body'\]"),
        ("a.jsonl", ROW + "3", r"a\.jsonl, line 2 must be an object"),
        ("a.jsonl", ROW + '{"text": "\\ud800"}', r"a\.jsonl, line 2: 'text' has half of a surrogate pair"),
        ("a.jsonl", ROW.encode() + b'{"text": "caf\xe9"}', r"a\.jsonl, line 2: the byte 0xe9 is not UTF-8"),
        ("a.jsonl", "", r"there is no document in .*a\.jsonl"),
        ("a.jsonl", "\n \n", r"there is no document in .*a\.jsonl"),
        (
            "a.jsonl.gz",
            CUT_SHORT,
            r"a\.jsonl\.gz ends before its compressed data does",
        ),
        ("a.txt.gz", b"not compressed", r"a\.txt\.gz: BadGzipFile"),
        ("a.txt", "one\ntwo\ncafé".encode("latin-1"), r"a\.txt, line 3: the byte 0xe9 is not UTF-8"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt is in UTF-16: save it as UTF-8"),
        ("a.txt", "a\nb\0", r"a\.txt, line 2: a NUL character: it is not text"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet: ArrowInvalid"),
        ("a.pdf", b"%PDF", r"holds no file that ends in \.txt, .*; it has 1 ending in \.pdf"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_fault_is_one_line_with_the_file_and_the_place(tmp_path, name, content, message, streaming):
    lay_out(tmp_path, **{name: content})
    with pytest.raises(ValueError, match=message):
        texts(tmp_path, "train", streaming=streaming, held_out=0)


def test_a_parquet_file_at_fault_is_named_with_the_row(tmp_path):
    Dataset.from_dict({"text": ["a", None]}).to_parquet(tmp_path / "null.parquet")
    Dataset.from_dict({"text": [["a"], ["b"]]}).to_parquet(tmp_path / "nested.parquet")
    Dataset.from_dict({"text": ["a"]}).select([]).to_parquet(tmp_path / "none.parquet")
    for name, message in (
        ("null", r"null\.parquet, row 2: 'text' is null"),
        ("nested", r"nested\.parquet, row 1: 'text' must be a string"),
        ("none", r"there is no document in .*none\.parquet"),
    ):
        with pytest.raises(ValueError, match=message):
            texts(tmp_path / f"{name}.parquet")


def test_a_file_of_many_is_the_one_that_is_named(tmp_path):
    lay_out(tmp_path, **{"a.jsonl": ROW, "b.jsonl": ROW + "{", "c.jsonl": ROW})
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "holds no file that ends in .*; it has no files"),
        ({"a.txt": "a", "b.jsonl": ROW}, r"must hold files of one kind, .*; it has 1 of \.jsonl, 1 of \.txt"),
        ({"a.txt.zst": b"a"}, "needs a package that is not installed: pip install zstandard"),
        ({"a.txt": " \n", "b.txt": ""}, "has no text: 2 documents, all empty"),
    ],
)
def test_a_folder_that_cannot_be_a_text_is_refused(tmp_path, monkeypatch, contents, message):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        texts(lay_out(tmp_path, **contents))


@pytest.mark.parametrize("source", ["no/such/folder", "nothing.txt", "~/nothing", "./x", "*.nothing"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(source):
    with pytest.raises(ValueError, match="could not be read: no file or folder has this name"):
        texts(source)
    with pytest.raises(ValueError, match="dataset='' must name a data set"):
        texts("")


def test_parts_of_a_text_that_would_be_empty_are_refused(tmp_path):
    lay_out(tmp_path, **{"short.txt": "ten signs.", "end.txt": "text" * 40 + "\n" * 40})
    for name in ("short", "end"):
        with pytest.raises(ValueError, match=r"held_out=0\.05 of the \d+ characters of .* leaves an empty part"):
            texts(tmp_path / f"{name}.txt", "validation")
