"""What a machine allows a model: the time that its bytes and its multiplications take at least.

A step cannot be faster than memory delivers what it reads (weights once, and the keys and values of
every sequence), nor than the vector units multiply (Williams et al., "Roofline", 2009). Bandwidth
and multiply rates are measured in the same process as the figures that are compared with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rillm.gguf import GGMLType, GGUFReader
from rillm.nn.config import ModelConfig

_FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


@dataclass(frozen=True)
class Machine:
    """Rates of all threads together: bytes/s read, multiply-accumulates/s in registers."""

    bandwidth: float
    int8_rate: float
    float_rate: float


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates and bytes of a model.

    int8_macs and float_macs are those of a token's matrices without the output head, by the
    activations that a weight's type is multiplied with; attention_macs are per key and layer.
    """

    int8_macs: int
    float_macs: int
    head_macs: int
    head_is_float: bool
    attention_macs: int
    num_layers: int
    weight_bytes: int
    cache_bytes: float  # of one token, all layers

    @classmethod
    def of(
        cls, reader: GGUFReader, config: ModelConfig, weight_bytes: int, cache_bytes: float
    ) -> Work:
        """Counts the matrices of a file."""
        int8_macs = float_macs = 0
        name = "output.weight" if "output.weight" in reader.tensors else "token_embd.weight"
        head = reader.tensors[name]
        for tensor_name, tensor in reader.tensors.items():
            if len(tensor.shape) < 2 or tensor_name in ("output.weight", "token_embd.weight"):
                continue
            if tensor.type in _FLOATS:
                float_macs += tensor.shape[0] * tensor.shape[1]
            else:
                int8_macs += tensor.shape[0] * tensor.shape[1]
        return cls(
            int8_macs=int8_macs,
            float_macs=float_macs,
            head_macs=head.shape[0] * head.shape[1],
            head_is_float=head.type in _FLOATS,
            attention_macs=2 * config.num_heads * config.head_dim,
            num_layers=config.num_layers,
            weight_bytes=weight_bytes,
            cache_bytes=cache_bytes,
        )

    @property
    def macs(self) -> int:
        """Of a decoded token, without attention."""
        return self.int8_macs + self.float_macs + self.head_macs


@dataclass(frozen=True)
class Limit:
    """Tokens per second at the most, and which of "memory" and "multiply" says so."""

    tokens_per_second: float
    bound: str


def limit(
    machine: Machine, work: Work, *, num_seqs: int, num_tokens: int, num_logits: int, depth: float
) -> Limit:
    """One step of num_tokens for each of num_seqs sequences that have `depth` tokens already."""
    head_rate = machine.float_rate if work.head_is_float else machine.int8_rate
    keys = num_tokens * depth + num_tokens * (num_tokens + 1) / 2
    multiply = num_seqs * (
        num_tokens * work.int8_macs / machine.int8_rate
        + num_tokens * work.float_macs / machine.float_rate
        + num_logits * work.head_macs / head_rate
        + keys * work.attention_macs * work.num_layers / machine.float_rate
    )
    memory = work.weight_bytes + num_seqs * (depth + num_tokens) * work.cache_bytes
    memory /= machine.bandwidth
    bound = "memory" if memory > multiply else "multiply"
    return Limit(num_seqs * num_tokens / max(memory, multiply), bound)
