"""Recording: calling a model once writes down its ops as a list over symbolic values.

A `Value` stands for a buffer of float32 rows, one for each token (or for each token whose logits
are wanted). The functions here are the whole vocabulary of a model file; they compute nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from rillm.core import OpKind, Rows, Weight


@dataclass(frozen=True, eq=False)
class Value:
    """Rows of `width` float32 numbers: [num_tokens, num_logits or 1, width]."""

    width: int
    rows: Rows = Rows.TOKENS

    def __add__(self, other: Value) -> Value:
        """Elementwise sum; program.py folds it into the op that made `other` where it can."""
        return current().emit(OpKind.ADD, [self, other], self.width, self.rows)


@dataclass
class Node:
    """One op: what it reads, writes and is parametrised by (see CoreOpKind in csrc/core.h)."""

    kind: OpKind
    inputs: list[Value | None]
    output: Value
    weights: list[Weight | None] = field(default_factory=list)
    biases: list[Weight | None] = field(default_factory=list)
    ints: list[int] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)


class Graph:
    """The ops of one model, in the order of the calls."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def emit(
        self,
        kind: OpKind,
        inputs: list[Value | None],
        width: int,
        rows: Rows,
        *,
        weights: list[Weight | None] | None = None,
        biases: list[Weight | None] | None = None,
        ints: list[int] | None = None,
        floats: list[float] | None = None,
    ) -> Value:
        """Appends an op with a new output of the given shape."""
        output = Value(width, rows)
        self.nodes.append(
            Node(kind, inputs, output, weights or [], biases or [], ints or [], floats or [])
        )
        return output


_graph: ContextVar[Graph] = ContextVar("graph")


@contextmanager
def record() -> Iterator[Graph]:
    """Within the block, ops are written to the graph that it yields."""
    graph = Graph()
    token = _graph.set(graph)
    try:
        yield graph
    finally:
        _graph.reset(token)


def current() -> Graph:
    """The graph that is being recorded."""
    return _graph.get()


def embed(table: Weight) -> Value:
    """Rows of the table for the batch's token ids: [num_tokens, hidden_size]."""
    return current().emit(OpKind.EMBED, [], table.shape[1], Rows.TOKENS, weights=[table])


def rmsnorm(x: Value, weight: Weight, eps: float) -> Value:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return current().emit(
        OpKind.RMSNORM, [x, None], x.width, x.rows, weights=[weight], floats=[eps]
    )


def linear(x: Value, weights: list[Weight], biases: list[Weight | None]) -> Value:
    """The products of x with up to three matrices [out_i, in], side by side, plus their biases."""
    width = sum(weight.shape[0] for weight in weights)
    return current().emit(
        OpKind.LINEAR, [x, None], width, x.rows, weights=list(weights), biases=biases
    )


def rope_table(frequencies: Weight, magnitude: float) -> Value:
    """cos and sin of position * frequency: [num_tokens, 2 * len(frequencies)]."""
    width = 2 * frequencies.shape[1]
    return current().emit(
        OpKind.ROPE_TABLE, [], width, Rows.TOKENS, weights=[frequencies], floats=[magnitude]
    )


def rope(x: Value, table: Value, first: int, heads: int, head_dim: int, interleaved: bool) -> Value:
    """Rotates `heads` heads that start at column `first` of x, in place."""
    graph = current()
    ints = [first, heads, head_dim, table.width, int(interleaved)]
    graph.nodes.append(Node(OpKind.ROPE, [x, table], x, ints=ints))
    return x


def attention(qkv: Value, layer: int, heads: int, head_dim: int, scale: float) -> Value:
    """Stores k and v of the rows in the cache; causal attention: [num_tokens, heads * head_dim]."""
    return current().emit(
        OpKind.ATTENTION, [qkv], heads * head_dim, Rows.TOKENS, ints=[layer, heads], floats=[scale]
    )


def swiglu(gate_up: Value) -> Value:
    """silu(first half) * second half."""
    return current().emit(OpKind.SWIGLU, [gate_up], gate_up.width // 2, gate_up.rows)


def gather_logits_rows(x: Value) -> Value:
    """The rows whose logits are wanted: [num_logits, width]."""
    return current().emit(OpKind.GATHER, [x], x.width, Rows.LOGITS)
