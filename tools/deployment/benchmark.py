"""Measure an exported backbone beside PyTorch's eager form, interleaved in one run: medians and their ratios.

python tools/deployment/benchmark.py --arch small --shape 224 224 --batch 8
python tools/deployment/benchmark.py --arch tiny --shape 800 1344 --repeats 5 --profile

--profile prints where onnxruntime spends its time, by operator, and its share of each.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections import Counter

import numpy as np
import onnxruntime
import openvino
import torch

from rmt_mm import RMT
from rmt_mm.ops.memory import keep_freed_memory
from rmt_mm.tools.deployment.graphs import feature_graph
from rmt_mm.tools.deployment.inputs import ImageNorm, Preparation
from rmt_mm.tools.deployment.onnx_file import INPUT, write_onnx


def onnx_session(path, threads, profile=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def profile(path, image, threads, folder):
    """Return onnxruntime's share of time by operator, in percent."""
    session = onnx_session(path, threads, os.path.join(folder, 'profile'))
    for _ in range(3):
        session.run(None, {INPUT: image.numpy()})
    with open(session.end_profiling()) as file:
        events = json.load(file)
    times: Counter = Counter()
    for event in events:
        if event['cat'] == 'Node' and event['name'].endswith('kernel_time'):
            times[event['args']['op_name']] += event['dur']
    total = sum(times.values())
    return {name: round(100 * spent / total, 1) for name, spent in times.most_common(12)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--fixed', action='store_true', help='export for this size alone')
    parser.add_argument('--profile', action='store_true', help="print onnxruntime's time by operator")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    backbone = RMT(args.arch).eval()
    backbone.switch_to_deploy()
    prepare = Preparation(ImageNorm(), False)
    graph = feature_graph(backbone, prepare, prepare.example(1, 64, 64)).eval()
    image = prepare.example(args.batch, *args.shape) / 64
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'a.onnx')
        write_onnx(graph, image if args.fixed else prepare.example(2, 64, 96), path, not args.fixed, 17, {})
        session = onnx_session(path, args.threads)
        settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=args.threads)
        model = openvino.compile_model(openvino.Core().read_model(path), 'CPU', settings)

        def eager():
            with torch.inference_mode():
                graph(image)

        runs = dict(
            eager=eager,
            onnxruntime=lambda: session.run(None, {INPUT: image.numpy()}),
            openvino=lambda: model(image.numpy()),
        )
        times = {name: [] for name in runs}
        for _ in range(args.repeats + 1):  # the first is not counted
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        medians = {name: float(np.median(spent[1:])) for name, spent in times.items()}
        report = dict(
            arch=args.arch,
            shape=list(args.shape),
            batch=args.batch,
            threads=args.threads,
            seconds={name: round(median, 4) for name, median in medians.items()},
            eager_over={name: round(medians['eager'] / median, 2) for name, median in medians.items()},
            peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        )
        if args.profile:
            report['percent'] = profile(path, image, args.threads, folder)
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
