"""Check that the neck and heads around an RMT backbone accept its outputs, before a model is built."""

import itertools
import math
import sys
from logging import WARNING
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mmengine.config import Config

from ...arch import Arch, resolve_arch, resolve_out_indices
from ...backbone import RMT
from ...errors import UsageError
from ...training.config_search import find_dicts, walk
from ...training.findings import Finding, report
from .neck_check import SIDES, Features, NeckError, run_neck
from .notes import note
from .old_config import find_old_arguments, old_name
from .types import find_classes, find_parameters, is_of_library, library, type_name

IMPORT_LINE = "custom_imports = dict(imports=['rmt_mm'], allow_failed_imports=False)"
# mmpretrain's heads that take vectors, (B, C).
VECTOR_HEADS = ('LinearClsHead', 'StackedLinearClsHead', 'ArcFaceClsHead', 'MultiLabelLinearClsHead')
# Heads of mmdet and mmseg whose in_channels lists all inputs.
QUERY_HEADS = ('MaskFormerHead', 'Mask2FormerHead')
# Detectors of mmdet that use only the last feature map.
LAST_OUTPUT_MODELS = ('DETR', 'ConditionalDETR', 'DABDETR')
# The keys in a detector of mmdet's heads that predict at every pixel of every feature map.
DENSE_HEADS = ('bbox_head', 'rpn_head', 'panoptic_head')
# Arguments in which such a head states the strides of its input maps.
GENERATORS = ('anchor_generator', 'prior_generator', 'square_anchor_generator', 'approx_anchor_generator')
STRIDE_KEYS = ('point_strides', 'featmap_strides', 'strides')


class Variant(NamedTuple):
    """The settings of a model's backbone and neck, as given or as a variant to try."""

    stages: Tuple[int, ...]  # out_indices
    neck: Any  # the neck's config, or None

    @property
    def first(self) -> dict:
        """The part of the neck that takes the outputs of the backbone; empty without a neck."""
        return self.neck[0] if isinstance(self.neck, (list, tuple)) else self.neck or {}


class Problem(NamedTuple):
    """A disagreement between the backbone, the neck and a head."""

    text: str
    key: str  # the setting in question, such as 'bbox_head.anchor_generator.strides'
    value: Any  # the value that would fit the present outputs, or None


def check_backbones(cfg: Config, path: str) -> None:
    """Check every model of ``cfg`` whose backbone is RMT, and print notes.

    Raises:
        UsageError: the config does not import RMT, RMT refuses an argument, or a neck or head does not accept its
            outputs.
    """
    report(find_problems(cfg, path), UsageError, note)


def find_problems(cfg: Config, path: str) -> Iterator[Finding]:
    """Find what :func:`check_backbones` raises; with several processes, note unused outputs."""
    scope = library(cfg)
    places = {id(value): where for where, _, value in walk(cfg._cfg_dict)}
    models = list(find_dicts(cfg.get('model', {}), lambda d: isinstance(d.get('backbone'), dict)))
    for model in models:
        if old_name(model['backbone'].get('type')):
            yield from find_old_arguments(model['backbone'], f'{places.get(id(model), "model")}.backbone')
    models = [model for model in models if is_rmt(model['backbone'].get('type'))]
    if models:
        yield from _check_import(cfg, path, [model['backbone']['type'] for model in models])
    for model in models:
        where = places.get(id(model), 'model')
        yield from find_old_arguments(model['backbone'], f'{where}.backbone')
        yield from check_model(model, scope, where, several_processes=cfg.get('launcher') != 'none')


def is_rmt(kind: Any) -> bool:
    """Tell whether ``type=kind`` is our backbone, or a class derived from it."""
    if isinstance(kind, type):
        return issubclass(kind, RMT)
    return type_name(kind) == 'RMT' and (str(kind).count('.') < 2 or str(kind).startswith('rmt_mm.'))


def _check_import(cfg: Config, path: str, kinds: list) -> Iterator[Finding]:
    if all(isinstance(kind, type) or kind.startswith('rmt_mm.') for kind in kinds):
        return
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    if not imports:
        yield Finding(f"config {path} uses type='RMT' but does not import it: add the line {IMPORT_LINE}")
    for name in imports:
        values = vars(sys.modules[name]).values() if name in sys.modules else ()
        origins = [name, *(str(getattr(v, '__module__', None) or getattr(v, '__name__', '')) for v in values)]
        if any(origin.split('.')[0] == 'rmt_mm' for origin in origins):
            return
    yield Finding(
        f"config {path} uses type='RMT', and its custom_imports ({', '.join(imports)}) do not name rmt_mm: if "
        f'none of them imports it, other tools will not know RMT; then add the line {IMPORT_LINE}',
        WARNING,
    )


def check_model(model: dict, scope: str, where: str = 'model', several_processes: bool = False) -> Iterator[Finding]:
    """Find a part of a model that does not fit, and what to set.

    Args:
        model (dict): the model's config, with an RMT as ``backbone``.
        scope (str): its library: 'mmdet', 'mmseg' or 'mmpretrain'.
        where (str): the path of the model in the config, for messages. Default 'model'.
        several_processes (bool): note outputs that no neck or head uses. Default False.
    """
    backbone = model['backbone']
    try:
        arch = resolve_arch(backbone.get('arch', 'tiny'), backbone.get('arch_options'))
        stages = resolve_out_indices(backbone.get('out_indices'), len(arch.depths))
    except (ValueError, TypeError) as error:
        yield Finding(f'{where}.backbone: {error}')
        return
    if scope == 'mmpretrain' and not type_name(model.get('type')).endswith('Classifier'):
        return  # a self-supervised model passes more than the outputs of its backbone to its neck
    given = Variant(stages, model.get('neck'))
    outs = _features(arch, stages)
    used = [[i] for i in range(len(stages))]
    problems = []
    if given.neck is not None:
        try:
            found = run_neck(given.neck, outs, scope, trace=several_processes)
        except NeckError as error:
            problems = [_describe_neck(backbone, given, outs, error)]
        else:
            if found is None:
                return
            outs, used = found
    problems = problems or list(_check_heads(model, given, outs, scope))
    if problems:
        first = problems[0]
        advice = _advise(model, arch, given, scope, where, first)
        if advice is None:  # a neck that fails on all outputs may need a GPU, or another backbone
            yield Finding(f'{where}.{first.text}; it could not be found out which would fit.', WARNING)
        else:
            yield Finding(f'{where}.{first.text}: set {advice}.')
    elif several_processes:
        needed = {i for k in _find_taken(model, outs, scope) for i in used[k]}
        yield from _find_unused(model, arch, given, needed, where)


def _features(arch: Arch, stages: Sequence[int]) -> Features:
    return Features([arch.embed_dims[i] for i in stages], [arch.strides()[i] for i in stages])


def _describe_neck(backbone: dict, given: Variant, outs: Features, error: Exception) -> Problem:
    arch = backbone.get('arch', 'tiny')
    size = repr(arch) if isinstance(arch, str) else 'of this size'
    what = f'the outputs {list(given.stages)} of RMT {size} have {outs.channels} channels'
    wanted, kind = given.first.get('in_channels'), type_name(given.first.get('type'))
    if wanted is not None:
        return Problem(f'neck.in_channels is {wanted}, but {what}', 'neck.in_channels', None)
    return Problem(
        f'neck ({kind}) does not take its input ({error}): {what} at strides {outs.strides}',
        'neck',
        None,
    )


def _check_heads(model: dict, given: Variant, outs: Features, scope: str) -> Iterator[Problem]:
    """Yield the problems of heads whose settings do not match their inputs."""
    source = f'the outputs {list(given.stages)} of RMT' if given.neck is None else 'the outputs of the neck'
    for name, head in _heads(model):
        if not is_of_library(head.get('type'), scope):
            continue
        kind, channels = type_name(head.get('type')), head.get('in_channels')
        if scope == 'mmseg' and kind not in QUERY_HEADS:
            yield from _check_in_index(name, head, given, outs, source)
        elif kind in QUERY_HEADS and list(channels or outs.channels) != outs.channels:
            yield Problem(
                f'{name}.in_channels is {channels}, but {source} have {outs.channels} channels',
                f'{name}.in_channels',
                outs.channels,
            )
        elif name == 'head' and kind in VECTOR_HEADS and outs.strides[-1]:
            yield Problem(
                f'{name} ({kind}) takes vectors, but {source} are maps', 'neck', dict(type='GlobalAveragePooling')
            )
        elif name == 'head' and kind.startswith('RMT') or kind in VECTOR_HEADS:
            if isinstance(channels, int) and channels != outs.channels[-1]:
                yield Problem(
                    f'{name}.in_channels is {channels}, but the last of {source} has {outs.channels[-1]} channels',
                    f'{name}.in_channels',
                    outs.channels[-1],
                )
        elif scope == 'mmdet' and given.neck is None and name in DENSE_HEADS and isinstance(channels, int):
            if len(set(outs.channels)) > 1 or channels != outs.channels[0]:
                yield Problem(
                    f'{name}.in_channels is {channels}, but {source} have {outs.channels} channels',
                    f'{name}.in_channels',
                    outs.channels[0] if len(outs.channels) == 1 else None,
                )
        if scope != 'mmpretrain' and (name in DENSE_HEADS or kind == 'Mask2FormerHead') and kind != 'MaskFormerHead':
            key, strides = read_strides(head, scope)
            if strides and not same_strides(strides, outs.strides):
                yield Problem(
                    f'{name}.{key} is {strides}, but {source} are {len(outs.strides)} with strides {outs.strides}',
                    f'{name}.{key}',
                    outs.strides,
                )
    if scope == 'mmdet':
        yield from _check_detector(model, outs, scope, source)


def _heads(model: dict) -> Iterator[Tuple[str, dict]]:
    """Yield the heads of a model with their paths below it."""
    for key, value in model.items():
        if key == 'head' or key.endswith('_head'):
            if isinstance(value, (list, tuple)):
                yield from ((f'{key}.{i}', head) for i, head in enumerate(value) if isinstance(head, dict))
            elif isinstance(value, dict):
                yield key, value


def _check_in_index(name: str, head: dict, given: Variant, outs: Features, source: str) -> Iterator[Problem]:
    """Check a head of mmseg, which selects its inputs by ``in_index``."""
    channels, index = head.get('in_channels'), head.get('in_index', -1)
    if isinstance(channels, (list, tuple)) != isinstance(index, (list, tuple)):
        return  # mmseg raises its own error, or the head reads them in another way
    indices = list(index) if isinstance(index, (list, tuple)) else [index]
    size = len(outs.channels)
    if not all(isinstance(i, int) and -size <= i < size for i in indices):
        yield Problem(f'{name}.in_index is {index}, but {source} are {size}', f'{name}.in_index', None)
        return
    chosen = [outs.channels[i] for i in indices]
    chosen = chosen if isinstance(index, (list, tuple)) else chosen[0]
    if channels is not None and channels != (tuple(chosen) if isinstance(channels, tuple) else chosen):
        yield Problem(
            f'{name}.in_channels is {channels}, but {source} have {outs.channels} channels, and '
            f'in_index={index} selects {chosen}',
            f'{name}.in_channels',
            chosen,
        )


def _check_detector(model: dict, outs: Features, scope: str, source: str) -> Iterator[Problem]:
    levels = _read_argument(model, 'num_feature_levels', scope)
    if isinstance(levels, int) and levels != len(outs.strides):
        yield Problem(
            f'num_feature_levels is {levels}, but {source} are {len(outs.strides)}',
            'num_feature_levels',
            len(outs.strides),
        )
    for path, _, extractor in walk(model.get('roi_head') or {}, 'roi_head'):
        # The extractor of a semantic branch reads the map of that branch; others read the first outputs of the neck.
        strides = extractor.get('featmap_strides') if isinstance(extractor, dict) else None
        if strides and 'semantic' not in path and not same_strides(strides, outs.strides[: len(strides)]):
            yield Problem(
                f'{path}.featmap_strides is {list(strides)}, but {source} have strides {outs.strides}',
                f'{path}.featmap_strides',
                None,
            )


def read_strides(head: dict, scope: str) -> Tuple[str, Optional[list]]:
    """Return the key in which a dense head states the strides of its inputs, and the strides; '' and None without."""
    keys = (*GENERATORS, *STRIDE_KEYS)
    for key in (*(key for key in keys if key in head), *keys):
        value = _read_argument(head, key, scope)
        path, strides = (f'{key}.strides', value.get('strides')) if isinstance(value, dict) else (key, value)
        if isinstance(strides, (list, tuple)):
            return path, list(strides)
    return '', None


def _read_argument(node: dict, key: str, scope: str) -> Any:
    """Return an argument of the object that a dict builds: as given, or the default of its class."""
    if key in node:
        return node[key]
    for cls in find_classes(node.get('type'), scope):
        parameter = find_parameters(cls).get(key)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return None


def same_strides(stated: Sequence, actual: Sequence[int]) -> bool:
    """Compare strides as powers of 2 (YOLACT states 550 / 69 for 8), and skip those far from a power of 2 (SSD's 300).

    All strides from ``SIDES[0]`` up count as equal: in :func:`run_neck` their maps have one pixel.
    """
    largest = round(math.log2(SIDES[0]))
    if len(stated) != len(actual):
        return False
    for a, b in zip(stated, actual):
        a = math.log2(a[0] if isinstance(a, (list, tuple)) else a)
        if abs(a - round(a)) < 0.25 and min(round(a), largest) != min(round(math.log2(b)), largest):
            return False
    return True


def _advise(model: dict, arch: Arch, given: Variant, scope: str, where: str, problem: Problem) -> Optional[str]:
    """Return the settings to change: the first choice of outputs that neck and heads accept, or the problem's own key.

    Return None if the neck ran with no choice of outputs, so that the outputs may not be the cause.
    """
    if problem.key == 'neck' and problem.value:
        return f'{where}.neck={dict(problem.value)}'
    runs = given.neck is None
    count = len(arch.depths)
    for stages in [given.stages, *(tuple(range(i, count)) for i in range(count))]:
        for variant in _variants(Variant(stages, given.neck), arch):
            outs = _features(arch, stages)
            if variant.neck is not None:
                try:
                    found = run_neck(variant.neck, outs, scope)
                except NeckError:
                    continue
                if found is None:
                    return None
                runs, outs = True, found[0]
            if not any(True for _ in _check_heads(model, variant, outs, scope)):
                return ' and '.join(_differences(variant, given, where))
    if not runs:
        return None
    if problem.value is not None:
        return f'{where}.{problem.key}={problem.value}'
    return f'{where}.backbone.out_indices to the outputs that are wanted, and {where}.{problem.key} to match'


def _variants(given: Variant, arch: Arch) -> Iterator[Variant]:
    """Yield a neck with the channels of ``given.stages``, finest or deepest first, and with and without start_level."""
    first, choices = given.first, {}
    if isinstance(first.get('in_channels'), (list, tuple)):
        channels = type(first['in_channels'])(arch.embed_dims[i] for i in given.stages)
        choices['in_channels'] = [channels, channels[::-1]]
    elif 'in_channels' in first:
        choices['in_channels'] = [arch.embed_dims[given.stages[-1]]]
    if first.get('start_level'):
        choices['start_level'] = [first['start_level'], 0]
    for values in itertools.product(*choices.values()):
        changed = {**first, **dict(zip(choices, values))}
        neck = [changed, *given.neck[1:]] if isinstance(given.neck, (list, tuple)) else changed or None
        yield Variant(given.stages, neck)


def _differences(variant: Variant, given: Variant, where: str) -> Iterator[str]:
    if variant.stages != given.stages:
        yield f'{where}.backbone.out_indices={variant.stages}'
    first = '.0' if isinstance(given.neck, (list, tuple)) else ''
    for key in ('in_channels', 'start_level'):
        if variant.first.get(key) != given.first.get(key):
            yield f'{where}.neck{first}.{key}={variant.first[key]}'


def _find_taken(model: dict, outs: Features, scope: str) -> List[int]:
    """Return the indices of the maps that the heads use."""
    size = len(outs.channels)
    if scope == 'mmpretrain' or type_name(model.get('type')) in LAST_OUTPUT_MODELS:
        return [size - 1]
    taken = set()
    for _, head in _heads(model):
        if scope != 'mmseg' or type_name(head.get('type')) in QUERY_HEADS:
            return list(range(size))
        index = head.get('in_index', -1)
        taken |= {i % size for i in (index if isinstance(index, (list, tuple)) else [index])}
    return sorted(taken)


def _find_unused(model: dict, arch: Arch, given: Variant, needed: set, where: str) -> Iterator[Finding]:
    unused = [given.stages[i] for i in range(len(given.stages)) if i not in needed]
    if not unused or not needed:
        return
    kept = sorted(needed)
    stages = tuple(given.stages[i] for i in kept)
    settings = [f'{where}.backbone.out_indices={stages}']
    first = given.first
    if isinstance(first.get('in_channels'), (list, tuple)):
        settings.append(f'{where}.neck.in_channels={[arch.embed_dims[i] for i in stages]}')
        if first.get('start_level'):
            settings.append(f'{where}.neck.start_level={max(0, first["start_level"] - kept[0])}')
    elif not first:
        for name, head in _heads(model):
            index = head.get('in_index')
            if isinstance(index, (list, tuple)):
                settings.append(f'{where}.{name}.in_index={[kept.index(i % len(given.stages)) for i in index]}')
            elif isinstance(index, int) and index >= 0:
                settings.append(f'{where}.{name}.in_index={kept.index(index)}')
    yield Finding(
        f'nobody uses the outputs {unused} of RMT ({where}.backbone); their parameters learn nothing. Set '
        f'{" and ".join(settings)}.',
        WARNING,
    )
