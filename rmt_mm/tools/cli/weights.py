"""Choose and check the checkpoint that training and testing start from, and report which tensors it lacks."""

import os.path as osp
import re
from typing import Any, Iterator, List, Optional, Tuple

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ...backbone import RMT
from ...checkpoints.loading import COPIES, check_checkpoint_file, is_pretrained
from ...checkpoints.state_dicts import is_marked_deployed, list_some
from ...errors import CheckpointError, UsageError
from .model_check import is_rmt
from .resuming import find_newest_whole, tell


def choose_checkpoint(cfg: Config, resume: Optional[str] = None) -> None:
    """Set ``resume`` and ``load_from`` of a config by ``--resume`` and the work dir, and check the file.

    With nothing to resume, keep the config's own ``load_from``.

    Args:
        cfg (Config): a training config. ``resume=True`` in it without ``load_from`` means ``resume='auto'`` here.
        resume (str, optional): a checkpoint, or 'auto' for the newest whole one of the work dir. Default: the config's
            setting.

    Raises:
        UsageError: there is no such file.
        CheckpointError: from :func:`rmt_mm.checkpoints.loading.check_checkpoint_file`.
    """
    key = 'load_from'
    if resume == 'auto' or (resume is None and cfg.get('resume') and not cfg.get('load_from')):
        latest, passed = find_newest_whole(cfg)
        tell(latest, passed, cfg.work_dir, cfg.get('load_from'))
        if latest is not None:
            cfg.resume, cfg.load_from = True, latest
            return
        if not cfg.get('load_from'):
            cfg.resume = False
    elif resume is not None:
        cfg.resume, cfg.load_from, key = True, resume, '--resume'
    if cfg.get('load_from'):
        cfg.load_from = check_file(cfg.load_from, key, bool(cfg.get('resume')))


def check_file(path: str, key: str, resume: bool = False) -> str:
    """Check a checkpoint for mmengine, and return the path to pass to it; ``key`` is the setting that gave ``path``."""
    try:
        return check_checkpoint_file(path, resume)
    except FileNotFoundError as error:
        raise UsageError(f'{key}: {error}') from error
    except CheckpointError as error:
        raise error.at(key) from error


def check_init_cfgs(cfg: Config) -> None:
    """Check the local files in the ``init_cfg`` of the model and its parts.

    Raises:
        UsageError: a file does not exist.
        CheckpointError: a file that mmengine, not RMT, would load cannot be read safely, or must be converted.
    """
    for key, owner, init_cfg in _init_cfgs(cfg.get('model', {}), 'model'):
        path, key = init_cfg.get('checkpoint'), f'{key}.checkpoint'
        if not isinstance(path, str) or '://' in path:
            continue
        if not is_rmt(owner):
            check_file(path, key)
        elif not osp.exists(osp.expanduser(path)):
            raise UsageError(f'{key}: {path} does not exist.')


def _init_cfgs(node, key: str) -> Iterator[Tuple[str, object, dict]]:
    """Yield key, type of the module, and dict of every ``init_cfg`` of type Pretrained."""
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from _init_cfgs(child, f'{key}.{i}')
    elif isinstance(node, dict):
        for name, child in node.items():
            if name != 'init_cfg':
                yield from _init_cfgs(child, f'{key}.{name}')
                continue
            for init_cfg in child if isinstance(child, (list, tuple)) else [child]:
                if isinstance(init_cfg, dict) and 'type' in init_cfg and is_pretrained(init_cfg):
                    yield f'{key}.init_cfg', node.get('type'), init_cfg


def watch_loading(runner: Runner, checkpoint: Optional[str], use: str) -> None:
    """Make a runner report which tensors of its model a checkpoint lacks, when it loads the checkpoint.

    Args:
        runner (Runner): the runner, before it trains or tests.
        checkpoint (str, optional): the file, for messages. None: nothing is loaded.
        use (str): purpose of loading: 'start' (of a training), 'resume' or 'test'.
    """
    if checkpoint:
        runner.register_hook(LoadReportHook(checkpoint, use))


class LoadReportHook(Hook):
    """Report tensors of the model that a checkpoint lacks, and tensors of the checkpoint that the model lacks.

    The hook reads torch's own findings while torch loads, so that names which a model converts (old versions, another
    number of positions, teacher and student) count under their new names.

    Args:
        checkpoint (str): the file, for messages.
        use (str): 'start', 'resume' or 'test'.

    Raises:
        CheckpointError: for 'resume' and 'test', the checkpoint lacks parameters or buffers of the model, or has them
            in another shape. Missing counters of BatchNorm and second copies of a network (a teacher, a moving average)
            are accepted. For 'resume', it lacks the state of a training. RMT itself refuses a file that lacks a part of
            the backbone.
    """

    def __init__(self, checkpoint: str, use: str) -> None:
        self.checkpoint = checkpoint
        self.use = use
        self._handles: list = []
        self._errors: List[str] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Watch the loading that follows."""
        self.watch(runner.model, checkpoint)

    def watch(self, model: Any, checkpoint: dict) -> None:
        """Add hooks to a model, which report on every loading until :meth:`stop`; ``checkpoint`` is the whole file."""
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        if is_marked_deployed(checkpoint) and any(isinstance(m, RMT) and not m.deploy for m in model.modules()):
            raise CheckpointError(f'{self.checkpoint} is of the form for inference: set model.backbone.deploy=True.')
        if self.use == 'resume' and not {'epoch', 'iter'} <= set(checkpoint.get('meta') or ()):
            raise CheckpointError(
                f'{self.checkpoint} holds weights without the state of a training, which cannot be '
                'resumed: start from it by load_from.'
            )
        if self.use == 'resume' and 'optimizer' not in checkpoint:
            print_log(f'{self.checkpoint} has no state of the optimizer, which starts anew.', logger='current')
        _strip_compiled(checkpoint.get('state_dict', checkpoint), model)
        self._handles = [
            model._register_load_state_dict_pre_hook(self._before_load),
            model.register_load_state_dict_post_hook(self._after_load),
        ]

    def before_train(self, runner: Runner) -> None:
        """Remove the hooks: later loads are not checked."""
        self.stop()

    def before_test(self, runner: Runner) -> None:
        """Remove the hooks: later loads are not checked."""
        self.stop()

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before_load(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        self._errors = errors  # torch appends to it until the last module is loaded

    def _after_load(self, model: nn.Module, incompatible) -> None:
        missing = [name for name in incompatible.missing_keys if not name.endswith('num_batches_tracked')]
        copies = [name for name in missing if COPIES.search(name)]
        lacking = [name for name in missing if name not in copies]
        reshaped = [_describe(error) for error in self._errors]
        if self.use != 'start' and (lacking or reshaped):
            problems = [
                f'{len(names)} {what} ({list_some(names)})'
                for names, what in ((lacking, 'missing'), (reshaped, 'of another shape'))
                if names
            ]
            raise CheckpointError(
                f'{self.checkpoint} does not hold the whole model, whose other tensors would stay '
                f'random: {", ".join(problems)}. To {self.use}, every one is needed.'
            )
        lines = [
            f'{what}: {list_some(names)}'
            for names, what in (
                (lacking, 'missing, start anew'),
                (reshaped, 'of another shape, start anew'),
                (copies, 'missing, a second copy of a network'),
                (incompatible.unexpected_keys, 'unused'),
            )
            if names
        ]
        print_log(
            '\n  '.join([f'{self.checkpoint} loaded into the model', *(lines or ['complete, nothing unused'])]),
            logger='current',
        )


def _strip_compiled(state_dict: dict, model: nn.Module) -> None:
    """Remove torch.compile's ``_orig_mod.`` from the names of a state dict, if the model's names do not have it."""
    if any('_orig_mod.' in name for name, _ in model.named_parameters()):
        return
    for name in [name for name in state_dict if '_orig_mod.' in name]:
        state_dict[name.replace('_orig_mod.', '')] = state_dict.pop(name)


def _describe(error: str) -> str:
    """Shorten torch's message about a tensor's shape."""
    name = re.match(r'size mismatch for (\S+):', error)
    shapes = re.findall(r'\[[\d, ]*\]', error)
    if name is None or len(shapes) != 2:
        return error.splitlines()[0]
    return f'{name.group(1)} is {shapes[0]}, not {shapes[1]}'
