# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""RADD, masked diffusion without time input (arXiv:2406.03736), as a Hugging Face model.

Importing this package registers the classes, so that `AutoModel.from_pretrained` needs no `trust_remote_code`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_radd import RaddConfig
from .generation_radd import RaddGenerateOutput, RaddGenerationConfig
from .modeling_radd import RaddForMaskedLM, RaddMaskedLMOutput, RaddModel, RaddPreTrainedModel
from .pipeline_radd import RaddInfillingPipeline, encode_blanks
from .version import __version__

AutoConfig.register("radd", RaddConfig, exist_ok=True)
AutoModel.register(RaddConfig, RaddForMaskedLM, exist_ok=True)
AutoModelForMaskedLM.register(RaddConfig, RaddForMaskedLM, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline("radd-infilling", RaddInfillingPipeline, pt_model=AutoModelForMaskedLM)

__all__ = [
    "RaddConfig",
    "RaddForMaskedLM",
    "RaddGenerateOutput",
    "RaddGenerationConfig",
    "RaddInfillingPipeline",
    "RaddMaskedLMOutput",
    "RaddModel",
    "RaddPreTrainedModel",
    "__version__",
    "encode_blanks",
]
