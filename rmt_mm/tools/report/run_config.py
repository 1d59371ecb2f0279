"""Read the config that mmengine dumped for a run, without executing it, and compare it with another."""

import ast
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from mmengine.config import Config

from ...config_path import get_config_path
from ...errors import UsageError, printable

# What the report reads of a config, and its kind where there is any; what holds a key comes before it.
KINDS = {
    'default_scope': str,
    'model': dict,
    'test_dataloader': dict,
    'test_dataloader.dataset': dict,
    'val_dataloader': dict,
    'val_dataloader.dataset': dict,
}


class Change(NamedTuple):
    """A setting that differs: its path, and its two values as text; '' where one has no such setting."""

    key: str
    base: str
    run: str


def find_dumped(work_dir: Path, run: Optional[Path]) -> Optional[Path]:
    """Return the config of a run as mmengine dumped it: ``vis_data/config.py``, else the newest of the work dir."""
    if run is not None and (run / 'vis_data/config.py').is_file():
        return run / 'vis_data/config.py'
    found = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def read_dumped(path: Path) -> Config:
    """Parse a config that holds nothing but literals and ``dict(...)``, as ``Config.dump`` writes it.

    Raises:
        UsageError: it cannot be read, or holds anything else.
    """
    values: Dict[str, Any] = {}
    try:
        for statement in ast.parse(path.read_text()).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                raise ValueError(f'line {statement.lineno} is no assignment of a value')
            values[statement.targets[0].id] = _literal(statement.value)
        for path_of_key, kind in KINDS.items():
            _check_kind(values, path_of_key.split('.'), kind)
        return Config(values)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise UsageError(f'{path} is not a config that mmengine dumped: {error}') from error


def _check_kind(values: Any, keys: List[str], kind: type) -> None:
    for key in keys[:-1]:
        values = values.get(key) or {}
    value = values.get(keys[-1])
    if value is not None and not isinstance(value, kind):
        raise ValueError(f'{".".join(keys)} is {printable(repr(value), 100)}')


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == 'dict' and not node.args and all(word.arg for word in node.keywords):
            return {str(word.arg): _literal(word.value) for word in node.keywords}
        if node.func.id in ('set', 'tuple', 'list') and not node.args and not node.keywords:
            return dict(set=set, tuple=tuple, list=list)[node.func.id]()
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        values = [_literal(value) for value in node.elts]
        return values if isinstance(node, ast.List) else tuple(values) if isinstance(node, ast.Tuple) else set(values)
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Name):
        return -_literal(node.operand)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f'line {node.lineno} holds more than literals') from error


def find_base(name: str) -> Optional[Path]:
    """Return our config of this name, or None."""
    try:
        return Path(get_config_path(name))
    except FileNotFoundError:
        return None


def compare(base: Config, run: Config) -> List[Change]:
    """Return the settings in which two configs differ, by their paths (``optim_wrapper.optimizer.lr``)."""
    before, after = _flatten(base.to_dict()), _flatten(run.to_dict())
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [Change(key, before.get(key, ''), after.get(key, '')) for key in sorted(keys)]


def _holds_dict(node: Any) -> bool:
    return isinstance(node, dict) or (isinstance(node, (list, tuple)) and any(map(_holds_dict, node)))


def _flatten(node: Any, path: str = '') -> Dict[str, str]:
    """Return the leaves of nested dicts and lists of dicts as text, so that 1 and 1.0, or list and tuple, are equal."""
    children: List[Tuple[Any, Any]] = []
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, (list, tuple)) and _holds_dict(node):
        children = list(enumerate(node))
    if children:
        found: Dict[str, str] = {}
        for key, value in children:
            found.update(_flatten(value, f'{path}.{key}' if path else str(key)))
        return found
    if isinstance(node, (list, tuple)):
        return {path: f'[{", ".join(map(repr, node))}]'}
    if isinstance(node, float) and node.is_integer():
        return {path: repr(int(node))}
    return {path: repr(node)}
