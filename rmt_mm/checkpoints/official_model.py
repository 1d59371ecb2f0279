"""Convert whole checkpoints of the authors to ours and back: identify a file, check that it is complete, report."""

import re
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

import torch

from ..arch import ARCHS, Arch
from ..errors import CheckpointError, printable
from ..version import __version__
from .official_names import (
    CLASSIFIER_HEAD,
    POSITION_BUFFER,
    check_position_buffers,
    convert_official_state_dict,
    is_official,
    official_backbone_shapes,
    position_buffers,
    revert_to_official_state_dict,
)
from .shapes import HEADS, Shapes, classifier
from .state_dicts import (
    StateDict,
    as_dict,
    differences,
    is_deployed,
    is_marked_deployed,
    list_some,
    measure,
    pick_state_dict,
    require_rmt,
)

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
        dims = self.arch.embed_dims
        return classifier(dims, classes, self.kind == 'token_label') if self.kind != 'dense' else {}

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
            return dict(model={**backbone, **self.head})
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


def parse_checkpoint(checkpoint: dict, weights: str = 'auto', task: str = 'auto') -> OfficialModel:
    """Identify what a checkpoint holds, and check that it is complete.

    Args:
        checkpoint (dict): contents of an official file, of one of this package, or a bare state dict of either.
        weights (str): ``'model'``, ``'model_ema'``, or ``'auto'``: raw weights if the file has both.
        task (str): ``'auto'`` for the file's own kind, that kind by name, or a part of it: ``'dense'`` drops every
            head, ``'classification'`` the auxiliary head of a token-label model.

    Returns:
        OfficialModel: its tensors under official names.

    Raises:
        CheckpointError: there is no state dict, it is not an RMT, it does not contain the kind ``task``, its size is
            unknown, or tensors are missing, unexpected or of the wrong shape.
    """
    weights, state_dict, notes = pick_state_dict(checkpoint, weights)
    meta = as_dict(checkpoint.get('meta'))
    if is_deployed(state_dict) or is_marked_deployed(checkpoint):
        raise CheckpointError(
            'it is of the form for inference (RMT.switch_to_deploy), from which no way leads back: '
            'take the checkpoint that it was made of.'
        )
    backbone, head = _split(state_dict)
    buffers = as_dict(checkpoint.get('official_only'))
    remembered = as_dict(meta.get('rmt_mm')).get('weights')  # written by to_ours
    weights = remembered if isinstance(remembered, str) else weights
    kind, model = _recognise_kind(head, task)
    size, arch = _recognise_size(backbone)
    backbone = {**buffers, **backbone}
    names = as_dict(meta.get('dataset_meta')) or {key: meta.get(key.upper()) for key in ('classes', 'palette')}
    names = {key: value for key, value in names.items() if value is not None}
    plain = {key: value for key, value in names.items() if isinstance(key, str) and _is_plain(value)}
    if len(plain) < len(names):
        notes.append(f'left out of dataset_meta: {list_some([str(name) for name in names if name not in plain])}')
    parsed = OfficialModel(kind, size, arch, model, weights, backbone, head, notes=notes, dataset_meta=plain)
    _reduce(parsed, task)
    _check(parsed)
    check_position_buffers(parsed.backbone, arch)
    return parsed


def _split(state_dict: StateDict) -> Tuple[StateDict, StateDict]:
    """Return the tensors of backbone and head, under official names without ``backbone.``."""
    ours = not is_official(state_dict)
    if ours:
        require_rmt(state_dict)
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in state_dict) else ''
    heads = re.compile(r'(?!backbone\.)') if prefix else CLASSIFIER_HEAD
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


def _recognise_size(backbone: StateDict) -> Tuple[str, Arch]:
    dims, depths = measure(backbone)
    for size, arch in ARCHS.items():
        if (arch.embed_dims, arch.depths) == (dims, depths):
            return size, arch
    raise CheckpointError(f'the model has {depths} blocks of {dims} channels, none of {", ".join(ARCHS)}.')


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
    wanted = official_backbone_shapes(arch, in_channels, out_norms=parsed.kind not in ('classification', 'token_label'))
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
