"""A recorded model that reports its matrices' inputs instead of computing logits.

What quantisation should be careful with shows in what a matrix is multiplied with: the mean square
of each column's input, over a text, is an importance matrix (rillm imatrix).
"""

from __future__ import annotations

from collections.abc import Mapping

from rillm.core import OpKind, Rows, Weight
from rillm.nn.graph import Graph, Node, Value


def observe_inputs(
    graph: Graph, matrices: Mapping[str, Weight]
) -> tuple[Graph, Value, dict[str, slice]]:
    """The graph with the inputs of these matrices squared and summed over the rows of a batch.

    Returns it with its output, [1, columns of all observed inputs], and where in that row each
    matrix finds its columns. Matrices that one op multiplies with the same input share them.
    What comes after the last observed op is left out.
    """
    names = {id(matrix): name for name, matrix in matrices.items()}
    places: dict[str, slice] = {}
    sums: list[Node] = []
    nodes: list[Node] = []
    length = width = 0
    for node in graph.nodes:
        observed = [names[id(weight)] for weight in node.weights if id(weight) in names]
        if node.kind is OpKind.LINEAR and observed:
            x = node.inputs[0]
            assert x is not None
            place = slice(width, width + x.width)
            places |= dict.fromkeys(observed, place)
            sums.append(Node(OpKind.SUM_SQUARES, [x], Value(0), ints=[width]))
            nodes.append(sums[-1])
            length, width = len(nodes), place.stop
        nodes.append(node)
    total = Value(width, Rows.ONE)
    for node in sums:
        node.output = total
    result = Graph()
    result.nodes = nodes[:length]
    return result, total, places
