# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Helpers that several tests share: models, spies, launches, references to compare with, paths."""
