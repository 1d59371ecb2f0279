"""Write a graph as an ONNX file of standard operators, with metadata, and run it by onnxruntime.

The file is recorded by torch.jit.trace (torch.onnx.export with dynamo=False), in which sizes are tensors of the graph:
one file serves every size. torch.export (dynamo=True) records sizes as formulas of the image's, which it compares at
every operation. That is slow: docs/deployment.md has the figures. And it cannot record the boxes of a detector, whose
number depends on values.
"""

import json
import warnings
from collections import Counter
from typing import Any, Dict, List

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from .files import require
from .graphs import Graph

# RoiAlign with half-pixel centres needs 16, LayerNormalization 17; torch writes up to 20 this way.
OPSETS = range(17, 21)
INPUT = 'image'


def write_onnx(graph: Graph, example: Tensor, path: str, dynamic: bool, opset: int, metadata: dict) -> None:
    """Write an ONNX file, and check it.

    Args:
        graph (Graph): in eval mode.
        example (Tensor): images that it takes; without ``dynamic`` the file takes this shape alone.
        path (str): the file, which is replaced.
        dynamic (bool): any batch (if the graph takes batches), height and width.
        opset (int): one of :data:`OPSETS`.
        metadata (dict): values for JSON, written as the file's metadata properties.

    Raises:
        UsageError: the extra ``deploy`` is not installed, or the opset is not one of :data:`OPSETS`.
    """
    onnx = require('onnx')
    if opset not in OPSETS:
        raise UsageError(f'opset {opset} cannot be written: choose from {OPSETS[0]} to {OPSETS[-1]}.')
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer's, about values that the graphs do not branch on
        newer = dict(dynamo=False) if torch.__version__ >= '2.5' else {}
        torch.onnx.export(
            graph,
            (example,),
            path,
            input_names=[INPUT],
            output_names=list(graph.outputs),
            dynamic_axes=free_axes(graph, dynamic),
            opset_version=opset,
            **newer,  # type: ignore[arg-type]
        )
    model = onnx.load(path)
    model.producer_name = 'rmt-mm'
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    check_operators(model)


def free_axes(graph: Graph, dynamic: bool) -> Dict[str, Dict[int, str]]:
    """Return the axes of any length of the input and the outputs, by name."""
    first = 1 if graph.prepare.normalize else 2
    axes = {INPUT: {first: 'height', first + 1: 'width'}, **graph.outputs}
    if graph.takes_batches:
        axes[INPUT][0] = 'batch'
    if dynamic:
        return axes
    return {} if graph.takes_batches else {name: axes[name] for name in graph.outputs}


def operators(model: Any) -> Dict[str, int]:
    """Return how often a model uses each operator, those of inner graphs included, in order of names."""
    counts: Counter = Counter()

    def count(graph: Any) -> None:
        for node in graph.node:
            counts[node.op_type if node.domain in ('', 'ai.onnx') else f'{node.domain}::{node.op_type}'] += 1
            for attribute in node.attribute:
                for inner in [attribute.g, *attribute.graphs]:
                    count(inner)

    count(model.graph)
    return dict(sorted(counts.items()))


def check_operators(model: Any) -> None:
    """Raise UsageError if a model uses operators that are not ONNX's own, which no runtime knows."""
    foreign = [name for name in operators(model) if '::' in name]
    if foreign:
        raise UsageError(
            f'the model uses {", ".join(foreign)}, which ONNX does not have: export its backbone and neck with '
            '--part features.'
        )


def run_onnx(path: str, image: Tensor) -> List[np.ndarray]:
    """Return the outputs of an ONNX file for images, by onnxruntime on the CPU."""
    runtime = require('onnxruntime')
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return session.run(None, {INPUT: image.numpy()})
