"""Layers that record ops, and the compiler from the record to a program of the core."""

from __future__ import annotations

from rillm.nn.config import ModelConfig
from rillm.nn.decoder import DecoderBlock
from rillm.nn.graph import Graph, Value, gather_logits_rows, record, rope_table
from rillm.nn.module import Embedding, Linear, Module, Parameter, RMSNorm, linear
from rillm.nn.observe import observe_inputs
from rillm.nn.program import compile_graph
from rillm.nn.rope import RopeScaling, rope_frequencies

__all__ = [
    "DecoderBlock",
    "Embedding",
    "Graph",
    "Linear",
    "ModelConfig",
    "Module",
    "Parameter",
    "RMSNorm",
    "RopeScaling",
    "Value",
    "compile_graph",
    "gather_logits_rows",
    "linear",
    "observe_inputs",
    "record",
    "rope_frequencies",
    "rope_table",
]
