"""Models as files for other runtimes: graphs of whole models, ONNX, OpenVINO and torch.export, and their metadata."""
