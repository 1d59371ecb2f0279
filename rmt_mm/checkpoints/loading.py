"""Loading checkpoints into a backbone, the authors' own included, and never nothing of them."""
import re
from typing import Dict, List, Optional, Tuple

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from ..arch import ARCHS
from ..errors import CheckpointError
from .files import is_safetensors, local_copy, read_checkpoint
from .official import NO_NORMS, list_some, parse_checkpoint, pick_state_dict
from .official_names import is_official, is_ours

CONVERTER = 'tools/model_converters/rmt_to_mm.py'


def is_pretrained(init_cfg: dict) -> bool:
    """Tell whether an ``init_cfg`` is mmengine's ``Pretrained``."""
    return init_cfg['type'] in ('Pretrained', PretrainedInit)


def load_pretrained(backbone: nn.Module,
                    checkpoint: str,
                    prefix: Optional[str] = None,
                    map_location: str = 'cpu') -> None:
    """Load a checkpoint into an RMT backbone, completely or with an error.

    It stands in for mmengine's ``PretrainedInit``, with the same arguments, and differs in that it converts the
    authors' files as it loads them, executes nothing that a file holds, and raises where ``PretrainedInit`` logs a
    warning and goes on with random weights. What was loaded is logged.

    Args:
        backbone (RMT): the backbone.
        checkpoint (str): a file or URL: an official checkpoint of any kind (raw weights, where it also has their moving
            average), one of this package or of mmpretrain, mmdet or mmseg, a bare state dict.
        prefix (str, optional): what stands before the backbone's names in the file. By default ``backbone.`` where the
            file has it; for an official classifier it makes no difference.
        map_location (str): where the tensors are read to. Default ``'cpu'``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a file that cannot be read safely; not an RMT; an RMT of another size, which is named; tensors
            that are missing or of the wrong shape. Output norms may be missing, all together: classifiers have none.
    """
    content = read_checkpoint(local_copy(checkpoint), map_location)
    try:
        state_dict, report = _backbone_state_dict(backbone, content, prefix)
        report += check_state_dict(backbone, state_dict)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    backbone.load_state_dict(state_dict, strict=False)
    print_log('\n  '.join([f'RMT loaded from {checkpoint}', *report]), logger='current')


def _backbone_state_dict(backbone: nn.Module, content: dict,
                         prefix: Optional[str]) -> Tuple[Dict[str, Tensor], List[str]]:
    """Return the backbone's tensors in a checkpoint under our names, and a report."""
    _, state_dict, notes = pick_state_dict(content)
    prefix = 'backbone.' if prefix is None else prefix.rstrip('.') + '.'
    below = {name[len(prefix):]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    if not below and prefix != 'backbone.':
        raise CheckpointError(f'none of its {len(state_dict)} tensors has a name that starts with {prefix!r}.')
    if is_official(below or state_dict):
        sizes = ARCHS if backbone.arch in ARCHS.values() else {'custom': backbone.arch, **ARCHS}
        model = parse_checkpoint(dict(state_dict=below) if below else content, task='dense', sizes=sizes)
        model.missing.pop(NO_NORMS, None)  # for check_state_dict to say, if the model has any
        converted = model.to_ours()['state_dict']
        return ({name[len('backbone.'):]: tensor for name, tensor in converted.items()},
                ['an official checkpoint, converted', *model.report()])
    if not is_ours(below or state_dict):
        raise CheckpointError(f'it is not a checkpoint of RMT: it has {list_some(list(below or state_dict))}.')
    if below and len(below) < len(state_dict):
        notes = [f'used: the {len(below)} tensors named {prefix}*, of {len(state_dict)}', *notes]
    return below or state_dict, notes


def check_state_dict(backbone: nn.Module, state_dict: Dict[str, Tensor]) -> List[str]:
    """Check that a state dict under our names fits a backbone.

    Args:
        backbone (RMT): the backbone.
        state_dict (dict[str, Tensor]): tensors under its names.

    Returns:
        list[str]: notes on output norms that one of the two lacks.

    Raises:
        CheckpointError: anything else missing or unexpected, or a tensor of the wrong shape.
    """
    wanted, notes = _tensors(backbone), []
    check_shapes(backbone, state_dict)
    norms = {name for name in {*wanted, *state_dict} if name.startswith('norm')}
    missing = [n for n in wanted if n not in state_dict and not n.endswith('.num_batches_tracked')]
    if norms.isdisjoint(state_dict):
        new = sorted({name.split('.')[0] for name in norms})
        if new:
            notes.append(f'new: {", ".join(new)}; the file, as a classifier, has no output norms')
        missing = [name for name in missing if name not in norms]
    unexpected = [name for name in state_dict if name not in wanted]
    unused = sorted({name.split('.')[0] for name in unexpected if name in norms})
    if unused:
        notes.append(f'unused: {", ".join(unused)}; the model does not have them')
    unexpected = [name for name in unexpected if name not in norms]
    for names, what in ((missing, 'it lacks'), (unexpected, 'the model has no')):
        if names:
            raise CheckpointError(f'{what} {list_some(names)}{_sizes(backbone, state_dict)}.')
    return notes


def _tensors(backbone: nn.Module) -> Dict[str, Tensor]:
    return {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}


def check_shapes(backbone: nn.Module, state_dict: Dict[str, Tensor], prefix: str = '') -> None:
    """Raise CheckpointError if a tensor has another shape than the backbone's; the size of both is named."""
    for name, tensor in _tensors(backbone).items():
        given = state_dict.get(prefix + name)
        if given is None or given.shape == tensor.shape:
            continue
        sizes = _sizes(backbone, {n[len(prefix):]: t for n, t in state_dict.items() if n.startswith(prefix)})
        hint = ''
        if name == 'stem.0.weight' and given.shape[0] == tensor.shape[0]:
            hint = f'; convert it with {CONVERTER} --in-channels {tensor.shape[1]}'
        raise CheckpointError(f'{prefix}{name} has shape {tuple(given.shape)} in the file and {tuple(tensor.shape)} '
                              f'in the model{sizes}{hint}.')


def _sizes(backbone: nn.Module, state_dict: Dict[str, Tensor]) -> str:
    """Say of which size file and model are, if they differ."""
    blocks = {match[0] for match in (re.match(r'stages\.\d+\.\d+\.', name) for name in state_dict) if match}
    depths = tuple(sum(block.startswith(f'stages.{i}.') for block in blocks) for i in range(len(backbone.arch.depths)))
    norms = [state_dict.get(f'stages.{i}.0.norm1.weight') for i in range(len(depths))]
    dims = tuple(norm.numel() for norm in norms if norm is not None)
    names = {(arch.embed_dims, arch.depths): f'RMT {size}' for size, arch in ARCHS.items()}
    file = names.get((dims, depths), f'an RMT of {depths} blocks of {dims} channels')
    model = names.get((backbone.arch.embed_dims, backbone.arch.depths), 'of another size')
    return f' (the file is {file}, the model is {model})' if file != model else ''


def refuse_foreign(backbone: nn.Module, state_dict: Dict[str, Tensor], prefix: str) -> None:
    """Raise CheckpointError if a state dict about to be loaded has nothing for the backbone, or does not fit it.

    mmengine loads without ``strict``: it would log unexpected, missing and misshapen tensors, and go on.

    Args:
        backbone (RMT): the backbone.
        state_dict (dict[str, Tensor]): of the backbone or of a model around it.
        prefix (str): what stands before the backbone's names.
    """
    names = [name[len(prefix):] for name in state_dict if name.startswith(prefix)]
    if is_official(names):
        raise CheckpointError(f'this is an official RMT checkpoint: convert it with {CONVERTER} SRC DST.')
    if _tensors(backbone).keys().isdisjoint(names):
        where = f' below {prefix!r}' if prefix else ''
        raise CheckpointError(f'the checkpoint has no tensor of RMT{where}, so that nothing would be loaded: '
                              f'if it is an official one, convert it with {CONVERTER} SRC DST.')
    check_shapes(backbone, state_dict, prefix)


def check_checkpoint_file(path: str, resume: bool = False) -> None:
    """Raise if mmengine's runner could not load a file as it is, in one sentence.

    For ``load_from`` and ``resume``, before anything is built.

    Args:
        path (str): a file or URL.
        resume (bool): whether training is to be resumed from it. Default False.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a file that cannot be read safely, or that must be converted first.
    """
    local = local_copy(path)
    content = read_checkpoint(local)  # with its data: on the meta device, torch checks no sizes
    try:
        _, state_dict, _ = pick_state_dict(content)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
    # mmengine writes meta['cfg']. It runs meta['config'], as a Python config, to look for gpu_ids in it.
    if resume and isinstance(content.get('meta'), dict) and 'config' in content['meta']:
        raise CheckpointError(f"{path} was not written by mmengine: to resume from it would run its meta['config'] as "
                              'a program; start from its weights, with load_from and without resume.')
    if is_official(state_dict):
        raise CheckpointError(f'{path} is an official RMT checkpoint: convert it with {CONVERTER} {path} DST.pth.')
    with open(local, 'rb') as file:
        head = file.read(9)
    if is_safetensors(head):
        raise CheckpointError(f'{path}: mmengine reads no .safetensors; convert it with {CONVERTER} {path} DST.pth.')
    read_checkpoint(local, 'meta', allow_types=())  # as mmengine, which leaves no argparse.Namespace out
