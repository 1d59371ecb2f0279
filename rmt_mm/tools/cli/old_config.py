"""Recognise configs of mmdet 2 and mmseg 0, such as the authors' release has, and name the fields to use instead."""

import ast
import re
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

from ...arch import ARCHS, SCALARS, Arch, find_preset, short_name
from ...config_path import list_configs
from ...training.findings import Finding

PAGE = 'docs/old_configs.md'
# Top-level keys of the old format, and what replaces them.
OLD_KEYS = {
    'auto_resume': 'resume=True, or give --resume',
    'checkpoint_config': 'default_hooks.checkpoint',
    'data': 'train_dataloader, val_dataloader and test_dataloader',
    'dist_params': 'env_cfg.dist_cfg',
    'evaluation': 'train_cfg.val_interval and val_evaluator',
    'fp16': "optim_wrapper.type='AmpOptimWrapper'",
    'log_config': 'default_hooks.logger',
    'lr_config': 'param_scheduler',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper',
    'resume_from': 'load_from and resume=True, or give --resume FILE',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
    'total_iters': 'train_cfg.max_iters',
}
NEW_KEYS = {'optim_wrapper', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_evaluator'}
# Arguments of the authors' backbone that are keys of arch or arguments of RMT here.
OLD_ARCH = {
    **{key: key for key in Arch._fields if key not in SCALARS},
    'chunkwise_recurrents': 'decomposed',
    'layerscales': 'layer_scales',
}
OLD_ARGUMENTS = {'layer_init_values': 'layer_scale_init', 'use_checkpoint': 'with_cp', 'in_chans': 'in_channels'}
SIZES = {short_name(name): name for name in ARCHS}
# The authors' names of their models, in type or arch: RMT_B, RMT_Swin, RMT_Swin_S.
OLD_NAME = re.compile(r'RMT[_-](?:(swin)[_-]?)?([TSBL]?)(?:iny|mall|ase|arge)?', re.IGNORECASE)


def find_old_format(path: str, cfg: Optional[dict] = None) -> Iterator[Finding]:
    """Find that a config file has the old format, from the keys of ``cfg`` or, if it cannot be read, its text."""
    keys = set(_own_keys(path) if cfg is None else (key for key in cfg if key not in OLD_KEYS or _is_set(cfg[key])))
    old = sorted(key for key in OLD_KEYS if key in keys)
    # mmdet 2 had a top-level train_cfg too: settings of assigners, beside data.
    if not old or keys & (NEW_KEYS - {'train_cfg'} if 'data' in old else NEW_KEYS):
        return
    ours = _same_model(Path(path).stem.lower())
    same = f'ours of the same model is {ours}' if ours else 'our configs are listed in docs/model_zoo.md'
    yield Finding(
        f'config {path} is one of mmdet 2 or mmseg 0 (it sets {", ".join(old)}): {same}, and {PAGE} lists old and new '
        'fields.'
    )


def _is_set(value: Any) -> bool:
    return isinstance(value, (dict, int))


def find_unread_keys(path: str, cfg: dict) -> Iterator[str]:
    """Yield notes on keys of the old format that a config file of the new one sets, and that nothing reads."""
    for key, used in _own_keys(path).items():
        if key in OLD_KEYS and key in cfg and not used:
            yield f'config {path} sets {key!r}, which only mmdet 2 and mmseg 0 read: set {OLD_KEYS[key]}; see {PAGE}.'


def _own_keys(path: str) -> Dict[str, bool]:
    """Return the variables that a config file itself assigns, and whether it reads them. Nothing is executed."""
    try:
        tree = ast.parse(Path(path).read_text(encoding='utf-8'))
    except (OSError, SyntaxError, ValueError):  # not Python, such as a JSON config
        return {}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return {target.id: target.id in read for target in targets if isinstance(target, ast.Name)}


def _same_model(stem: str) -> str:
    """Return the name of our config of the model that a file name of the authors' describes, or ''."""
    size = re.search(r'(?:^|[_-])(t|s|b|l)(?:iny|mall|ase|arge)?(?:[_-]|$)', stem)
    if size is None or ('swin' in stem and 'rmt' not in stem):
        return ''
    family = 'swin-' if 'swin' in stem else ''
    letter, name = family + size[1], family + SIZES[size[1]]
    schedule = '3x' if '3x' in stem else '1x'
    patterns = {
        'cascade': f'cascade-mask-rcnn_rmt-{letter}_*{schedule}_coco',
        'mask': f'mask-rcnn_rmt-{letter}_*{schedule}_coco',
        'retina': f'retinanet_rmt-{letter}_*{schedule}_coco',
        'uper': f'rmt-{name}_upernet_*_ade20k-512x512',
        'fpn': f'rmt-{name}_fpn_*_ade20k-512x512',
    }
    for word, pattern in patterns.items():
        if word in stem:
            return next(iter(list_configs(pattern)), '')
    return ''


def old_name(name: Any) -> str:
    """Return our name of the size that the authors' name of a model means, or ''."""
    found = OLD_NAME.fullmatch(name.split('.')[-1]) if isinstance(name, str) else None
    if found is None or not any(found.groups()):
        return ''
    size = (found[2] or 't').lower()  # RMT_Swin is a class whose defaults are those of T
    return SIZES.get(f'swin-{size}' if found[1] else size, '')


def find_old_arguments(backbone: Dict[str, Any], where: str) -> Iterator[Finding]:
    """Find arguments of the authors' backbone in the config of RMT, and write the new ones with their values."""
    sizes = {new: backbone[old] for old, new in OLD_ARCH.items() if old in backbone}
    settings = [
        f'{new}arch={old_name(backbone[key])!r} for {key}={backbone[key]!r}'
        for key, new in (('type', "type='RMT', "), ('arch', ''))
        if old_name(backbone.get(key))
    ]
    settings += [f'{new}={backbone[old]!r} for {old}' for old, new in OLD_ARGUMENTS.items() if old in backbone]
    if sizes:
        given = backbone.get('arch')
        filled = {**Arch._field_defaults, **(given if isinstance(given, dict) else _closest(sizes, given)), **sizes}
        shown = [key for key in Arch._fields if filled[key] != Arch._field_defaults.get(key)]
        text = ', '.join(f'{key}={filled[key]!r}' for key in shown)
        preset = next((name for name, arch in ARCHS.items() if _plain(filled) == _plain(arch._asdict())), '')
        same = f" (the same as arch='{preset}')" if preset else ''
        old = ', '.join(name for name in OLD_ARCH if name in backbone)
        settings.insert(0, f'arch=dict({text}){same} for {old}')
    if settings:
        yield Finding(f"{where} has arguments of the authors' release: write {'; '.join(settings)}. See {PAGE}.")


def _closest(sizes: Dict[str, Any], given: Any) -> Dict[str, Any]:
    """Return the published size that has most of the given values: it fills in those that are not given."""
    named = find_preset(str(given))
    values = _plain(sizes)
    arch = named or max(
        ARCHS.values(), key=lambda arch: sum(_plain(arch._asdict())[key] == values[key] for key in values)
    )
    return arch._asdict()


def _plain(sizes: Dict[str, Any]) -> Dict[str, list]:
    return {key: list(value) if isinstance(value, (list, tuple)) else [value] for key, value in sizes.items()}
