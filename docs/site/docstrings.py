# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Prepares the docstrings of this project for the reference, as an extension of griffe.

They follow Google's style with three additions: [`Name`] is a reference, as in transformers; one entry may describe
several arguments; and the docstring of a class may list its fields without a heading.
"""

import logging
import re
from collections.abc import Iterator

import griffe

logger = logging.getLogger("mkdocs.docstrings")  # a child of mkdocs' logger: a warning fails a strict build

REFERENCE = re.compile(r"\[`([\w.]+)`\](?![\[(])")
FIELD = re.compile(r"(\w+(?:, \w+)*): ")
ARGUMENT = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*): ")


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        objects = {obj.path: obj for obj in walk(pkg)}
        for obj in objects.values():
            called = not obj.name.startswith("__") or obj.name in ("__init__", "__call__")  # by users, by its name
            if obj.docstring is None and obj.is_public and called and (obj.is_function or "property" in obj.labels):
                obj.docstring = griffe.Docstring("", parent=obj)  # objects without a docstring are listed, too
        for obj in objects.values():
            if obj.docstring is None:
                continue
            text = link_names(obj.docstring.value, obj, objects)
            text = re.sub(r"^Shapes: ", "**Shapes:** ", text, flags=re.MULTILINE)  # else it becomes a box
            if obj.is_class:
                text = "\n\n".join(with_types(with_heading(part, obj), obj) for part in text.split("\n\n"))
            elif obj.is_function:
                check_arguments(text, obj)
            obj.docstring.value = text


def walk(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from walk(member)


def link_names(text: str, owner: griffe.Object, objects: dict[str, griffe.Object]) -> str:
    """Replaces each [`Name`] by a link to the object of that name, if the reference lists it."""

    def link(match: re.Match) -> str:
        found = [path for path in objects if f".{path}".endswith(f".{match[1]}")]
        found = [path for path in found if path.startswith(f"{owner.module.path}.")] or found
        if not found:
            logger.warning(f"{owner.path} names [`{match[1]}`], which is not in the package")
        return f"[`{match[1]}`][{found[0]}]" if found and objects[found[0]].docstring else f"`{match[1]}`"

    return REFERENCE.sub(link, text)


def with_heading(paragraph: str, cls: griffe.Class) -> str:
    """Puts the heading that the parser knows above a paragraph of fields."""
    if paragraph.startswith("Args:\n") and "__init__" not in cls.members:  # the fields of a dataclass
        return paragraph.replace("Args:", "Attributes:", 1)
    lines = paragraph.strip("\n").split("\n")
    entries = [match[1].split(", ") for line in lines if (match := FIELD.match(line))]
    known = {name for names in entries for name in names} <= set(cls.members)
    if not entries or not known or not FIELD.match(lines[0]) or re.search(r"\. \w+: ", paragraph):
        return paragraph
    return "Attributes:\n" + "\n".join(f"    {line}" for line in lines)


def check_arguments(text: str, function: griffe.Function) -> None:
    """Warns about described arguments that the function lacks. The parser's own check cannot read two names."""
    _, _, arguments = text.partition("Args:\n")
    known = {parameter.name for parameter in function.parameters}
    for line in arguments.partition("\n\n")[0].split("\n"):
        if match := ARGUMENT.match(line):
            for name in match[1].replace("*", "").split(", "):
                if name not in known:
                    logger.warning(f"{function.path} has no argument {name}, which its docstring describes")


def with_types(paragraph: str, cls: griffe.Class) -> str:
    """Writes the type of the first name behind an entry of several, which the parser would take for a name and a type.

    The names are then joined by no-break spaces, since a name ends at a space.
    """

    def entry(match: re.Match) -> str:
        first = cls.members.get(match[1].partition(",")[0])
        annotation = getattr(first, "annotation", None)
        names = match[1].replace(", ", ",\u00a0")
        return f"    {names} ({annotation}): " if annotation is not None else f"    {names}: "

    several = re.compile(r"^    (\w+(?:, \w+)+): ", flags=re.MULTILINE)
    return several.sub(entry, paragraph) if paragraph.startswith("Attributes:\n") else paragraph
