"""From a command line to a config that is known to be runnable.

Mistakes that can be seen before a model is built are reported here, in one sentence each.
"""
import argparse
import difflib
import inspect
import os
import os.path as osp
import tempfile

from mmengine.config import Config
from mmengine.runner import Runner

from ..checkpoints.files import force_safe_loading
from ..errors import UsageError
from .model_check import check_backbones


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, apply the command line to it, and check what can be checked before anything is built.

    Raises:
        UsageError: a missing or broken config, an option or file that does not exist, a work dir that cannot be
            written, RMT without its import, a neck that does not fit the backbone.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    force_safe_loading()
    if not osp.isfile(args.config):
        raise UsageError(f'config {args.config} does not exist.')
    try:
        cfg = Config.fromfile(args.config)
    except (OSError, SyntaxError, NameError, KeyError, TypeError, ImportError) as error:
        raise UsageError(f'config {args.config} cannot be read: {type(error).__name__}: {error}') from error
    _check_options(cfg, args.cfg_options)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    _check_work_dir(cfg.work_dir)
    check_backbones(cfg, args.config)
    return cfg


def _check_options(cfg: Config, options: dict) -> None:
    """Refuse --cfg-options that the config has no place for; mmengine would add them and nothing would happen."""
    top_level = set(cfg) | set(inspect.signature(Runner.__init__).parameters) | {'auto_scale_lr', 'runner_type'}

    def fail(option: str, key: str, known) -> None:
        close = difflib.get_close_matches(key, [str(k) for k in known], 1)
        hint = f'did you mean {close[0]!r}?' if close else f'there are: {", ".join(map(str, sorted(known)))}.'
        raise UsageError(f'--cfg-options {option}: the config has no {key!r}; {hint}')

    for option in options:
        keys = option.split('.')
        if keys[0] not in top_level:
            fail(option, keys[0], top_level)
        node = cfg.get(keys[0])
        for i, key in enumerate(keys[1:], start=1):
            last = i == len(keys) - 1
            if isinstance(node, (list, tuple)):
                if not key.isdigit() or int(key) >= len(node):
                    fail(option, key, range(len(node)))
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, dict) and (last or 'type' in node):
                # A new argument is fine, since not all are in the config; what looks like a misspelling is not.
                if difflib.get_close_matches(key, node, 1, cutoff=0.9):
                    fail(option, key, node)
                break
            elif node is None:
                break
            else:
                fail(option, key, node if isinstance(node, dict) else ())


def _check_work_dir(work_dir: str) -> None:
    try:
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UsageError(f'work dir {work_dir} cannot be written ({error.strerror}): '
                         'name another one with --work-dir.') from error
