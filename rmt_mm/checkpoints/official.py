"""Convert the authors' checkpoints to ours and back: identify a file, check that it is complete, and report on it."""

import os.path as osp
import re
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from ..arch import ARCHS, Arch
from ..errors import CheckpointError, printable
from ..version import __version__
from .official_heads import HEADS
from .official_names import (
    POSITION_BUFFER,
    Shapes,
    backbone_shapes,
    classifier_head_shapes,
    convert_official_state_dict,
    is_official,
    is_ours,
    position_buffers,
    revert_to_official_state_dict,
)

StateDict = Dict[str, Tensor]

# The kinds that each kind can be reduced to.
REDUCTIONS = {
    'classification': ('dense',),
    'token_label': ('classification', 'dense'),
    'dense': (),
    'detector': ('dense',),
    'segmentor': ('dense',),
}
TASKS = ('auto', *REDUCTIONS)
WEIGHTS = ('auto', 'model', 'model_ema')
NO_NORMS = 'a classifier has no output norms: those of a dense model start anew'
FEWER_NORMS = 'trained without these outputs: their norms start anew in a model that has them'
# A tensor name in a block, official or ours.
_BLOCK = re.compile(
    r'(?:layers\.(\d{1,3})\.blocks|stages\.(\d{1,3}))\.(\d{1,3})\.'
    r'((?:retention_layer_norm|norm1)\.weight$)?'
)


@dataclass
class OfficialModel:
    """The complete tensors of a checkpoint, under official names, and the facts for a report on them."""

    kind: str  # a key of REDUCTIONS
    size: str  # a name in ARCHS
    arch: Arch
    model: Optional[str]  # the detector or segmentor around the backbone: a name in HEADS
    weights: str  # the file's key of the state dict
    backbone: StateDict
    head: StateDict
    dropped: Dict[str, List[str]] = field(default_factory=dict)  # reason -> names
    missing: Dict[str, List[str]] = field(default_factory=dict)  # reason -> names
    notes: List[str] = field(default_factory=list)
    dataset_meta: dict = field(default_factory=dict)  # names and colours of classes, if the file has them

    def adapt_in_channels(self, channels: int) -> None:
        """Adapt the stem to another number of input channels, by the usual rules.

        For 1 channel, sum over the input channels (a grey image acts as one of three equal channels). Otherwise repeat
        the channels in turn, and scale them by old over new number.
        """
        name = 'patch_embed.proj.0.weight'
        weight = self.backbone[name]
        have = weight.shape[1]
        if channels == have:
            return
        if channels == 1:
            new = weight.sum(dim=1, keepdim=True)
            how = f'summed over its {have} input channels'
        else:
            new = weight[:, [i % have for i in range(channels)]] * (have / channels)
            how = f'its {have} input channels repeated to {channels} and scaled by {have}/{channels}'
        self.backbone[name] = new.to(weight.dtype)
        self.notes.append(f'adapted: the first convolution of the stem, {how}')

    def adapt_num_classes(self, classes: int) -> None:
        """Drop the tensors whose shape depends on the number of classes, so that the model initialises them.

        Raises:
            CheckpointError: the checkpoint is a backbone alone, which has no classes.
        """
        if self.kind == 'dense':
            raise CheckpointError('a backbone alone has no classes, so that no number of classes can be set.')
        have = self.num_classes
        if classes == have:
            return
        others = self.head_shapes(have + 1)
        tied = [name for name, tensor in self.head.items() if tuple(tensor.shape) != others[name]]
        for name in tied:
            del self.head[name]
        self.dropped[f'made for {have} classes, not {classes}: the model starts new ones'] = tied
        self.dataset_meta = {}

    @property
    def num_classes(self) -> int:
        """Number of classes, from the rows of a tensor; KeyError if the head lacks that tensor."""
        head = HEADS.get(self.model or '')
        tensor = self.head[head.class_tensor if head else 'head.weight']
        rows = tensor.shape[0] if tensor.dim() else 0
        return head.rows_to_classes(rows) if head else rows

    def head_shapes(self, classes: int) -> Shapes:
        """Return names and shapes of the tensors outside the backbone."""
        if self.model is not None:
            return HEADS[self.model].shapes(self.arch.embed_dims, classes)
        return classifier_head_shapes(self.arch, classes, self.kind == 'token_label') if self.kind != 'dense' else {}

    def to_ours(self, **meta) -> dict:
        """Return a checkpoint for mmpretrain, mmdet 3 or mmseg 1.

        Args:
            **meta: stored under ``meta['rmt_mm']``, next to arch, kind, weights and version.

        Returns:
            dict: ``state_dict``, ``meta``, and ``official_only``: tensors that conversion back needs.
        """
        backbone, only = dict(self.backbone), {}
        for name in self.backbone:
            # RetinaNet takes stages 2-4 alone, for which our backbone has no norm of stage 1.
            if POSITION_BUFFER.fullmatch(name) or (self.model == 'RetinaNet' and name.startswith('extra_norms.0.')):
                only[name] = backbone.pop(name)
        state_dict = {f'backbone.{name}': tensor for name, tensor in convert_official_state_dict(backbone).items()}
        state_dict.update(convert_official_state_dict(self.head) if self.model is None else self.head)
        described = dict(arch=self.size, kind=self.kind, model=self.model, weights=self.weights, version=__version__)
        new_meta = dict(rmt_mm={**described, **meta})
        if self.dataset_meta:
            new_meta['dataset_meta'] = self.dataset_meta
        return dict(state_dict=state_dict, meta=new_meta, official_only=only)

    def to_official(self) -> dict:
        """Return a checkpoint for the authors' code: under ``model``, or for mmdet 2 and mmseg 0 ``state_dict``."""
        backbone = {**position_buffers(self.arch), **self.backbone}
        if self.model is None:
            order = [*backbone_shapes(self.arch), *self.head]
            both = {**backbone, **self.head}
            return dict(model={name: both[name] for name in order if name in both})
        if self.model == 'RetinaNet':  # the authors' backbone has a norm of stage 1, ours has none
            dim = self.arch.embed_dims[0]
            backbone.setdefault('extra_norms.0.weight', torch.ones(dim))
            backbone.setdefault('extra_norms.0.bias', torch.zeros(dim))
        names = {key.upper(): value for key, value in self.dataset_meta.items()}
        return dict(state_dict={**{f'backbone.{name}': t for name, t in backbone.items()}, **self.head}, meta=names)

    def report(self) -> List[str]:
        """Return a short report, a line each: kind, arch, tensors used, dropped, missing, and notes."""
        dropped = sum(map(len, self.dropped.values()))
        used = len(self.backbone) + len(self.head)
        used -= sum(POSITION_BUFFER.fullmatch(name) is not None for name in self.backbone)
        lines = [
            f'kind: {self.kind}' + (f' ({self.model})' if self.model else ''),
            f'arch: {self.size}',
            f'weights: {printable(self.weights, 100)}',
            f'tensors used: {used}',
            f'dropped: {dropped}',
        ]
        lines += [f'  {list_some(names)}: {reason}' for reason, names in self.dropped.items()]
        lines.append(f'missing: {sum(map(len, self.missing.values()))}')
        lines += [f'  {list_some(names)}: {reason}' for reason, names in self.missing.items()]
        return lines + self.notes


def parse_checkpoint(
    checkpoint: dict, weights: str = 'auto', task: str = 'auto', sizes: Mapping[str, Arch] = ARCHS
) -> OfficialModel:
    """Identify what a checkpoint holds, and check that it is complete.

    Args:
        checkpoint (dict): contents of an official file, of one of this package, or a bare state dict of either.
        weights (str): ``'model'``, ``'model_ema'``, or ``'auto'``: raw weights if the file has both.
        task (str): ``'auto'`` for the file's own kind, that kind by name, or a part of it: ``'dense'`` drops every
            head, ``'classification'`` the auxiliary head of a token-label model.
        sizes (Mapping[str, Arch]): sizes that a file may have. Default: the published ones.

    Returns:
        OfficialModel: its tensors under official names.

    Raises:
        CheckpointError: there is no state dict, it is not an RMT, it does not contain the kind ``task``, its size is
            unknown, or tensors are missing, unexpected or of the wrong shape.
    """
    weights, state_dict, notes = pick_state_dict(checkpoint, weights)
    meta = _dict(checkpoint.get('meta'))
    if is_deployed(state_dict) or is_marked_deployed(checkpoint):
        raise CheckpointError(
            'it is of the form for inference (RMT.switch_to_deploy), from which no way leads back: '
            'take the checkpoint that it was made of.'
        )
    backbone, head = _split(state_dict)
    buffers = _dict(checkpoint.get('official_only'))
    remembered = _dict(meta.get('rmt_mm')).get('weights')  # written by to_ours
    weights = remembered if isinstance(remembered, str) else weights
    kind, model = _recognise_kind(head, task)
    size, arch = _recognise_size(backbone, sizes)
    backbone = {**buffers, **backbone}
    names = _dict(meta.get('dataset_meta')) or {key: meta.get(key.upper()) for key in ('classes', 'palette')}
    names = {key: value for key, value in names.items() if value is not None}
    plain = {key: value for key, value in names.items() if isinstance(key, str) and _is_plain(value)}
    if len(plain) < len(names):
        notes.append(f'left out of dataset_meta: {list_some([str(name) for name in names if name not in plain])}')
    parsed = OfficialModel(kind, size, arch, model, weights, backbone, head, notes=notes, dataset_meta=plain)
    _reduce(parsed, task)
    _check(parsed)
    _check_positions(parsed)
    return parsed


def pick_state_dict(checkpoint: dict, weights: str = 'auto') -> Tuple[str, StateDict, List[str]]:
    """Find the state dict in a checkpoint.

    Returns:
        tuple: its key in the checkpoint, its tensors without the ``module.`` of wrappers, and notes for the user.

    Raises:
        CheckpointError: there is none, or none under the key ``weights``.
    """
    groups = {key: value for key, value in checkpoint.items() if isinstance(value, dict)}
    notes = []
    if weights != 'auto':
        if weights not in groups:
            there = ', '.join(key for key in ('model', 'model_ema', 'state_dict') if key in groups)
            raise CheckpointError(
                f'the file has no {weights!r}; it has {there or "a bare state dict"}.', 'weights', weights='auto'
            )
        key: Optional[str] = weights
    else:
        key = next((key for key in ('state_dict', 'model', 'model_ema') if key in groups), None)
        if key == 'model' and 'model_ema' in groups:
            notes.append('note: these are the raw weights; the file has their moving average too, as model_ema')
    others = [name for name in checkpoint if name not in ('meta', 'official_only', 'model', 'model_ema', key)]
    if key and others:
        notes.append(f'left out: {list_some([str(name) for name in others], 6)}')
    if 'ema_state_dict' in groups:
        notes.append("note: mmengine's EMAHook stores the moving average as state_dict, which is what is used")
    state_dict = groups[key] if key else checkpoint
    odd = [name for name, value in state_dict.items() if not isinstance(value, Tensor) or not isinstance(name, str)]
    if odd or not state_dict:
        what = f'has entries that are not tensors ({list_some([str(name) for name in odd])})' if odd else 'is empty'
        raise CheckpointError(f'the file holds no state dict: {repr(key) if key else "it"} {what}.')
    common = osp.commonprefix(list(state_dict))
    wrappers = len(common) - len(re.sub(r'^(?:module\.)*', '', common))
    state_dict = {name[wrappers:]: tensor for name, tensor in state_dict.items()}
    return key or 'bare state dict', state_dict, notes


def _split(state_dict: StateDict) -> Tuple[StateDict, StateDict]:
    """Return the tensors of backbone and head, under official names without ``backbone.``."""
    ours = not is_official(state_dict)
    if ours:
        require_rmt(state_dict)
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in state_dict) else ''
    heads = re.compile(r'(?!backbone\.)' if prefix else r'(proj|norm|head|aux_head)\.')
    head = {name: tensor for name, tensor in state_dict.items() if heads.match(name)}
    backbone = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name not in head}
    try:
        if ours:
            backbone = revert_to_official_state_dict(backbone)
            if any(name.startswith('head.') for name in head):
                head = revert_to_official_state_dict(head)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return backbone, head


def require_rmt(state_dict: StateDict) -> None:
    """Raise CheckpointError if no tensor has a name of the blocks of :class:`rmt_mm.RMT`, after any prefix."""
    if not is_ours(state_dict):
        raise CheckpointError(
            f'this is not a checkpoint of RMT: none of its {len(state_dict)} tensors has such a name '
            f'(it has {list_some(list(state_dict))}).'
        )


def is_deployed(names: Iterable[str]) -> bool:
    """Tell by our names whether an RMT is in the form for inference: its BatchNorms are fused into the convolutions."""
    names = list(names)
    norms = any(re.search(r'(^|\.)(stem\.(1|4|7|10)|downsamples\.\d\.norm)\.', name) for name in names)
    return is_ours(names) and not norms and any(re.search(r'(^|\.)stem\.0\.weight$', name) for name in names)


def is_marked_deployed(checkpoint: dict) -> bool:
    """Tell whether a checkpoint is marked as the form for inference: with other norms the names do not show it."""
    return bool(_dict(_dict(checkpoint.get('meta')).get('rmt_mm')).get('deploy'))


def _recognise_kind(head: StateDict, task: str) -> Tuple[str, Optional[str]]:
    if not head:
        return 'dense', None
    tops = {name.split('.')[0] for name in head}
    if not tops.isdisjoint(('head', 'proj')):
        return ('token_label' if 'aux_head' in tops else 'classification'), None
    for model, description in HEADS.items():
        if any(name.startswith(description.mark) for name in head):
            return description.task, model
    if task == 'dense':
        return 'detector', None
    raise CheckpointError(
        f'the heads of this model are none of {", ".join(HEADS)} (it has {list_some(list(head))}); '
        "its backbone alone can be taken: task 'dense'.",
        'task',
        task='dense',
    )


def measure(state_dict: StateDict) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """Return channels and block counts of the stages of an RMT, by official names or ours; 0 if none are found."""
    dims: Dict[int, int] = {}
    depths: Dict[int, int] = {}
    for name, tensor in state_dict.items():
        match = _BLOCK.match(name)
        if match:
            stage, block = int(match.group(1) or match.group(2)), int(match.group(3))
            depths[stage] = max(depths.get(stage, 0), block + 1)
            if match.group(4):
                dims[stage] = tensor.numel()
    stages = range(max(depths, default=-1) + 1)
    return tuple(dims.get(stage, 0) for stage in stages), tuple(depths.get(stage, 0) for stage in stages)


def _recognise_size(backbone: StateDict, sizes: Mapping[str, Arch]) -> Tuple[str, Arch]:
    dims, depths = measure(backbone)
    for size, arch in sizes.items():
        if (arch.embed_dims, arch.depths) == (dims, depths):
            return size, arch
    raise CheckpointError(f'the model has {depths} blocks of {dims} channels, none of {", ".join(sizes)}.')


def differences(wanted: Shapes, have: Shapes) -> List[str]:
    """Return a text each on missing tensors, unexpected tensors and tensors of the wrong shape; empty if all fit."""
    missing = [name for name in wanted if name not in have]
    unexpected = [name for name in have if name not in wanted]
    wrong = [name for name in have if name in wanted and tuple(have[name]) != tuple(wanted[name])]
    found = [
        f'{len(names)} {what} ({list_some(names)})'
        for names, what in ((missing, 'missing'), (unexpected, 'unexpected'))
        if names
    ]
    if wrong:
        name = wrong[0]
        found.append(
            f'{len(wrong)} of the wrong shape ({list_some([name])} is {tuple(have[name])}, not {tuple(wanted[name])})'
        )
    return found


def _reduce(parsed: OfficialModel, task: str) -> None:
    """Drop the tensors that ``task`` does not need."""
    if task in ('auto', parsed.kind):
        return
    if task not in REDUCTIONS[parsed.kind]:
        raise CheckpointError(
            f'the file is of kind {parsed.kind}, not {task}: for it, the task is one of auto, '
            f'{", ".join((parsed.kind, *REDUCTIONS[parsed.kind]))}.'
        )
    unwanted = [name for name in parsed.head if task == 'dense' or name.startswith('aux_head.')]
    for name in unwanted:
        del parsed.head[name]
    if unwanted:
        parsed.dropped['no part of the backbone' if task == 'dense' else 'auxiliary head for token labels'] = unwanted
    parsed.kind, parsed.model = task, None


def _check(parsed: OfficialModel) -> None:
    """Raise CheckpointError if tensors are missing, unexpected or of the wrong shape."""
    arch, head = parsed.arch, parsed.head
    aux = head.get('aux_head.weight')
    if aux is not None and aux.shape[1:] == (1024,) != arch.embed_dims[-1:]:
        raise CheckpointError(
            f'the auxiliary head takes 1024 channels, where the released code has {arch.embed_dims[-1]}: a known '
            "mismatch between a released token-label model and its code. Task 'classification' leaves that head out; "
            'the logits are then those of the main head alone.',
            'task',
            task='classification',
        )
    absent = [
        i for i in range(len(arch.depths)) if not any(name.startswith(f'extra_norms.{i}.') for name in parsed.backbone)
    ]
    if parsed.kind == 'dense' and absent:
        parsed.missing[NO_NORMS if len(absent) == len(arch.depths) else FEWER_NORMS] = [f'norm{i}' for i in absent]
    elif parsed.model == 'RetinaNet' and 0 in absent:
        parsed.missing["RetinaNet's pyramid starts behind it: unused"] = ['norm0']
        absent = [0]
    else:
        absent = []
    stem = parsed.backbone.get('patch_embed.proj.0.weight')
    in_channels = stem.shape[1] if stem is not None and stem.dim() == 4 else 3
    wanted = backbone_shapes(arch, in_channels, out_norms=parsed.kind not in ('classification', 'token_label'))
    try:
        wanted.update(parsed.head_shapes(parsed.num_classes if parsed.kind != 'dense' else 0))
    except KeyError as error:
        raise CheckpointError(f'the file is incomplete: it has no {error.args[0]}.') from error
    have = {name: tuple(tensor.shape) for name, tensor in {**parsed.backbone, **head}.items()}

    # Buffers that the model computes, and counters that do not change results and that torch does not require either.
    optional = [
        name
        for name in wanted
        if name not in have and (POSITION_BUFFER.fullmatch(name) or name.endswith('.num_batches_tracked'))
    ]
    if optional:
        parsed.missing['computed by the model'] = optional
    optional += [f'extra_norms.{i}.{kind}' for i in absent for kind in ('weight', 'bias')]
    problems = differences({name: shape for name, shape in wanted.items() if name not in optional}, have)
    if problems:
        raise CheckpointError(
            f'the tensors are not those of a {parsed.model or parsed.kind} checkpoint of RMT '
            f'{parsed.size}: {", ".join(problems)}.'
        )

    buffers = [name for name in have if POSITION_BUFFER.fullmatch(name)]
    if buffers:
        parsed.dropped['position buffers, computed by the model'] = buffers


def _check_positions(parsed: OfficialModel) -> None:
    """Raise CheckpointError if the file was trained with another decay or rotation than we compute."""
    for name, ours in position_buffers(parsed.arch).items():
        theirs = parsed.backbone.get(name)
        # The tolerance admits files in half precision; another decay range differs by tens of per cent.
        if theirs is not None and not theirs.float().cpu().allclose(ours, rtol=5e-3, atol=1e-5):
            first, wanted = ([round(value, 4) for value in buffer.tolist()[:3]] for buffer in (theirs, ours))
            raise CheckpointError(
                f'{name} starts with {first}, and that of RMT {parsed.size} with {wanted}: the model '
                'was trained with another decay or rotation and would not work with this one.'
            )


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def _is_plain(value: object, depth: int = 4) -> bool:
    """Tell whether a value consists of types that JSON can hold, nested at most ``depth`` levels."""
    if isinstance(value, (list, tuple, dict)):
        keys, parts = (value.keys(), value.values()) if isinstance(value, dict) else ((), value)
        return (
            depth > 0
            and all(isinstance(key, (str, int)) for key in keys)
            and all(_is_plain(part, depth - 1) for part in parts)
        )
    return value is None or isinstance(value, (str, bool, int, float))


def list_some(names: List[str], count: int = 3) -> str:
    """Join the first names, shortened and escaped, since an untrusted file gives them; count the others."""
    first = [printable(name, 100) for name in names[:count]]
    return ', '.join(first) + (f' and {len(names) - count} more' if len(names) > count else '')
