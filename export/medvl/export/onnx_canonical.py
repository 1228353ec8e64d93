"""ONNX graphs without a trace of the process that wrote them, so that equal networks are equal bytes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def canonicalise(model: onnx.ModelProto) -> None:
    """Drop what tells of source lines and paths, and number what the exporter named by counters of its process.

    Names of inputs, outputs and weights stay.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    names: dict[str, str] = {}
    for number, node in enumerate(_nodes(graph)):
        node.name = f"{node.op_type}_{number}"
        for position, output in enumerate(node.output):
            if output and output not in fixed:
                names[output] = f"{node.name}_{position}"
    for node in _nodes(graph):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for part in _graphs(graph):
        _strip(part, names)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those nested in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for nested in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(nested)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for part in _graphs(graph):
        yield from part.node


def _strip(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Drop descriptions; intermediate values keep their shapes under their new names."""
    for value in (*graph.value_info, *graph.output):
        value.name = names.get(value.name, value.name)
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
