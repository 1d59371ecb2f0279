"""Find the checkpoint that a training is resumed from: the newest whole one of its work dir."""

import os.path as osp
import re
from pathlib import Path
from typing import List, Optional, Tuple

from mmengine.config import Config

from ...checkpoints.loading import check_checkpoint_file
from ...errors import CheckpointError, DamagedCheckpointError, printable

RECORD = 'last_checkpoint'  # the file in which mmengine's CheckpointHook notes the path of the last one
# What a training writes every few epochs or iterations. The files of the best scores cannot be resumed.
PERIODIC = re.compile(r'(?:epoch|iter)_(\d+)\.pth')


def find_newest_whole(cfg: Config) -> Tuple[Optional[str], List[str]]:
    """Return the newest whole checkpoint of the work dir, or None, and a text each on newer ones that were passed over.

    A training that is killed may leave an empty record, or a file that is cut off. The path in the record is absolute:
    in a work dir that was copied or moved, the file of the same name beside the record counts.

    Raises:
        CheckpointError: a file is whole, but cannot be resumed from. An older one would hide that.
    """
    record = Path(cfg.work_dir, RECORD)
    recorded, passed = _read(record)
    if '://' in recorded:
        return check_checkpoint_file(recorded, resume=True), passed
    for path in _newest_first(cfg, record, recorded):
        try:
            return check_checkpoint_file(str(path), resume=True), passed
        except (DamagedCheckpointError, FileNotFoundError) as error:
            passed.append(str(error))
        except CheckpointError as error:
            if str(path) != recorded:
                raise
            raise error.at(str(record)) from error
    return None, passed


def _read(record: Path) -> Tuple[str, List[str]]:
    """Return the path that a record holds, '' if none, and what is wrong with the record."""
    try:
        recorded = record.read_text(errors='replace').strip()
    except FileNotFoundError:
        return '', []
    if not recorded or not recorded.isprintable():
        return '', [f'{record} is {"damaged" if recorded else "empty"}: the training was killed while it was written.']
    return recorded, []


def _newest_first(cfg: Config, record: Path, recorded: str) -> List[Path]:
    """Return the checkpoints to try in their order."""
    folders = {record.parent}
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir'):
        folders.add(Path(hook['out_dir'], osp.basename(osp.normpath(cfg.work_dir))))
    names = PERIODIC
    if hook.get('filename_tmpl'):
        names = re.compile(re.escape(hook['filename_tmpl']).replace(r'\{\}', r'(\d+)'))
    numbers = {}
    for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        match = names.fullmatch(path.name)
        if match:
            numbers[path] = int(match.group(1))
    if not recorded:  # whole seconds: the times of a copy differ by less
        return sorted(numbers, key=lambda path: (int(path.stat().st_mtime), numbers[path]), reverse=True)
    last = Path(recorded)
    if osp.exists(record.parent / last.name):
        last = record.parent / last.name
    match = names.fullmatch(last.name)
    number = int(match.group(1)) if match else -1
    # A training that was killed before it wrote the record has left a newer file; an earlier training, an older one.
    written = record.stat().st_mtime
    others = [path for path in numbers if path.name != last.name]
    newer = [path for path in others if numbers[path] > number and path.stat().st_mtime >= written]
    older = [path for path in others if numbers[path] < number]
    newer, older = (sorted(paths, key=numbers.__getitem__, reverse=True) for paths in (newer, older))
    return [*newer, last, *older]


def tell(path: Optional[str], passed: List[str], work_dir: str, load_from: Optional[str]) -> None:
    """Print which checkpoint is resumed from, and which ones not and why."""
    for text in passed:
        print(f'Passed over: {printable(text)}')
    if path:
        print(f'Resuming from {printable(path)}.')
    else:
        start = f'with load_from={load_from}' if load_from else 'from nothing'
        print(f'Nothing to resume in {work_dir}: starting {start}.')
