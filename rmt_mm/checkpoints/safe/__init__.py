"""Read files of ``torch.save`` without executing what they hold.

``read_checkpoint`` and the label maps call :func:`safe_load` (``load.py``). It looks into a file with
:class:`Inspector` (``unpickler.py``), and then calls ``torch.load(weights_only=True)`` with just plain types and the
stand-ins of ``types.py`` on torch's list (``process.py``). Loaders of others, which call ``torch.load`` themselves, are
served by two functions of ``process.py``: ``import rmt_mm`` calls :func:`allow_mmengine_checkpoints`, and our programs
call :func:`force_safe_loading`. :class:`Unpickler` takes the place of torch's own reader before torch 2.5, and the
reader of predictions (``rmt_mm.tools.report``) is derived from it.
"""

from .load import DAMAGE, LEGACY_MAGIC, LEGACY_PICKLES, OFFICIAL_TYPES, ZIP_MAGIC, safe_load
from .process import allow_mmengine_checkpoints, force_safe_loading
from .require import require
from .unpickler import Inspector, Unpickler

__all__ = [
    'DAMAGE',
    'Inspector',
    'LEGACY_MAGIC',
    'LEGACY_PICKLES',
    'OFFICIAL_TYPES',
    'Unpickler',
    'ZIP_MAGIC',
    'allow_mmengine_checkpoints',
    'force_safe_loading',
    'require',
    'safe_load',
]
