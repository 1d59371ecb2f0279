"""Compare the classes of a data set with the heads of a model, and with those of another data set."""

from logging import ERROR, WARNING
from typing import Any, Iterable, Iterator, List, Optional, Sequence

from torch import nn

from .findings import Finding

# Attributes in which mmdet, mmseg and mmpretrain keep the heads that predict the classes of the data set. num_classes
# of other heads counts something else: region proposals, stuff (semantic_head), identities (track_head), points.
HEADS = ('bbox_head', 'mask_head', 'panoptic_head', 'decode_head', 'auxiliary_head', 'head')
# Parts of a model with separate heads, whose classes may be those of another data set.
FOREIGN = ('backbone', 'neck', 'teacher', 'teacher_model', 'detector', 'reid')
# Heads in one of HEADS that predict something other than classes: proposals, boundaries, depth, words.
OTHER_TARGETS = ('RPNHead', 'AnchorFreeRPNHead', 'GARPNHead', 'STDCHead', 'VPDDepthHead', 'SideAdapterCLIPHead')


def metainfos(dataset) -> List[dict]:
    """Return the ``metainfo`` of a data set; mmdet's ConcatDataset has a list of them."""
    metainfo = getattr(dataset, 'metainfo', None) or {}
    return list(metainfo) if isinstance(metainfo, (list, tuple)) else [metainfo]


def class_names(dataset) -> Optional[Sequence[str]]:
    """Return the classes of a data set, or None if it names no classes or its parts name different classes."""
    found = [metainfo.get('classes') for metainfo in metainfos(dataset)]
    return found[0] if found and found[0] and all(classes == found[0] for classes in found) else None


def check_heads(model: nn.Module, dataset, loader: str) -> Iterator[Finding]:
    """Find heads whose ``num_classes`` or class weights do not fit the classes of a data set, and misnamed classes."""
    for metainfo in metainfos(dataset):
        yield from check_names_of_keys(metainfo, loader)
        text = metainfo.get('classes')
        if isinstance(text, str):
            yield Finding(
                f'{loader}: metainfo.classes is the text {text!r}, not a sequence of names, and no file '
                f'is called so: a single class is written ({text!r}, ).'
            )
    yield from _check_class_weights(model)
    yield from _check_single_outputs(model)
    classes = class_names(dataset)
    if classes is None or takes_text(model):
        return
    counts = {len(classes)}
    for key in ('thing_classes', 'stuff_classes'):  # panoptic: box and mask heads predict only the things
        counts.update(len(metainfo[key]) for metainfo in metainfos(dataset) if metainfo.get(key))
    wrong = []
    for name, module in model.named_modules():
        parts = [part for part in name.split('.') if not part.isdigit() and part != 'module']
        given = getattr(module, 'num_classes', None)
        if (
            parts
            and parts[-1] in HEADS
            and not set(parts) & set(FOREIGN)
            and type(given) is int
            and given not in counts
            and not _has_other_targets(module, given, len(classes))
        ):
            wrong.append((name.replace('module.', '', 1), given))
    for name, given in wrong:
        shown = ', '.join(map(str, classes[:5])) + (', ...' if len(classes) > 5 else '')
        text = (
            f'model.{name}.num_classes is {given}, but the data set of {loader} has {len(classes)} classes '
            f'({shown}): set the one in the model, or the other by dataset.metainfo.classes in {loader}.'
        )
        if 'auxiliary_head' in name and given <= 2 and len(wrong) == 1:
            yield Finding(f'{text} If this head predicts something else, such as boundaries, all is well.', WARNING)
        else:
            yield Finding(text)


def check_names_of_keys(metainfo: dict, loader: str) -> Iterator[Finding]:
    """Find ``CLASSES`` and ``PALETTE``, the keys of mmdet 2 and mmseg 0, which nothing reads now."""
    for key, value in metainfo.items():
        name = key.lower()
        # A data set that has default classes keeps them; with the same names under both keys nothing is lost.
        if name in ('classes', 'palette') and key != name and list(metainfo.get(name) or ()) != list(value):
            yield Finding(
                f'{loader}: nothing reads metainfo.{key}; the key is metainfo.{name}, in lower case.',
                ERROR if name == 'classes' else WARNING,
            )


def check_metric_classes(metrics: Iterable, dataset, loader: str) -> Iterator[Finding]:
    """Find metrics of label maps that cannot count: the data set names no classes, or a single one."""
    for metric in metrics:
        kinds = [cls.__name__ for cls in type(metric).__mro__]
        if not {'IoUMetric', 'SemSegMetric'}.intersection(kinds) or getattr(metric, 'format_only', False):
            continue
        for metainfo in metainfos(dataset):
            classes = metainfo.get('classes')
            if not classes:
                yield Finding(
                    f'{loader}: the data set names no classes, which {kinds[0]} needs: set metainfo=dict(classes='
                    f'(...)) in {loader}.dataset, with a name for each class of the model.'
                )
            elif len(classes) == 1:
                yield Finding(
                    f'{loader}: with the single class {classes[0]!r}, {kinds[0]} counts all pixels as this class: name '
                    f"the background too, as in metainfo=dict(classes=('background', {classes[0]!r}))."
                )


def _check_class_weights(model: nn.Module) -> Iterator[Finding]:
    """Find class weights of the losses of mmdet's and mmpretrain's heads that are not one for each output."""
    for name, loss in model.named_modules():
        weights: Any = getattr(loss, 'class_weight', None)
        parent, _, key = name.rpartition('.')
        given = getattr(model.get_submodule(parent), 'num_classes', None)
        if key not in ('loss_cls', 'loss_module') or type(given) is not int or not hasattr(weights, '__len__'):
            continue
        background = key == 'loss_cls' and not getattr(loss, 'use_sigmoid', False)
        if len(weights) not in (1, given + background):
            yield Finding(
                f'model.{name.replace("module.", "", 1)}.class_weight has {len(weights)} weights, but the head has '
                f'{given} classes{" and, as the last, no object" if background else ""}: give one weight for each.'
            )


def _check_single_outputs(model: nn.Module) -> Iterator[Finding]:
    """Find mmseg's and mmpretrain's heads of one output with a softmax over it, which is 1 whatever the model says."""
    for name, loss in model.named_modules():
        for key, outputs in (('loss_decode', 'out_channels'), ('loss_module', 'num_classes')):
            path, _, rest = name.partition(f'.{key}')
            if (
                path != name
                and type(loss).__name__ == 'CrossEntropyLoss'
                and not getattr(loss, 'use_sigmoid', False)
                and getattr(model.get_submodule(path), outputs, None) == 1
            ):
                place = f'model.{path.replace("module.", "", 1)}'
                sigmoid = f'{place}.{key}{rest}.use_sigmoid=True, or '
                yield Finding(
                    f'{place}.{outputs} is 1, and its loss is a softmax over this one output, which is 0 for the label '
                    f'0 and fails for others: set {sigmoid if outputs == "out_channels" else ""}{place}.{outputs}=2.'
                )


def check_topk(model: nn.Module, metrics: Iterable, evaluator: str) -> Iterator[Finding]:
    """Find mmpretrain's accuracies among more classes than the head of a model predicts."""
    head = getattr(getattr(model, 'module', model), HEADS[-1], None)
    classes = getattr(head, 'num_classes', None)
    if type(classes) is not int:
        return
    places = [(evaluator, metric) for metric in metrics if type(metric).__name__ == 'Accuracy']
    places += [('model.head', head)] if getattr(head, 'cal_acc', False) is True else []
    for place, counter in places:
        topk = getattr(counter, 'topk', None)
        if isinstance(topk, (list, tuple)) and topk and max(topk) > classes:
            fits = tuple(k for k in topk if k <= classes) or (1,)
            yield Finding(
                f'{place}.topk is {tuple(topk)}, but the model has {classes} classes (model.head.num_classes): set '
                f'topk={fits}.'
            )


def takes_text(model: nn.Module) -> bool:
    """Tell whether the classes are text input of the model, as in GLIP and Grounding DINO."""
    model = getattr(model, 'module', model)
    return hasattr(model, 'language_model') or hasattr(model, 'text_encoder')


def _has_other_targets(head: nn.Module, given: int, wanted: int) -> bool:
    return (
        any(cls.__name__ in OTHER_TARGETS for cls in type(head).__mro__)
        or getattr(head, 'class_agnostic', False) is True
        or getattr(head, 'out_channels', None) == given == 1
        and wanted <= 2
    )  # mmseg: one output for foreground or background


def check_same_classes(
    train: Optional[Sequence[str]], other: Optional[Sequence[str]], loader: str
) -> Iterator[Finding]:
    """Compare the classes of the training data with those that a trained model is evaluated on.

    A name with another label is an error: predictions of this class are compared with labels of another.
    """
    if not train or not other or list(train) == list(other):
        return
    moved = [label for label, name in enumerate(other) if name in train and name not in train[label : label + 1]]
    if moved:
        name = other[moved[0]]
        yield Finding(
            f'{loader} has classes of train_dataloader in another order: {name!r} is label {moved[0]} there, and '
            f'{list(train).index(name)} in training. Set metainfo.classes of both to the same names in the same order.'
        )
    elif len(train) == len(other):
        pairs = [f'{b!r} for {a!r}' for a, b in zip(train, other) if a != b]
        yield Finding(
            f'{loader} names {len(pairs)} classes otherwise than train_dataloader: {", ".join(pairs[:3])}.', WARNING
        )
