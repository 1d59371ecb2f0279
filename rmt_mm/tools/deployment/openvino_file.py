"""Write a graph as OpenVINO's .xml and .bin, by way of ONNX, and run it."""

import json
import os.path as osp
import tempfile
from typing import List

import numpy as np
from torch import Tensor

from .files import require
from .graphs import Graph
from .onnx_file import write_onnx


def write_openvino(
    graph: Graph, example: Tensor, path: str, dynamic: bool, opset: int, metadata: dict, half: bool = False
) -> None:
    """Write ``path`` (.xml) and the file of weights beside it (.bin).

    Args:
        graph, example, dynamic, opset, metadata: those of :func:`rmt_mm.tools.deployment.onnx_file.write_onnx`.
        path (str): ends in .xml.
        half (bool): store weights in fp16. OpenVINO chooses what it computes in by itself. Default False.
    """
    openvino = require('openvino')
    with tempfile.TemporaryDirectory() as folder:
        onnx_file = osp.join(folder, 'model.onnx')
        write_onnx(graph, example, onnx_file, dynamic, opset, metadata)
        model = openvino.Core().read_model(onnx_file)
        for key, value in metadata.items():
            model.set_rt_info(json.dumps(value), ['rmt_mm', key])
        openvino.save_model(model, path, compress_to_fp16=half)


def run_openvino(path: str, image: Tensor) -> List[np.ndarray]:
    """Return the outputs of an OpenVINO file for images, on the CPU, computed in fp32."""
    openvino = require('openvino')
    core = openvino.Core()
    # By default OpenVINO computes in bf16 on processors that have it.
    model = core.compile_model(core.read_model(path), 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
    found = model(image.numpy())
    return [found[i] for i in range(len(model.outputs))]
