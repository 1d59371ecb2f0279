"""Load checkpoints, including the authors', into a backbone: completely, or with an error."""

import logging
import os.path as osp
import re
from typing import Dict, Iterable, List, Optional, Set, Tuple

from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from ..arch import ARCHS, Arch
from ..errors import CheckpointError
from .files import is_safetensors, local_copy, read_checkpoint
from .official_names import (
    CLASSIFIER_HEAD,
    check_position_buffers,
    convert_official_state_dict,
    is_backbone_tensor,
    is_official,
    is_ours,
    official_shapes,
)
from .shapes import BackboneSpec, Shapes, backbone_shapes
from .state_dicts import (
    differences,
    is_deployed,
    is_marked_deployed,
    list_some,
    measure,
    pick_state_dict,
    require_rmt,
)

# Names of the modules in which models keep a second copy of a network. A checkpoint of the network alone lacks them.
COPIES = re.compile(r'(^|\.)(teacher\w*|ema\w*|encoder_k|momentum\w*|target\w*)\.')


def is_pretrained(init_cfg: dict) -> bool:
    """Tell whether an ``init_cfg`` is mmengine's ``Pretrained``."""
    return init_cfg['type'] in ('Pretrained', PretrainedInit)


def is_address(path: str) -> bool:
    """Tell whether mmengine must resolve ``path``, such as ``torchvision://resnet50`` and ``s3://...``.

    This module resolves local paths and http(s) addresses itself.
    """
    return '://' in path and not path.startswith(('http://', 'https://'))


def load_pretrained(
    backbone: nn.Module,
    spec: BackboneSpec,
    checkpoint: str,
    prefix: Optional[str] = None,
    map_location: str = 'cpu',
) -> None:
    """Load a checkpoint into an RMT backbone, completely or with an error.

    It replaces mmengine's ``PretrainedInit`` and takes its arguments. Unlike ``PretrainedInit``, it converts the
    authors' files while loading, executes nothing that a file holds, and raises where ``PretrainedInit`` logs a warning
    and goes on with random weights. It logs what it loaded.

    Args:
        backbone (Module): the backbone.
        spec (BackboneSpec): what it demands of a checkpoint.
        checkpoint (str): a file (``~`` is the home folder), or an http(s), ``s3://`` or ``petrel://`` address. It may
            be an official checkpoint of any kind (of raw weights and their moving average, the raw weights are loaded),
            one of this package or of mmpretrain, mmdet or mmseg, or a bare state dict.
        prefix (str, optional): prefix of the backbone's names in the file. Default: ``backbone.`` if the file has it.
            Official classifiers have no prefix, and load with ``backbone.`` too.
        map_location (str): device to read the tensors to. Default ``'cpu'``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file cannot be read safely; it is not an RMT; it is an RMT of another size (the message
            names it); it is an ordinary file and the backbone has ``deploy=True``, or the reverse; tensors are missing,
            unexpected or of the wrong shape. Output norms may be missing or surplus: the log names them.
    """
    content = _read(checkpoint, map_location)
    try:
        state_dict, report = _backbone_state_dict(content, prefix)
        if is_official(state_dict):
            state_dict, notes = _convert_official(spec, state_dict)
            report += notes
        else:
            report += check_state_dict(spec, state_dict, deploy=is_marked_deployed(content))
    except CheckpointError as error:
        raise error.at(checkpoint) from error
    backbone.load_state_dict(state_dict, strict=False)
    print_log('\n  '.join([f'RMT loaded from {checkpoint}', *report]), logger='current')


def _read(checkpoint: str, map_location: str) -> dict:
    if not is_address(checkpoint):
        return read_checkpoint(local_copy(osp.expanduser(checkpoint)), map_location)
    if not re.match(r'(\S+:)?(s3|petrel)://', checkpoint):
        raise CheckpointError(
            f'{checkpoint} is a name in the lists of mmengine, which have no RMT: give a file, or an '
            'http(s), s3:// or petrel:// address.'
        )
    with get_local_path(checkpoint) as path:
        return read_checkpoint(path, map_location)


def _backbone_state_dict(content: dict, prefix: Optional[str]) -> Tuple[Dict[str, Tensor], List[str]]:
    """Return the tensors in a checkpoint below ``prefix``, or all if it has none there, and notes."""
    _, state_dict, notes = pick_state_dict(content)
    # torch.compile wraps the module that it compiles in one with this name.
    state_dict = {name.replace('_orig_mod.', ''): tensor for name, tensor in state_dict.items()}
    prefix = 'backbone.' if prefix is None else prefix.rstrip('.') + '.'
    below = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    if not below and prefix != 'backbone.':
        raise CheckpointError(f'none of its {len(state_dict)} tensors has a name that starts with {prefix!r}.')
    if not is_official(below or state_dict):
        require_rmt(below or state_dict)
    if below and len(below) < len(state_dict):
        notes = [f'used: the {len(below)} tensors named {prefix}*, of {len(state_dict)}', *notes]
    return below or state_dict, notes


def _convert_official(spec: BackboneSpec, state_dict: Dict[str, Tensor]) -> Tuple[Dict[str, Tensor], List[str]]:
    """Return the backbone's tensors of an official state dict under our names, checked, and notes."""
    part = {name: tensor for name, tensor in state_dict.items() if not CLASSIFIER_HEAD.match(name)}
    notes = ['an official checkpoint, converted']
    if len(part) < len(state_dict):
        head = [name for name in state_dict if name not in part]
        notes.append(f'unused: {list_some(head)}; no part of the backbone')
    try:
        converted = convert_official_state_dict(part)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    notes += check_state_dict(spec, converted, official=True)
    check_position_buffers(part, spec.arch)
    return converted, notes


def check_state_dict(
    spec: BackboneSpec, state_dict: Dict[str, Tensor], deploy: bool = False, official: bool = False
) -> List[str]:
    """Check that a state dict under our names holds exactly the tensors of a backbone.

    Args:
        spec (BackboneSpec): of the backbone. Modules that a subclass adds may be missing. If layers of RMT itself were
            replaced (LoRA, FSDP), nothing is checked.
        state_dict (dict[str, Tensor]): tensors under the backbone's names.
        deploy (bool): the file is marked as the form for inference; the names of most such files show it too. Default
            False.
        official (bool): the tensors are from an official file: errors use its names. Default False.

    Returns:
        list[str]: notes on output norms and added modules that either the backbone or the state dict lacks.

    Raises:
        CheckpointError: another tensor is missing or unexpected, a tensor has the wrong shape, or either the backbone
            or the state dict, but not both, is in the form for inference.
    """
    wanted = spec.shapes
    have = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    layers = [name for name in backbone_shapes(spec.arch) if re.match(r'stages\..*\.weight$', name)]
    if not wanted.keys() >= {'stem.0.weight', *layers}:
        return ['not checked: layers of RMT were replaced in the model']
    if not have.keys() <= wanted.keys():
        require_rmt(state_dict)
    _check_form(spec, have, deploy)

    norms, their_norms = _norms(wanted), _norms(have)
    notes = []
    if norms - their_norms:
        why = 'was trained without these outputs' if their_norms else 'as a classifier, has no output norms'
        notes.append(f'new: {", ".join(sorted(norms - their_norms))}; the file{"" if their_norms else ","} {why}')
    if their_norms - norms:
        notes.append(f'unused: {", ".join(sorted(their_norms - norms))}; the model does not have them')
    if 'mask_token' in have and 'mask_token' not in wanted:
        notes.append('unused: mask_token, of masked image modelling; the model takes no masks')
    added = [name for name in wanted if name not in have and not is_backbone_tensor(name)]
    if added:
        notes.append(f'new: {list_some(added)}; the model adds them to RMT')
    optional = {name for name in wanted if name.endswith('.num_batches_tracked')}.union(added)
    single = norms ^ their_norms
    if 'mask_token' not in wanted:
        single.add('mask_token')
    needed = {
        name: shape
        for name, shape in wanted.items()
        if name in have or not (name in optional or name.split('.')[0] in single)
    }
    given = {name: shape for name, shape in have.items() if name.split('.')[0] not in single}
    problems = differences(official_shapes(needed), official_shapes(given)) if official else differences(needed, given)
    if not problems:
        return notes
    stem, our_stem = have.get('stem.0.weight', ()), wanted['stem.0.weight']
    if len(stem) == 4 and stem[1] != our_stem[1] and (stem[0], *stem[2:]) == (our_stem[0], *our_stem[2:]):
        raise CheckpointError(
            f'its stem is for images of {stem[1]} channels, and that of the model for {our_stem[1]} (in_channels).',
            'in_channels',
            channels=our_stem[1],
        )
    raise CheckpointError(
        f'its tensors are not those of the model{_sizes(spec.arch, state_dict)}: {", ".join(problems)}.'
    )


def _norms(names: Iterable[str]) -> Set[str]:
    """Return the output norms that have tensors, such as ``norm3``."""
    return {name.split('.')[0] for name in names if re.match(r'norm\d+\.', name)}


def _check_form(spec: BackboneSpec, have: Shapes, marked: bool) -> None:
    """Raise CheckpointError if either the file or the model, but not both, is in the form for inference."""
    theirs, ours = is_deployed(have), is_deployed(spec.shapes)
    if (theirs and not ours) or (marked and not spec.deploy):
        raise CheckpointError(
            'it is of the form for inference (RMT.switch_to_deploy), and the model is not: set '
            'model.backbone.deploy=True for it.'
        )
    if ours and not theirs and 'stem.0.weight' in have:
        raise CheckpointError(
            'it is an ordinary checkpoint, and the model has the form for inference: leave '
            'model.backbone.deploy at False for it.'
        )


def _sizes(arch: Arch, state_dict: Dict[str, Tensor]) -> str:
    """Describe the sizes of file and model, if they differ."""
    dims, depths = measure(state_dict)
    if 0 in (*dims, *depths) or (dims, depths) == (arch.embed_dims, arch.depths):
        return ''
    names = {(preset.embed_dims, preset.depths): f'RMT {size}' for size, preset in ARCHS.items()}
    file = names.get((dims, depths), f'an RMT of {depths} blocks of {dims} channels')
    model = names.get((arch.embed_dims, arch.depths), 'of another size')
    return f' (the file is {file}, the model is {model})'


def require_whole_backbone(spec: BackboneSpec, state_dict: Dict[str, Tensor], prefix: str) -> None:
    """Raise CheckpointError if a state dict about to be loaded is not the whole of the backbone, or not of RMT.

    mmengine loads without ``strict``: it would log unexpected, missing and misshapen tensors, and go on.

    Args:
        spec (BackboneSpec): of the backbone.
        state_dict (dict[str, Tensor]): of the backbone or of a model around it.
        prefix (str): prefix of the backbone's names.
    """
    below = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    if is_official(below):
        raise CheckpointError(
            "this is an official RMT checkpoint: a backbone's init_cfg takes it as it is, and for "
            'anything else it must be converted.',
            'convert',
        )
    if not below and COPIES.search(prefix):
        print_log(
            f'The checkpoint has nothing below {prefix!r}: this copy of the network is not loaded.',
            logger='current',
            level=logging.WARNING,
        )
        return
    own = {name: tensor for name, tensor in below.items() if is_backbone_tensor(name)}
    if not below or (not own and not prefix and is_ours(below)):
        where = f'below {prefix!r}' if prefix else 'without a prefix'
        raise CheckpointError(
            f'the checkpoint has no tensor of RMT {where}, and nothing would be loaded: '
            "init_cfg=dict(type='Pretrained', checkpoint=...) of the backbone finds its part in the "
            'file of a whole model, and takes that of a backbone alone.'
        )
    try:
        # A backbone without a model around it ignores the other tensors of a file.
        check_state_dict(spec, below if prefix else own or below)
    except CheckpointError as error:
        hint = ''
        if own and own.keys() < spec.shapes.keys() and not is_deployed(own):
            hint = ' To load a part on purpose, complete it: {**model.state_dict(), **part}.'
        raise CheckpointError(
            f'checkpoint{" below " + repr(prefix) if prefix else ""}: {error}{hint}', error.remedy, **error.facts
        ) from error


def check_checkpoint_file(path: str, resume: bool = False) -> str:
    """Raise an error of one sentence if mmengine's runner could not load a file unchanged.

    For ``load_from`` and ``resume``, before anything is built. Names that mmengine resolves, such as
    ``torchvision://resnet50`` and ``s3://...``, are logged and not checked here.

    Args:
        path (str): a file (``~`` is the home folder) or address.
        resume (bool): whether training is to be resumed from it. Default False.

    Returns:
        str: the path to pass to mmengine: the local file, or for an address the downloaded one.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file cannot be read safely, or must be converted first.
    """
    if is_address(path):
        print_log(f'{path} is for mmengine to find: the file is checked when it is loaded.', logger='current')
        return path
    local = local_copy(osp.expanduser(path))
    content = read_checkpoint(local)  # with its data: on the meta device torch does not check sizes
    try:
        _, state_dict, notes = pick_state_dict(content)
    except CheckpointError as error:
        raise error.at(path) from error
    for note in notes:
        if note.startswith('warning'):
            print_log(f'{path}: {note}', logger='current', level=logging.WARNING)
    # mmengine writes meta['cfg']. It runs meta['config'], as a Python config, to look for gpu_ids in it.
    if resume and isinstance(content.get('meta'), dict) and 'config' in content['meta']:
        raise CheckpointError(
            f"{path} was not written by mmengine: to resume from it would run its meta['config'] as "
            'a program; start from its weights, with load_from and without resume.'
        )
    if is_official(state_dict):
        raise CheckpointError(f'{path} is an official RMT checkpoint, which must be converted first.', 'convert')
    with open(local, 'rb') as file:
        head = file.read(9)
    if is_safetensors(head):
        raise CheckpointError(
            f'{path}: mmengine reads no .safetensors, which must be converted to .pth first.', 'convert'
        )
    read_checkpoint(local, 'meta', allow_types=())  # as mmengine does, which refuses argparse.Namespace
    return local
