# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Adds steps to mkdocs: formulas become MathML, links to modules lead to the reference, the search ranks pages.

A page that makes the browser fetch a file from another site is refused. The pages also read well without these steps,
in the repository on the web.
"""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# The form in which pymdownx.arithmatex leaves formulas, with `generic`.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# A tag that makes the browser fetch a file without a click.
FETCHED = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?https?:[^>]*>|<link\b[^>]*\bhref="?https?:[^>]*>')


def on_page_markdown(markdown: str, page, config, **kwargs) -> str:
    boosts = config.extra["search_boost"]  # by page, or by folder with "/" at the end
    path = page.file.src_uri
    page.meta["search"] = {"boost": boosts.get(path, boosts.get(f"{path.partition('/')[0]}/", 1))}

    def reference(match: re.Match) -> str:
        return f"][radd_hf.{match[1].replace('/', '.')}]"

    return re.sub(r"\]\(\.\./radd_hf/([\w/]+)\.py\)", reference, markdown)


def on_page_content(page_html: str, page, **kwargs) -> str:
    def mathml(match: re.Match) -> str:
        latex = html.unescape(match[2]).strip()
        block = match[1] == "div"
        formula = convert(latex, display="block" if block else "inline")
        if "\\" in html.unescape(formula):  # a command that the converter has left as it was
            raise PluginError(f"{page.file.src_path}: ${latex}$ cannot be written as MathML: {formula}")
        return f'<div class="formula">{formula}</div>' if block else formula

    return FORMULA.sub(mathml, page_html)


def on_post_page(output: str, page, **kwargs) -> str:
    for tag in FETCHED.findall(output):
        if 'rel="canonical"' not in tag:
            raise PluginError(f"{page.file.src_path}: {tag} is fetched from elsewhere; put the file into docs/.")
    return output
