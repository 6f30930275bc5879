# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Results as JSON."""

import json
import math

from radd_hf.results import to_json


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


def test_what_is_no_number_of_json_becomes_null_at_any_depth():
    figures = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, "nan")], "c": {"d": None, "e": 3}}
    read = json.loads(to_json(figures), parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, None, [None, "nan"]], "c": {"d": None, "e": 3}}
