"""Turn a command line into a checked config.

This module reports mistakes that can be found before a model is built, in one sentence each.
"""

import argparse
import os
import os.path as osp
import tempfile
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from mmengine.config import Config

from ...checkpoints import force_safe_loading
from ...config_path import get_config_path
from ...errors import UsageError, as_sentence
from ...training.config_search import walk
from ...training.findings import report
from .cfg_options import KNOWN_KEYS, apply_options, check_top_level_names
from .loaders import drop_worker_settings
from .model_check import check_backbones
from .notes import note
from .old_config import find_old_format, find_unread_keys


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, apply the command line to it, and run all checks that need nothing to be built.

    Set ``args.config`` to the path of the config, if it was the name of one of ours.

    Raises:
        UsageError: the config is missing or broken, an option or file does not exist, the work dir cannot be written,
            RMT is not imported, or a neck or head does not fit the backbone.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    force_safe_loading()
    args.config = find_config(args.config)
    cfg = read_config(args.config)
    # Set it before the options, as the libraries' own tools do.
    cfg.launcher = args.launcher
    apply_options(cfg, args.cfg_options)
    drop_worker_settings(cfg)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    _check_work_dir(cfg.work_dir)
    check_backbones(cfg, args.config)
    return cfg


def find_config(name: str) -> str:
    """Return the path of a config file, given its path or the name of one of our configs.

    Raises:
        UsageError: there is neither; the message names the closest of our configs.
    """
    if osp.isfile(name):
        return name
    try:
        path = Path(get_config_path(name))
    except FileNotFoundError as error:
        hint = str(error).rsplit(': ', 1)[-1]
        raise UsageError(f'config {name} does not exist, and is not the name of a config of rmt_mm: {hint}') from error
    # The folders in the given name must match: configs in different folders may have the same name.
    given = Path(name).parts
    if path.parts[-len(given) :] not in (given, (*given[:-1], f'{given[-1]}.py')):
        raise UsageError(f'config {name} does not exist; rmt_mm has one of this name: {path}.')
    return str(path)


def read_config(path: str) -> Config:
    """Read a config file.

    Raises:
        UsageError: it cannot be read, is one of mmdet 2 or mmseg 0, has no model, or has a misspelt top-level key.
    """
    try:
        # It is a program, and may raise any error.
        with as_sentence(UsageError, f'config {path} cannot be read', StopIteration, yaml.YAMLError):
            cfg = Config.fromfile(path)
    except UsageError:
        report(find_old_format(path), UsageError)
        raise
    report(find_old_format(path, cfg), UsageError)
    if not isinstance(cfg.get('model'), dict):
        raise UsageError(f'config {path} has no model.')
    check_top_level_names(cfg, path)
    for text in find_unread_keys(path, cfg):
        note(text)
    for where, key, _ in walk(cfg._cfg_dict):
        parent = where.rpartition('.')[0]
        # Other keys are variables of a base, whose _delete_ counts where a config inserts them, such as `mini`.
        if key == '_delete_' and parent.split('.')[0] in KNOWN_KEYS:
            note(f'{parent} of config {path} has _delete_, but no base config sets {parent}: remove _delete_.')
    return cfg


def _check_work_dir(work_dir: str) -> None:
    try:
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UsageError(
            f'work dir {work_dir} cannot be written ({error.strerror}): name another one with --work-dir.'
        ) from error
