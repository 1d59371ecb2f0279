"""Apply ``--cfg-options`` to a config, and refuse options that would change nothing."""

import argparse
import difflib
import inspect
from typing import Any, Iterable, List, Optional

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import FlexibleRunner, Runner

from ...errors import UsageError
from ...training.config_search import walk
from .notes import note
from .types import REGISTRIES, find_classes, find_parameters, library

# Top-level keys that mmengine's Runners and the tools read from a config, besides the arguments of the Runners.
_READ_FROM_CFG = {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'env_cfg',
    'find_unused_parameters',
    'init_weights_for_test_or_val',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}
_ARGUMENTS = {*inspect.signature(Runner.__init__).parameters, *inspect.signature(FlexibleRunner.__init__).parameters}
KNOWN_KEYS = (_ARGUMENTS | _READ_FROM_CFG) - {'self', 'cfg'}


class CfgOptions(DictAction):
    """mmengine's action, with an error of one sentence for arguments that are not ``KEY=VALUE``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            if not value.partition('=')[0].strip('.') or '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r} is not KEY=VALUE.')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:  # unbalanced brackets
            raise argparse.ArgumentError(self, str(error)) from error


def apply_options(cfg: Config, options: dict) -> None:
    """Merge ``--cfg-options`` into ``cfg``.

    Raises:
        UsageError: an option certainly changes nothing or is misspelt. Options that the user's own code may read are
            accepted, with a note on stderr.
    """
    for option, value in options.items():
        keys = _split(cfg, option)
        _check_top_level(cfg, option, keys)
        _check_below(cfg, option, keys)
        for key in reversed(keys[1:]):
            value = {key: value}
        try:
            cfg.merge_from_dict({keys[0]: value})
        except (TypeError, KeyError) as error:
            raise UsageError(f'--cfg-options {option}: {error}') from error


def check_top_level_names(cfg: Config, path: str) -> None:
    """Refuse a misspelt top-level key of a config file, such as ``optim_wraper``, which mmengine ignores."""
    imported = getattr(cfg, '_imported_names', ())
    # Exclude tta_pipeline: it resembles test_pipeline, a name that any config may give to its own variable.
    names = KNOWN_KEYS - {'tta_pipeline', 'tta_model'}
    for key in set(cfg) - KNOWN_KEYS - set(imported):
        close = difflib.get_close_matches(key, names, 1, cutoff=0.85)
        # A longer name, such as val_evaluator_abs, is a separate variable.
        if close and (key == f'{close[0]}s' or not key.startswith(close[0])):
            if key == f'{close[0]}s' or _find_copies(cfg, key, cfg[key]):
                note(f'config {path}: nothing reads {key!r} itself; was {close[0]!r} meant?')
            else:
                raise UsageError(f'config {path} sets {key!r}, which nothing reads: did you mean {close[0]!r}?')


def _split(cfg: Config, option: str) -> List[str]:
    """Split an option at its dots, except those within a key: a parameter name in ``custom_keys``, an existing key."""
    keys: List[str] = []
    node, rest = cfg._cfg_dict, option.split('.')
    while rest:
        if keys and keys[-1] == 'custom_keys' and len(rest) > 2:
            return [*keys, '.'.join(rest[:-1]), rest[-1]]
        known = node if isinstance(node, dict) else ()
        length = next((n for n in range(len(rest), 0, -1) if '.'.join(rest[:n]) in known), 1)
        keys.append('.'.join(rest[:length]))
        rest = rest[length:]
        node = _child(node, keys[-1])
    return keys


def _child(node: Any, key: str) -> Any:
    if isinstance(node, (list, tuple)) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    return node.get(key) if isinstance(node, dict) else None


def _check_top_level(cfg: Config, option: str, keys: List[str]) -> None:
    """Refuse a top-level key that other settings were only built from, or that mmengine ignores."""
    key, rest = keys[0], ''.join(f'.{k}' for k in keys[1:])
    instead = _find_overruling(cfg, key)
    if instead:
        raise UsageError(
            f'--cfg-options {option} would change nothing: the config has {instead}, which mmengine takes '
            f'instead; set {instead}{rest}.'
        )
    if key in KNOWN_KEYS:
        return
    places = _find_copies(cfg, key, cfg[key]) if key in cfg else _find_names(cfg, key)
    if places:
        shown = [place + rest for place in places[:6]] + ([f'{len(places) - 6} more'] if len(places) > 6 else [])
        why = (
            f'other settings were made from {key!r}, and nothing reads it itself'
            if key in cfg
            else f'nothing reads {key!r} at the top level'
        )
        raise UsageError(f'--cfg-options {option} would change nothing: {why}; set {", ".join(shown)}.')
    close = difflib.get_close_matches(key, KNOWN_KEYS | set(cfg), 1, cutoff=0.8)
    if key not in cfg and close:
        raise UsageError(f'--cfg-options {option}: the config has no {key!r}; did you mean {close[0]!r}?')
    note(
        f'--cfg-options {option}: neither mmengine nor this tool reads {key!r}; it changes nothing, unless code of '
        'your own reads it.'
    )


def _find_overruling(cfg: Config, key: str) -> Optional[str]:
    """Return the setting that mmengine reads instead of the top-level ``key``, if the config has it."""
    if key == 'data_preprocessor' and 'data_preprocessor' in (cfg.get('model') or {}):
        return 'model.data_preprocessor'
    if key == 'find_unused_parameters' and cfg.get('model_wrapper_cfg'):
        return 'model_wrapper_cfg.find_unused_parameters'
    return None


def _read_part(cfg: Config) -> dict:
    # Leave out the keys that only --tta reads: messages must not name them.
    return {
        key: cfg[key]
        for key in cfg
        if key in KNOWN_KEYS and not key.startswith('tta_') and not _find_overruling(cfg, key)
    }


def _find_copies(cfg: Config, name: str, value: Any) -> List[str]:
    """Return the settings that are read and equal a top-level variable's value, or are paths that begin with it."""
    # Numbers and None must match by name too: a value such as 12 occurs in many settings.
    distinct = isinstance(value, (str, list, tuple, dict)) and len(value) > 0
    distinct = distinct or (isinstance(value, float) and value % 1 != 0)
    found: List[str] = []
    for path, key, other in walk(_read_part(cfg)):
        if any(path.startswith(f'{parent}.') for parent in found):
            continue
        same = type(other) is type(value) and other == value and (distinct or key == name)
        begins = isinstance(value, str) and '/' in value and isinstance(other, str) and other.startswith(value)
        if same or begins:
            found.append(path)
    return found


def _find_names(cfg: Config, name: str) -> List[str]:
    return [path for path, key, _ in walk(_read_part(cfg)) if key == name]


def _check_below(cfg: Config, option: str, keys: List[str]) -> None:
    """Refuse a misspelt key below the top level, and replace a None that gets keys by a dict."""
    node, parent = cfg.get(keys[0]), cfg._cfg_dict
    for i, key in enumerate(keys[1:], start=1):
        if node is None:
            if keys[i - 1] in parent:
                parent[keys[i - 1]] = ConfigDict()
            return
        if isinstance(node, (list, tuple)):
            if not key.isdigit() or int(key) >= len(node):
                _refuse(option, key, range(len(node)))
        elif not isinstance(node, dict):
            raise UsageError(f'--cfg-options {option}: {".".join(keys[:i])} is {node!r}, which has no {key!r}.')
        elif key not in node:
            if keys[i - 1] != 'custom_keys':
                _check_new_key(cfg, option, key, node)
            return
        parent, node = node, _child(node, key)


def _check_new_key(cfg: Config, option: str, key: str, node: dict) -> None:
    """Refuse a new key that is no argument of the dict's class, but resembles one or resembles a key of the dict."""
    classes = find_classes(node.get('type'), library(cfg), REGISTRIES)
    known = {name for cls in classes for name in find_parameters(cls)}
    close = difflib.get_close_matches(key, {*map(str, node), *known}, 1, cutoff=0.85 if known else 0.9)
    if key in known or not close or _differ_in_digits(key, close[0]):
        return
    if 'type' in node and not classes:
        note(f'--cfg-options {option}: {key!r} is new; was {close[0]!r} meant?')
    else:
        _refuse(option, key, close)


def _refuse(option: str, key: str, known: Iterable) -> None:
    known = [str(k) for k in known]
    close = difflib.get_close_matches(key, known, 1)
    hint = f'did you mean {close[0]!r}?' if close else f'there are: {", ".join(sorted(known))}.'
    raise UsageError(f'--cfg-options {option}: the config has no {key!r}; {hint}')


def _differ_in_digits(a: str, b: str) -> bool:
    return a.rstrip('0123456789') == b.rstrip('0123456789')
