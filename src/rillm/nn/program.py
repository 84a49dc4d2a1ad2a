"""From a recorded graph to the op list that the core runs: fusion, 8-bit activations, buffers.

The passes, in order:

1. `fold_adds`: `a + rmsnorm(b)` and `a + linear(b)` become one op with a residual input.
2. `lower`: every linear op on quantised weights gets its input as 8-bit activations. They are made
   once for each value, by the norm or SwiGLU that produced it where possible.
3. `plan_slots`: buffers whose lifetimes do not overlap share memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from rillm.core import (
    BufferKind,
    CompiledProgram,
    CoreBuffer,
    CoreOp,
    KVCache,
    OpKind,
    Rows,
    ThreadTeam,
    Weight,
)
from rillm.nn.graph import Graph, Node, Value

_MAKES_Q8 = (OpKind.RMSNORM, OpKind.SWIGLU)


@dataclass(eq=False)
class _Buffer:
    kind: BufferKind
    rows: Rows
    width: int
    first: int = 0  # index of the op that writes it, and of the last that uses it
    last: int = 0
    slot: int = -1

    @property
    def row_bytes(self) -> int:
        """Near enough to the core's own figure to choose slots by."""
        return 4 * self.width if self.kind is BufferKind.F32 else self.width + self.width // 2


@dataclass
class _Op:
    kind: OpKind
    inputs: list[_Buffer | None]
    outputs: list[_Buffer | None]
    weights: list[Weight | None] = field(default_factory=list)
    ints: list[int] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)

    def buffers(self) -> list[_Buffer]:
        return [buffer for buffer in (*self.inputs, *self.outputs) if buffer is not None]


def fold_adds(nodes: list[Node]) -> list[Node]:
    """Folds an add into the norm or linear op right before it, if nothing else reads that."""
    uses = Counter(value for node in nodes for value in node.inputs if value is not None)
    folded: list[Node] = []
    for original in nodes:
        node = replace(original, inputs=list(original.inputs))  # the graph stays as recorded
        if node.kind is OpKind.ADD and folded:
            residual, last = node.inputs[0], folded[-1]
            can_fold = (
                last.kind in (OpKind.RMSNORM, OpKind.LINEAR)
                and last.output is node.inputs[1]
                and last.inputs[1] is None
                and uses[last.output] == 1
            )
            if can_fold:
                last.inputs[1] = residual
                last.output = node.output
                continue
        folded.append(node)
    return folded


def _reads_q8(weights: list[Weight | None]) -> tuple[bool, bool]:
    """Whether a linear op needs 8-bit and whether it needs float32 activations."""
    quantized = [weight.is_quantized for weight in weights if weight is not None]
    return any(quantized), not all(quantized)


def lower(nodes: list[Node], results: list[Value]) -> tuple[list[_Op], list[_Buffer]]:
    """Nodes -> ops on buffers. Returns them with the buffers of `results`."""
    reads_f32 = set(results)
    reads_q8: set[Value] = set()
    for node in nodes:
        for position, value in enumerate(node.inputs):
            if value is None:
                continue
            if node.kind is OpKind.LINEAR and position == 0:
                q8, f32 = _reads_q8(node.weights)
                if q8:
                    reads_q8.add(value)
                if f32:
                    reads_f32.add(value)
            else:
                reads_f32.add(value)

    ops: list[_Op] = []
    f32_of: dict[Value, _Buffer] = {}
    q8_of: dict[Value, _Buffer] = {}
    last_write = {node.output: index for index, node in enumerate(nodes)}  # rope writes in place
    for index, node in enumerate(nodes):
        value = node.output
        inputs: list[_Buffer | None]
        if node.kind is OpKind.LINEAR:
            x, residual = node.inputs[0], node.inputs[1]
            assert x is not None
            q8, f32 = _reads_q8(node.weights)
            inputs = [
                q8_of[x] if q8 else None,
                None if residual is None else f32_of[residual],
                f32_of[x] if f32 else None,
            ]
            weights = node.weights + [None] * (3 - len(node.weights)) + node.biases
        else:
            inputs = [None if v is None else f32_of[v] for v in node.inputs]
            weights = node.weights
        outputs: list[_Buffer | None] = [None, None]
        makes_q8 = value in reads_q8 and last_write[value] == index
        if value in f32_of:  # in place (rope)
            outputs[0] = f32_of[value]
        elif value in reads_f32 or node.kind not in _MAKES_Q8:
            outputs[0] = f32_of[value] = _Buffer(BufferKind.F32, value.rows, value.width)
        if makes_q8:
            q8_of[value] = _Buffer(BufferKind.Q8, value.rows, value.width)
            if node.kind in _MAKES_Q8:
                outputs[1] = q8_of[value]
        ops.append(_Op(node.kind, inputs, outputs, weights, node.ints, node.floats))
        if makes_q8 and outputs[1] is None:
            ops.append(_Op(OpKind.QUANTIZE, [f32_of[value]], [None, q8_of[value]]))
    return ops, [f32_of[result] for result in results]


def plan_slots(ops: list[_Op], outputs: list[_Buffer]) -> list[_Buffer]:
    """Gives every buffer a slot; those of the outputs are kept to the end. Returns the buffers."""
    buffers: list[_Buffer] = []
    for index, op in enumerate(ops):
        for buffer in op.buffers():
            if buffer not in buffers:
                buffer.first = index
                buffers.append(buffer)
            buffer.last = index
    for output in outputs:
        output.last = len(ops)
    slots: list[tuple[int, Rows, int]] = []  # (free after op, rows, row bytes)
    for buffer in buffers:
        free = [
            slot
            for slot, (busy_until, rows, _) in enumerate(slots)
            if busy_until < buffer.first and rows is buffer.rows
        ]
        # The free slot of the nearest size wastes least.
        buffer.slot = min(
            free, key=lambda slot: abs(slots[slot][2] - buffer.row_bytes), default=len(slots)
        )
        row = (buffer.last, buffer.rows, buffer.row_bytes)
        if buffer.slot == len(slots):
            slots.append(row)
        else:
            slots[buffer.slot] = (row[0], row[1], max(row[2], slots[buffer.slot][2]))
    return buffers


def compile_graph(
    graph: Graph,
    output: Value,
    team: ThreadTeam,
    cache: KVCache | None,
    *,
    max_tokens: int,
    max_logits: int,
    hidden: Value | None = None,
    blas_min_rows: int = 0,
) -> CompiledProgram:
    """The graph as a program that runs on `team`; its output rows are those of `output`.

    hidden: a value that can be read after a run, too. blas_min_rows: tokens from which OpenBLAS
    multiplies float weights (rillm.core.blas); 0: never.
    """
    outputs = [output] if hidden is None else [output, hidden]
    ops, kept = lower(fold_adds(graph.nodes), outputs)
    buffers = plan_slots(ops, kept)
    weights: list[Weight] = []
    ids: dict[int, int] = {}
    for op in ops:
        for weight in op.weights:
            if weight is not None and id(weight) not in ids:
                ids[id(weight)] = len(weights)
                weights.append(weight)
    index = {id(buffer): position for position, buffer in enumerate(buffers)}

    def buffer_ids(row: list[_Buffer | None], length: int) -> list[int]:
        known = [-1 if buffer is None else index[id(buffer)] for buffer in row]
        return known + [-1] * (length - len(known))

    core_ops = []
    for op in ops:
        core_op = CoreOp(kind=op.kind)
        core_op.inputs[:] = buffer_ids(op.inputs, 3)
        core_op.outputs[:] = buffer_ids(op.outputs, 2)
        known = [-1 if weight is None else ids[id(weight)] for weight in op.weights]
        core_op.weight[:] = known + [-1] * (6 - len(known))
        core_op.i[:] = op.ints + [0] * (6 - len(op.ints))
        core_op.f[:] = op.floats + [0.0] * (2 - len(op.floats))
        core_ops.append(core_op)
    return CompiledProgram(
        team,
        cache,
        core_ops,
        [CoreBuffer(buffer.kind, buffer.rows, buffer.width, buffer.slot) for buffer in buffers],
        weights,
        max_tokens=max_tokens,
        max_logits=max_logits,
        output=index[id(kept[0])],
        hidden=None if hidden is None else index[id(kept[1])],
        blas_min_rows=blas_min_rows,
    )
