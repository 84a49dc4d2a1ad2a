"""The architectures, one short file each, and the loader that turns a GGUF file into a model.

A model file declares the GGUF architectures that it runs (`ARCHITECTURES`) and a `Model` class; it
is found by being in this folder.
"""

from __future__ import annotations

from rillm.models.config import ModelError
from rillm.models.loading import (
    LoadedModel,
    load_model,
    matrix_tensors,
    read_model_config,
    supported_architectures,
)

__all__ = [
    "LoadedModel",
    "ModelError",
    "load_model",
    "matrix_tensors",
    "read_model_config",
    "supported_architectures",
]
