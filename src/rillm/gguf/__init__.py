"""GGUF files: read by mapping, written by streaming. A leaf: standard library only, no maths.

    with GGUFReader("model.gguf") as reader:
        num_layers = reader.metadata.require("glm4.block_count", int)
        eps = reader.metadata.require("glm4.attention.layer_norm_rms_epsilon", float, 1e-5)
        tokens = reader.metadata.require("tokenizer.ggml.tokens", list[str])
        rows, cols = reader.tensors["output.weight"].shape
        first_byte = reader.tensors["output.weight"].data[0]

        metadata = reader.copy_metadata() | {"general.file_type": 18}
        with GGUFWriter("copy.gguf", metadata) as writer:
            for tensor in reader.tensors.values():
                writer.declare(tensor.name, tensor.shape, tensor.type)
            for tensor in reader.tensors.values():
                writer.write(tensor.name, [tensor.data])

`reader.metadata` is a dict of Python values, whose `require` reports an absent key or a wrong type;
`reader.value_types` has the type in the file, `copy_metadata` the bytes. A plain value given to the
writer gets the type that llama.cpp expects (see `encode_value`); `Typed(ValueType.INT64, 5)` or
`Typed(ValueType.INT32, [])` states another. Shapes are row-major, the reverse of the file's order.
"""

from __future__ import annotations

from rillm.gguf.packed import PackedTensor, Packing, packed_metadata
from rillm.gguf.partial import bytes_left
from rillm.gguf.reader import GGUFReader, TensorInfo
from rillm.gguf.types import Encoded, GGMLType, GGUFError, Metadata, Value, ValueType
from rillm.gguf.values import Typed, WriterValue
from rillm.gguf.writer import GGUFWriter

__all__ = [
    "Encoded",
    "GGMLType",
    "GGUFError",
    "GGUFReader",
    "GGUFWriter",
    "Metadata",
    "PackedTensor",
    "Packing",
    "TensorInfo",
    "Typed",
    "Value",
    "ValueType",
    "WriterValue",
    "bytes_left",
    "packed_metadata",
]
