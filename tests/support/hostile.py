# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts that try to control a terminal, or to break out of a model card's Markdown, HTML and YAML."""

FOR_TERMINALS = {
    "clears the screen": "a\x1b[2Jb",
    "sets the title": "\x1b]0;owned\x07",
    "makes a link": "\x1b]8;;http://x.invalid\x1b\\here\x1b]8;;\x1b\\",
    "C1 sequence": "\x9b2J\x9d0;owned\x9c",
    "rewrites the line": "real\rfake",
    "backspaces": "no\b\byes",
    "rings, and deletes": "\x07\x7f\x00",
    "new rows": "x\nparameters            1\x0b\x0c\x85y",
    "separators": "x\u2028y\u2029z",
    "overrides the direction": "\u202egpj.exe\u202c",
    "isolates": "\u2066a\u2069\u2067b\u2068\u061c\u200e\u200f",
    "lone surrogates": "\ud800 \udcff",
}

FOR_CARDS = FOR_TERMINALS | {
    "a cell more": "a | b",
    "an escaped cell": "a \\| b \\",
    "a heading": "a\n\n## License\n\nfree",
    "ends the front matter": "a\n---\nlicense: mit\n---\n",
    "ends the code": "a` <b>bold</b> ```\nimport os\n```",
    "a script": "<script>alert(1)</script><!-- ",
    "an image": '<img src=x onerror="alert(1)">',
    "a link": "[click](javascript:alert(1)) ![x](http://x.invalid)",
    "an autolink": "<http://x.invalid>",
    "entities": "&lt;b&gt; &#60; &amp;",
    "emphasis": "**bold** *it* ~~gone~~ $$x$$",
    "YAML": "]: {a: &b *b, c: !!python/object/apply:os.system [x]} # %",
}
