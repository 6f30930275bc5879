# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The likelihood of text as a metric of the library `evaluate`. It works offline.

metric = DiffusionPerplexity()
metric.compute(predictions=[ids, ...], model=model)["perplexity"]
"""

from typing import Any

import evaluate
from datasets import Features, List, Value

from ..likelihood import estimate_likelihood


class DiffusionPerplexity(evaluate.Metric):
    """The any-order perplexity of token ids under a RADD model, with its standard error and 95 % interval."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of texts under a masked diffusion model without time input (arXiv:2406.03736).",
            citation="arXiv:2406.03736",
            inputs_description="predictions: lists of token ids. model: a RaddForMaskedLM. Further keywords: those of "
            "radd_hf.likelihood.estimate_likelihood.",
            features=Features({"predictions": List(Value("int64"))}),
        )

    def compute(self, *, predictions: Any = None, **settings) -> dict:
        """Computes the metric. Predictions passed here are scored directly, without a copy to a table.

        Returns:
            The result of [`Likelihood.to_dict`]: nats_per_token, standard_error, interval, perplexity and so on.

        Raises:
            ValueError: if [`estimate_likelihood`] refuses an argument.
        """
        if predictions is None:  # use those passed to `add` before
            return super().compute(**settings) or {}
        return self._compute(predictions, **settings)

    def _compute(self, predictions: Any, *, model: Any, **settings) -> dict:
        return estimate_likelihood(model, predictions, **settings).to_dict()
