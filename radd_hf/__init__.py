# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""RADD, masked diffusion without time input (arXiv:2406.03736), as a Hugging Face model.

The import registers the classes with transformers. Then `AutoModel.from_pretrained` needs no `trust_remote_code`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_radd import RaddConfig
from .generation_radd import RaddGenerateOutput, RaddGenerationConfig
from .modeling_radd import RaddForCausalLM, RaddForMaskedLM, RaddMaskedLMOutput, RaddModel, RaddPreTrainedModel
from .pipeline_radd import RaddInfillingPipeline
from .text_radd import encode_blanks
from .version import __version__

if TYPE_CHECKING:
    from . import likelihood
    from .app import visualize
    from .data.collator import DiffusionCollator
    from .evaluation.metric import DiffusionPerplexity
    from .information import information_profile
    from .likelihood import LikelihoodRounds, conditional_likelihood, estimate_likelihood, exact_likelihood

AutoConfig.register("radd", RaddConfig, exist_ok=True)
AutoModel.register(RaddConfig, RaddForMaskedLM, exist_ok=True)
AutoModelForCausalLM.register(RaddConfig, RaddForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(RaddConfig, RaddForMaskedLM, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline("radd-infilling", RaddInfillingPipeline, pt_model=AutoModelForMaskedLM)

# These are imported when they are first used: accelerate, datasets and evaluate take seconds to import.
_LATER = {
    "DiffusionCollator": "data.collator",
    "DiffusionPerplexity": "evaluation.metric",
    "LikelihoodRounds": "likelihood",
    "conditional_likelihood": "likelihood",
    "estimate_likelihood": "likelihood",
    "exact_likelihood": "likelihood",
    "information_profile": "information",
    "likelihood": "likelihood",
    "visualize": "app.visualize",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LATER[name]}", __name__)
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "DiffusionCollator",
    "DiffusionPerplexity",
    "LikelihoodRounds",
    "RaddConfig",
    "RaddForMaskedLM",
    "RaddGenerateOutput",
    "RaddGenerationConfig",
    "RaddInfillingPipeline",
    "RaddMaskedLMOutput",
    "RaddModel",
    "RaddPreTrainedModel",
    "__version__",
    "conditional_likelihood",
    "encode_blanks",
    "estimate_likelihood",
    "exact_likelihood",
    "information_profile",
    "likelihood",
    "visualize",
]
