# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""RADD, masked diffusion without time input (arXiv:2406.03736), as a Hugging Face model.

Importing this package registers the classes, so that `AutoModel.from_pretrained` needs no `trust_remote_code`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .configuration_radd import RaddConfig
from .generation_radd import RaddGenerateOutput, RaddGenerationConfig
from .modeling_radd import RaddForMaskedLM, RaddMaskedLMOutput, RaddModel, RaddPreTrainedModel
from .version import __version__

AutoConfig.register("radd", RaddConfig, exist_ok=True)
AutoModel.register(RaddConfig, RaddForMaskedLM, exist_ok=True)
AutoModelForMaskedLM.register(RaddConfig, RaddForMaskedLM, exist_ok=True)

__all__ = [
    "RaddConfig",
    "RaddForMaskedLM",
    "RaddGenerateOutput",
    "RaddGenerationConfig",
    "RaddMaskedLMOutput",
    "RaddModel",
    "RaddPreTrainedModel",
    "__version__",
]
