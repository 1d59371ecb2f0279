"""Check at import that the installed versions of the OpenMMLab stack work with this package and together."""

import re
from importlib import metadata
from typing import Dict, Optional, Tuple

# Import name -> distributions that provide it: OpenMMLab's own, its lite form, the maintained continuation.
DISTRIBUTIONS = {
    'torch': ('torch',),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv', 'mmcv-full'),
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}


def _installed(package: str) -> Optional[Tuple[str, str]]:
    for distribution in DISTRIBUTIONS[package]:
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def read_requirements() -> Dict[str, str]:
    """Return what setup.cfg requires, such as ``'mmcv>=2.0.0,<2.2.0'``, by distribution; nothing if not installed."""
    try:
        lines = metadata.requires('rmt-mm') or []
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return {}
    wanted = (re.sub(r'[\s()]', '', line.partition(';')[0]) for line in lines)
    return {re.split(r'[^\w.-]', requirement)[0]: requirement for requirement in wanted}


def _numbers(version: str) -> Tuple[int, ...]:
    numbers = []
    for part in version.split('+')[0].split('.'):
        digits = part[: len(part) - len(part.lstrip('0123456789'))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def find_stack_problem(found: Dict[str, Tuple[str, str]]) -> Optional[str]:
    """Say in one sentence why a stack cannot work, or return None.

    Args:
        found (dict): import name -> (distribution, version) of what is installed, for the names of
            :data:`DISTRIBUTIONS`.

    Returns:
        str | None: versions found, versions wanted, and the command that mends it.
    """
    have = ', '.join(f'{distribution} {version}' for distribution, version in found.values()) or 'none of them'
    for package in ('mmcv', 'mmengine'):
        if package not in found:
            return (
                f'rmt_mm needs mmcv and mmengine, and found {have}: '
                'run `pip install "rmt-mm[openmmlab]"` or `pip install "rmt-mm[onedl]"`.'
            )
    requirements = read_requirements()
    for package, (distribution, version) in found.items():
        # mmcv-lite and mmcv-full have no requirement of their own: what is said of mmcv holds for them.
        wanted = requirements.get(distribution, requirements.get(DISTRIBUTIONS[package][0], ''))
        minimum = re.search('>=([0-9.]+)', wanted)
        if minimum and _numbers(version) < _numbers(minimum.group(1)):
            mend = 'pip uninstall -y mmcv-full && ' if distribution == 'mmcv-full' else ''
            return (
                f'rmt_mm needs {package} >= {minimum.group(1)}, and found {distribution} {version} '
                f'(installed: {have}): run `{mend}pip install "{wanted}"`.'
            )
    # mmdet 3.3.0 asserts mmcv < 2.2.0 at import; the continuation has lifted that.
    if (
        found.get('mmdet', ('', ''))[0] == 'mmdet'
        and _numbers(found['mmcv'][1]) >= (2, 2)
        and _numbers(found['mmdet'][1]) <= (3, 3, 0)
    ):
        return (
            f'mmdet {found["mmdet"][1]} refuses {found["mmcv"][0]} {found["mmcv"][1]} and needs mmcv >= 2.0.0, '
            '< 2.2.0: run `pip install "mmcv>=2.0.0,<2.2.0"`, or change to the continuation with '
            '`pip install "rmt-mm[onedl]"`.'
        )
    return None


def find_installed() -> Dict[str, Tuple[str, str]]:
    """Return import name -> (distribution, version) of what is installed of :data:`DISTRIBUTIONS`."""
    return {package: version for package in DISTRIBUTIONS if (version := _installed(package))}


def check_stack() -> None:
    """Raise ImportError with one sentence if the installed OpenMMLab packages cannot work with this one or together."""
    problem = find_stack_problem(find_installed())
    if problem:
        # The name of the package, so that `python -m rmt_mm` prints the sentence without a traceback.
        raise ImportError(problem, name=__package__)
