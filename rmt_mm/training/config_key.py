"""Find the config key whose object raised an error while mmengine's Runner was built."""

import contextlib
import re
from typing import Any, Iterator, NamedTuple, Optional, Tuple

from mmengine.config import Config
from torch.utils.data import Dataset

from ..errors import FOREIGN_ERRORS, RMTError, UsageError, in_one_line
from .config_search import walk

# Functions of mmengine that build a part of a Runner, and the config key that each one builds. Those of loaders and
# evaluators serve three keys: their names begin with the split of the loop that is being built.
BUILDERS = {
    '_build_param_scheduler': 'param_scheduler',
    'build_dataloader': '{}_dataloader',
    'build_evaluator': '{}_evaluator',
    'build_log_processor': 'log_processor',
    'build_logger': 'log_level',
    'build_model': 'model',
    'build_optim_wrapper': 'optim_wrapper',
    'build_param_scheduler': 'param_scheduler',
    'build_strategy': 'strategy',
    'build_test_loop': 'test_cfg',
    'build_train_loop': 'train_cfg',
    'build_val_loop': 'val_cfg',
    'build_visualizer': 'visualizer',
    'register_custom_hooks': 'custom_hooks',
    'register_default_hooks': 'default_hooks',
    'scale_lr': 'auto_scale_lr',
    'set_randomness': 'randomness',
    'setup_env': 'env_cfg',
    'turn_on_activation_checkpointing': 'activation_checkpointing',
    'turn_on_efficient_conv_bn_eval': 'efficient_conv_bn_eval',
    'wrap_model': 'model_wrapper_cfg',
}
# Keys that name modules of the model to change. mmengine traces those of efficient_conv_bn_eval by torch.fx, which RMT
# does not allow.
SWITCHES = ('activation_checkpointing', 'efficient_conv_bn_eval')
# Arguments of data sets and loaders of mmdet 2 and mmseg 0, and what replaces them.
OLD_DATA_ARGUMENTS = {
    'ann_dir': 'data_prefix=dict(seg_map_path=...)',
    'img_dir': 'data_prefix=dict(img_path=...)',
    'img_prefix': 'data_prefix=dict(img=...)',
    'samples_per_gpu': 'batch_size',
    'workers_per_gpu': 'num_workers',
}
SCOPES = ('mmdet', 'mmseg', 'mmpretrain')


class Fault(NamedTuple):
    """The part of a config whose object could not be built."""

    key: str  # its path, such as 'optim_wrapper.optimizer'
    text: str  # one sentence: the key, what was wrong, and what to do
    reads_data: bool  # whether a data set raised the error, and not for one of its arguments


@contextlib.contextmanager
def naming_the_key(cfg: Config) -> Iterator[None]:
    """Raise UsageError with the config key for an error of a part that mmengine builds in the block.

    Other errors, such as those of an iteration, pass unchanged.
    """
    try:
        yield
    except RMTError:
        raise
    except FOREIGN_ERRORS as error:
        fault = find_fault(error, cfg)
        if fault is None:
            raise
        raise UsageError(fault.text) from error


def find_fault(error: BaseException, cfg: Config) -> Optional[Fault]:
    """Return the part of ``cfg`` that mmengine was building when ``error`` was raised, or None.

    The frames of the traceback hold the dicts that were built, the outermost first. They are copies of the config's.
    """
    key, kind, split, registry, reads_data, action = '', '', 'train', None, False, 'built'
    traceback = error.__traceback__
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        name, values = frame.f_code.co_name, frame.f_locals
        module = str(frame.f_globals.get('__name__'))
        if module.startswith('mmengine.') and name in BUILDERS:
            split = name.split('_')[1] if name.endswith('_loop') else split
            key, kind, reads_data = BUILDERS[name].format(split), '', False
        elif module == 'mmengine.registry.build_functions':
            registry = values.get('registry')
            found = _locate(values.get('cfg'), cfg, key, split)
            if found:
                key, kind, reads_data = *found, False
        elif module.startswith('mmengine.') and name == 'call_hook':
            # A hook passes its other arguments on, or uses a setting late; mmengine cuts off the frames below.
            hook = type(values.get('hook'))
            found = _locate(dict(type=hook), cfg, key, split)
            if found and (hook.__module__.startswith('mmengine.') or 'unexpected keyword' in str(error)):
                key, kind, action = *found, 'used'
        elif isinstance(values.get('self'), Dataset):
            reads_data = True
    # Arguments that are refused before the call has a frame; Python 3.9 leaves out the class.
    called = re.match(r'(?:\w*Runner\.)?(\w+)\(\) ', str(error))
    if not key and called:
        key = BUILDERS.get(called[1], '').format(split)
    if not key:
        return None
    where = f'{key} ({kind})' if kind else key
    argument = _describe_argument(error, key, where, registry)
    if argument:
        return Fault(key, argument, False)
    if key in SWITCHES:
        text = f'{key}={cfg.get(key)!r} cannot be used: {in_one_line(error)}; remove it, or name other modules.'
        return Fault(key, text, False)
    if isinstance(error, NotImplementedError) and key == 'optim_wrapper':
        text = (
            f'optim_wrapper.constructor={cfg.optim_wrapper.get("constructor")!r} does not know this backbone: for '
            "layer-wise rates of RMT write constructor='LayerDecayOptimWrapperConstructor' and paramwise_cfg=dict("
            "_delete_=True, layer_decay_rate=0.9); for one rate, constructor='DefaultOptimWrapperConstructor' and "
            'paramwise_cfg=None.'
        )
        return Fault(key, text, False)
    return Fault(key, f'{where} cannot be {action}: {in_one_line(error)}', reads_data)


def _locate(node: Any, cfg: Config, key: str, split: str) -> Optional[Tuple[str, str]]:
    """Return the path and the class of the dict of ``cfg`` that ``node`` was copied from."""
    if not isinstance(node, dict) or 'type' not in node:
        return None
    best: tuple = ()
    found = None
    for path, _, value in walk(cfg._cfg_dict):
        if isinstance(value, dict) and 'type' in value and _name(value['type']) == _name(node['type']):
            equal = sum(type(node.get(name)) is type(item) and node[name] == item for name, item in value.items())
            rank = (path == key or path.startswith(f'{key}.'), path.startswith(f'{split}_'), equal / len(value))
            if rank > best:
                best, found = rank, (path, _name(node['type']))
    return found


def _name(kind: Any) -> str:
    return getattr(kind, '__name__', str(kind)).rsplit('.', 1)[-1]


def _describe_argument(error: BaseException, key: str, where: str, registry: Any) -> str:
    """Describe a mistake in the arguments or in ``type``; '' for other errors."""
    text = str(error.args[0]) if error.args else ''
    refused = re.search(r"unexpected keyword argument '(\w+)'", text)
    if refused and refused[1] == '_delete_':
        return f'{where} has _delete_, but no base config sets {key}: remove _delete_.'
    inherited = f'; if it comes from a base config, write _delete_=True in {key}, which drops what the base sets there.'
    if any(part.isdigit() for part in key.split('.')):  # a config replaces the list of its base as a whole
        inherited = '.'
    if refused and refused[1] in OLD_DATA_ARGUMENTS:
        new = OLD_DATA_ARGUMENTS[refused[1]]
        return f'{where} does not take {refused[1]!r}, of mmdet 2 or mmseg 0: write {new}. See docs/old_configs.md.'
    if refused:
        return f'{where} does not take {refused[1]!r}: remove it{inherited}'
    if 'Only one of `type` or `by_epoch`' in text:
        return f'{key} has both type and by_epoch, which select the loop in two ways: remove one{inherited}'
    unknown = re.match(r'(\S+) is not in the (.+?) registry', text)
    if unknown:
        others = [scope for scope in SCOPES if _knows(registry, scope, unknown[1])]
        cure = (
            f'write {others[0]}.{unknown[1]}.'
            if others
            else 'correct the name, or import its module by custom_imports.'
        )
        return f"{key}: type={unknown[1]!r} is not in the registry {unknown[2]} of this config's library: {cure}"
    return ''


def _knows(registry: Any, scope: str, name: str) -> bool:
    """Tell whether another library has ``name`` in its registry of the same objects. Import the library."""
    while getattr(registry, 'parent', None) is not None:
        registry = registry.parent
    try:
        with registry.switch_scope_and_registry(scope) as other:
            return other.scope == scope and other.get(name) is not None
    except FOREIGN_ERRORS:  # it is not installed
        return False
