"""Find the configs, in a checkout and in an installed package."""

import difflib
from pathlib import Path
from typing import List

_PACKAGE = Path(__file__).resolve().parent
# A wheel has the configs inside the package; a checkout (and so an editable install) has them next to the package.
CONFIG_DIR = next(
    (folder for folder in (_PACKAGE / 'configs', _PACKAGE.parent / 'configs') if (folder / '_base_').is_dir()),
    _PACKAGE / 'configs',
)


def list_configs(pattern: str = '*') -> List[str]:
    """Return the names of the configs, sorted, such as ``'mask-rcnn_rmt-t_fpn_amp-1x_coco'``.

    Args:
        pattern (str): shell pattern that names must match. Default ``'*'``.
    """
    return sorted(path.stem for path in CONFIG_DIR.glob(f'*/{pattern}.py') if path.parent.name != '_base_')


def get_config_path(name: str) -> str:
    """Return the path of a config by its name, for ``mmengine.Config.fromfile`` and the tools.

    Args:
        name (str): the config's name, with or without its folder and ``.py``.

    Raises:
        FileNotFoundError: there is no such config; the message names the closest ones.
    """
    stem = Path(name).name
    stem = stem[: -len('.py')] if stem.endswith('.py') else stem
    for path in CONFIG_DIR.glob('*/*.py'):
        if path.stem == stem and path.parent.name != '_base_':
            return str(path)
    close = difflib.get_close_matches(stem, list_configs(), 3, cutoff=0.5)
    hint = f'did you mean {" or ".join(close)}?' if close else f'there are {", ".join(list_configs()) or "none"}.'
    raise FileNotFoundError(f'no config {name!r} in {CONFIG_DIR}: {hint}')
