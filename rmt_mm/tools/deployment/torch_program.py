"""Write a graph as a program of torch.export (.pt2), or compiled ahead of time by Inductor, and run it."""

import importlib
from typing import Any, List

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from .graphs import Graph

# Below this size a map has one token in a row or column somewhere, and torch.export records another program for it.
LEAST_SIZE = 33


def record(graph: Graph, example: Tensor, dynamic: bool) -> Any:
    """Return the ``ExportedProgram`` of a graph; with ``dynamic`` for sizes from :data:`LEAST_SIZE`, batches from 2.

    Raises:
        UsageError: this torch is too old, or the graph's output sizes depend on values.
    """
    if torch.__version__ < '2.6':
        raise UsageError(f'torch {torch.__version__} cannot export this model: torch.export needs 2.6 or newer.')
    if not graph.takes_batches:
        raise UsageError(
            'the number of boxes depends on values, which torch.export does not record: export to onnx or openvino, '
            'or the backbone and neck with --part features.'
        )
    shapes = None
    if dynamic:
        any_size = torch.export.Dim.DYNAMIC
        first = 1 if graph.prepare.normalize else 2
        shapes = ({0: any_size, first: any_size, first + 1: any_size},)
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)


def write_program(graph: Graph, example: Tensor, path: str, dynamic: bool) -> None:
    """Write a .pt2 file, for ``torch.export.load``."""
    torch.export.save(record(graph, example, dynamic), path)


def write_compiled(graph: Graph, example: Tensor, path: str, dynamic: bool) -> None:
    """Write a .pt2 package of machine code for this processor, for ``torch._inductor.aoti_load_package``.

    Raises:
        UsageError: as :func:`record`; Inductor cannot compile the program, for example without a C++ compiler.
    """
    program = record(graph, example, dynamic)
    try:
        with torch.no_grad():
            _inductor().aoti_compile_and_package(program, package_path=path)
    except RuntimeError as error:  # the base of Inductor's own errors
        raise UsageError(f'Inductor cannot compile the model: {str(error).splitlines()[0]}') from error


def _inductor() -> Any:
    return importlib.import_module('torch._inductor')  # importing it takes seconds


def _arrays(outputs: Any) -> List[np.ndarray]:
    return [out.detach().numpy() for out in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


def run_program(path: str, image: Tensor) -> List[np.ndarray]:
    """Return the outputs of a .pt2 file of :func:`write_program` for images."""
    with torch.no_grad():
        return _arrays(torch.export.load(path).module()(image))


def run_compiled(path: str, image: Tensor) -> List[np.ndarray]:
    """Return the outputs of a .pt2 file of :func:`write_compiled` for images."""
    with torch.no_grad():
        return _arrays(_inductor().aoti_load_package(path)(image))
