# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the HTML of `display_radd.py` like a page without scripts and styles."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The texts of a page, the step of each token in them, and the attributes of its elements."""

    def __init__(self, page: str):
        super().__init__()
        self.texts, self.steps, self.attributes, self.depth = list[str](), list[int](), list[tuple](), 0
        self.feed(page)

    @property
    def text(self) -> str:
        (text,) = self.texts
        return text

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        begins = dict(attributes).get("class") == "radd-text"
        self.texts += [""] * begins
        self.depth += self.depth > 0 or begins
        if self.depth and "data-step" in dict(attributes):
            self.steps.append(int(dict(attributes)["data-step"]))

    def handle_endtag(self, tag):
        self.depth -= self.depth > 0

    def handle_data(self, data):
        if self.depth:
            self.texts[-1] += data
