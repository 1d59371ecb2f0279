"""Code that several tests share: small archs, official files, golden weights, and the published table."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test below a version of torch, which brought ``what``."""
    return pytest.mark.skipif(torch.__version__ < version, reason=f'torch < {version} has no {what}')


def load_tool(path: str) -> ModuleType:
    """Return a tool as a module, by its path below tools/."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / 'tools' / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
