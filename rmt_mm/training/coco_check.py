"""Find entries of an annotation file that mmdet's CocoDataset would silently drop, misread, or crash on without naming.

CocoDataset reads boxes as [x, y, width, height] in pixels. It drops boxes below one pixel, outside their image or
without an area, annotations of unknown categories, and classes that are the name of no category.
"""

import difflib
import json
import os.path as osp
import shlex
import sys
from logging import ERROR, INFO, WARNING
from typing import Any, Dict, Generator, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import DataError, in_one_line
from .datasets import find_transform, is_on_disk, pick_evenly, reads_from_disk
from .findings import Finding
from .image_size import is_turned, read_image_size
from .mask_check import check_ignored_masks, check_masks, is_number


def read_json(path: str, where: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: the file is missing, cut off, or not JSON.
    """
    try:
        with open(path) as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        size = osp.getsize(path)
        what = (
            'is empty'
            if size == 0
            else 'ends too early: it was cut off'
            if error.pos >= len(error.doc.rstrip()) or 'Unterminated string' in error.msg
            else f'is not valid JSON: {error.msg}'
        )
        raise DataError(f'{where}: {path} {what} (line {error.lineno}, column {error.colno}; {size} bytes).') from error
    except UnicodeDecodeError as error:
        raise DataError(f'{where}: {path} is not a text file: {error.reason} at byte {error.start}.') from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise DataError(f'{where}: {path} cannot be read: {in_one_line(error)}.') from error
    except OSError as error:
        raise DataError(f'{where}: {path} cannot be read: {error.strerror}.') from error


class CocoCheck:
    """The check of a data set's annotation file, and of the sizes of some of its images.

    Args:
        dataset (mmdet.datasets.CocoDataset): a data set; it may be built with ``lazy_init=True``.
        where (str): the data loader that reads it, such as ``'train_dataloader'``.

    Attributes:
        images, categories, annotations (list[dict]): the parts of the file; empty before :meth:`run` has read it, and
            if the file is not on this machine.
        learnable (int | None): the number of boxes that a training learns from; None as long as it is unknown.
    """

    def __init__(self, dataset, where: str) -> None:
        self.dataset, self.path, self.where = dataset, dataset.ann_file, where
        self.classes = dataset.metainfo.get('classes')
        self.training = not dataset.test_mode  # the annotations are trained on; in a test, a file may have none
        self.images: List[dict] = []
        self.categories: List[dict] = []
        self.annotations: List[dict] = []
        self.learnable: Optional[int] = None

    @property
    def labels(self) -> Tuple[str, ...]:
        """The classes in the order of their labels: CocoDataset numbers those it finds, in the order of the file."""
        names = [category['name'] for category in self.categories]
        return tuple(name for name in names if name in self.classes) if self.classes else tuple(map(str, names))

    def run(self) -> Iterator[Finding]:
        """Read the file once and yield what is wrong, such as a file that is certainly not what was intended."""
        if not is_on_disk(self.path, self.dataset.backend_args):
            yield Finding(f'{self.where}: {self.path} is not on this machine and is not checked.', INFO)
            return
        try:
            content = read_json(self.path, self.where)
        except DataError as error:
            yield Finding(str(error))
            return
        yield from self._check_parts(content)
        yield from self._check_entries(self.images, 'image', ('id', 'file_name', 'height', 'width'))
        yield from self._check_entries(self.categories, 'category', ('id', 'name'))
        for image in self.images:
            if not all(_is_number(image[key]) and image[key] > 0 for key in ('height', 'width')):
                yield self._found(f'gives image {image["id"]} width {image["width"]!r} and height {image["height"]!r}')
        yield from self._check_classes()
        yield from self._check_entries(self.annotations, 'annotation', ('id', 'image_id', 'category_id'))
        if not self.training and any(annotation['id'] == 0 for annotation in self.annotations):
            yield self._found(
                'has an annotation with id 0, which pycocotools counts as found by nothing: number from 1', WARNING
            )
        yield from self._check_references()
        # CocoDataset skips annotations marked ignore before it reads the box.
        used = [annotation for annotation in self.annotations if not annotation.get('ignore')]
        yield from self._check_keys(used, 'annotation', ('bbox', 'area'))
        kept = yield from self._check_boxes(used)
        names, labels = self._names(), self.labels
        kept = [annotation for annotation in kept if names[annotation['category_id']] in labels]
        self.learnable = sum(not annotation.get('iscrowd') for annotation in kept)
        load = find_transform(self.dataset, 'LoadAnnotations')
        if getattr(load, 'with_mask', False):
            yield from map(
                self._of_file,
                check_masks(kept, _sizes(self.images), 'masks are read (LoadAnnotations with with_mask=True)'),
            )
            yield from map(self._of_file, check_ignored_masks(kept, getattr(load, 'poly2mask', True)))
        load = find_transform(self.dataset, 'LoadImageFromFile')
        folder = self.dataset.data_prefix.get('img', '')
        if reads_from_disk(load) and not getattr(load, 'ignore_empty', False) and is_on_disk(folder):
            yield from self._check_images(folder, load)

    def _found(self, text: str, level: int = ERROR) -> Finding:
        return Finding(f'{self.where}: {self.path} {text}.', level)

    def _of_file(self, finding: Finding) -> Finding:
        return self._found(*finding)

    def _names(self) -> dict:
        return {category['id']: category['name'] for category in self.categories}

    def _check_parts(self, content: Any) -> Iterator[Finding]:
        """Find the lists of the file, and set the attributes."""
        if not isinstance(content, dict):
            yield self._found(
                f'holds a {type(content).__name__}, where COCO has an object of images, annotations and categories'
            )
        for key in ('images', 'categories', *(('annotations',) if self.training else ())):
            if key not in content:
                yield self._found(f'has no {key!r}, which COCO annotation files have')
        for key in ('images', 'categories', 'annotations'):
            entries = content.get(key, [])
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                yield self._found(f'has {key!r} that are not a list of objects')
            setattr(self, key, entries)

    def _check_keys(self, entries: List[dict], what: str, keys: Iterable[str]) -> Iterator[Finding]:
        for key in keys:
            lacking = [(i, entry) for i, entry in enumerate(entries) if key not in entry]
            if lacking:
                i, entry = lacking[0]
                yield self._found(
                    f'has no {key!r} for {what} {entry.get("id", f"number {i}")} ({len(lacking)} of {len(entries)}), '
                    'which CocoDataset needs'
                )

    def _check_entries(self, entries: List[dict], what: str, keys: Iterable[str]) -> Iterator[Finding]:
        """Find entries without one of the keys, or with the ``id`` of another."""
        yield from self._check_keys(entries, what, keys)
        seen = set()
        for entry in entries:
            if not isinstance(entry['id'], (int, float, str)):
                yield self._found(f'has a {what} whose id is {entry["id"]!r}')
            if entry['id'] in seen:
                yield self._found(f'has more than one {what} with id {entry["id"]}')
            seen.add(entry['id'])

    def _check_classes(self) -> Iterator[Finding]:
        """Compare ``classes`` with the categories."""
        names, classes, labels = [category['name'] for category in self.categories], self.classes, self.labels
        if not classes:
            return
        twice = sorted({name for name in labels if labels.count(name) > 1})
        if twice:
            yield self._found(
                f'has more than one category called {twice[0]!r}, so that labels would not fit the classes: '
                + self._tell_apart([category['id'] for category in self.categories if category['name'] == twice[0]])
            )
        missing = [name for name in classes if name not in names]
        if missing:
            others = [name for name in names if name not in classes]
            close = difflib.get_close_matches(str(missing[0]), list(map(str, others)), 1)
            harmless = self.training and not others and labels and labels == tuple(classes[: len(labels)])
            yield self._found(
                f'has no category called {missing[0]!r}, as {len(missing)} of {len(classes)} names in '
                'metainfo.classes'
                + (f': did you mean {close[0]!r}?' if close else '')
                + f' (the categories are {_some(names)}; classes that are no category shift the labels of others)',
                WARNING if harmless or self._has_own_classes() else ERROR,
            )
        elif labels != tuple(classes):
            yield self._found(
                'has its categories in another order than metainfo.classes: labels follow the file, so '
                f'metainfo.classes should be {_some(labels, 100)} for the right names in results',
                WARNING,
            )

    def _tell_apart(self, ids: list) -> str:
        """Say which of the categories of one name have annotations, and what to do with the others."""
        counts = {key: sum(a.get('category_id') == key for a in self.annotations) for key in ids}
        empty = [key for key, count in counts.items() if not count]
        text = ', '.join(
            f'id {key!r} has {count or "no"} annotation{"s" * (count > 1)}' for key, count in counts.items()
        )
        if len(ids) - len(empty) > 1:
            return f'{text}; rename all but one if they are different classes, or else give their annotations one id'
        if len(empty) == len(ids):  # such as in a file for tests
            empty = empty[1:]
        program = (
            'import json, sys; data = json.load(open(sys.argv[1])); '
            f'data["categories"] = [c for c in data["categories"] if c["id"] not in {empty!r}]; '
            'json.dump(data, open(sys.argv[1], "w"))'
        )
        return (
            f'{text}; remove what is not used by the command python -c {shlex.quote(program)} '
            f'{shlex.quote(self.path)} (which rewrites the file)'
        )

    def _has_own_classes(self) -> bool:
        """Tell whether the classes are those of one of mmdet's data sets for certain data, such as Objects365."""
        kind = type(self.dataset)
        is_librarys = kind.__module__.startswith('mmdet.') and kind.__name__ != 'CocoDataset'
        return is_librarys and list(kind.METAINFO.get('classes') or ()) == list(self.classes)

    def _check_references(self) -> Iterator[Finding]:
        names, labels, images = self._names(), self.labels, {image['id'] for image in self.images}
        for annotation in self.annotations:
            if not isinstance(annotation['image_id'], (int, float, str)):
                yield self._found(f'gives annotation {annotation["id"]} the image_id {annotation["image_id"]!r}')
            if not _is_known(annotation['category_id'], names):
                yield self._found(
                    f'gives annotation {annotation["id"]} category_id {annotation["category_id"]!r}, which no '
                    f'category has (they have {_some(sorted(names, key=str))})'
                )
        lost = [annotation for annotation in self.annotations if not _is_known(annotation['image_id'], images)]
        if lost:
            yield self._found(
                f'gives {len(lost)} of {len(self.annotations)} annotations an image_id that no image has, such as '
                f'annotation {lost[0]["id"]} the image_id {lost[0]["image_id"]!r}: they are left out',
                ERROR if len(lost) == len(self.annotations) else WARNING,
            )
        left_out = [a for a in self.annotations if names[a['category_id']] not in labels]
        if left_out and len(left_out) == len(self.annotations) and self.training:
            yield self._found(
                f'has annotations of {_some(sorted({names[a["category_id"]] for a in left_out}))} alone, which '
                'metainfo.classes leaves out'
            )

    def _check_boxes(self, annotations: List[dict]) -> Generator[Finding, None, List[dict]]:
        """Check boxes and areas, and return the annotations that CocoDataset keeps."""
        boxes = yield from self._check_numbers(annotations, 'bbox', (4,))
        areas = yield from self._check_numbers(annotations, 'area', ())
        sizes = {image['id']: (image['width'], image['height']) for image in self.images}
        shown = np.array([annotation['image_id'] in sizes for annotation in annotations], bool)
        if not shown.any():
            return []
        boxes, areas = boxes[shown], areas[shown]
        annotations = [annotation for annotation in annotations if annotation['image_id'] in sizes]
        size = np.array([sizes[annotation['image_id']] for annotation in annotations], np.float64)
        number = len(boxes)

        normalised = (np.abs(boxes) <= 1).all(1)
        if normalised.mean() > 0.9:
            yield self._found(
                f'has boxes from 0 to 1, such as annotation {annotations[int(normalised.argmax())]["id"]}: '
                'CocoDataset reads [x, y, width, height] in pixels'
            )
        start, extent, end = boxes[:, :2], boxes[:, 2:], boxes[:, :2] + boxes[:, 2:]
        slack = 1 + 0.01 * size
        leaving = (end > size + slack).any(1) | (start < -slack).any(1)
        corners = (extent > start).all(1) & (extent <= size + slack).all(1) & (start >= -slack).all(1)
        some = annotations[int(leaving.argmax())]
        text = (
            f'has {leaving.sum()} of {number} boxes that leave their image, such as annotation {some["id"]} with '
            f'{some["bbox"]} in {sizes[some["image_id"]][0]} x {sizes[some["image_id"]][1]} pixels'
        )
        if corners.mean() > 0.99 and leaving.mean() > 0.2:
            yield self._found(f'{text}: they look like [x1, y1, x2, y2], and CocoDataset reads [x, y, width, height]')
        if leaving.mean() > 0.5:
            yield self._found(f'{text}: CocoDataset reads [x, y, width, height] in pixels')

        reasons = {
            'narrower or lower than a pixel': (extent < 1).any(1),
            'outside their image': ((np.minimum(end, size) - np.maximum(start, 0)) <= 0).any(1),
            'without an area': areas <= 0,
        }
        dropped = np.logical_or.reduce(list(reasons.values()))
        if dropped.any():
            counts = ', '.join(f'{reason.sum()} {name}' for name, reason in reasons.items() if reason.any())
            yield self._found(
                f'has {dropped.sum()} of {number} boxes that CocoDataset leaves out ({counts}), such as annotation '
                f'{annotations[int(dropped.argmax())]["id"]} with {annotations[int(dropped.argmax())]["bbox"]}',
                ERROR if dropped.mean() > 0.5 else WARNING,
            )
        if leaving.any():
            yield self._found(text, WARNING)
        return [annotation for annotation, drop in zip(annotations, dropped) if not drop]

    def _check_numbers(
        self, annotations: List[dict], key: str, shape: Tuple[int, ...]
    ) -> Generator[Finding, None, np.ndarray]:
        """Return ``key`` of all annotations as one array of finite numbers."""
        values = [annotation[key] for annotation in annotations]
        try:
            array = np.array(values)
        except ValueError:  # of different lengths
            array = np.array([])
        if array.dtype.kind in 'iuf' and array.shape == (len(values), *shape) and np.isfinite(array).all():
            return array.astype(np.float64)
        for annotation, value in zip(annotations, values):
            numbers = value if shape and isinstance(value, list) else [value]
            if len(numbers) != sum(shape, not shape) or not all(map(_is_number, numbers)):
                wanted = '[x, y, width, height] in numbers' if shape else 'a number'
                yield self._found(f'gives annotation {annotation["id"]} the {key} {value!r}, which is not {wanted}')
        return np.array(values, np.float64).reshape(len(values), *shape)

    def _check_images(self, folder: str, load) -> Iterator[Finding]:
        """Load up to 50 images in ``folder`` by the pipeline's transform, and compare their width and height."""
        images = self.images
        if self.training:  # which does not load the others
            used = {annotation['image_id'] for annotation in self.annotations}
            images = [image for image in images if image['id'] in used]
        wrong, turned, sample = [], [], pick_evenly(images)
        for image in sample:
            path = osp.join(folder, image['file_name'])
            given = (image['width'], image['height'])
            try:
                size = read_image_size(load, path)
            except DataError as error:
                yield self._found(
                    f'names image {image["id"]} {image["file_name"]!r}, and {path} cannot be read: {error}'
                )
                continue
            if size is None or size == given:
                continue
            if size == given[::-1] and is_turned(path, *given):
                turned.append(path)
            else:
                wrong.append(f'{path} is {size[0]} x {size[1]}, not {given[0]} x {given[1]}')
        if len(wrong) * 10 > len(sample):
            yield self._found(
                f'gives {len(wrong)} of {len(sample)} images another width x height than they have: {wrong[0]}'
            )
        if wrong:
            yield self._found(f'gives {len(wrong)} of {len(sample)} images another width x height: {wrong[0]}', WARNING)
        if turned:
            yield self._found(
                f'has the size of {len(turned)} of {len(sample)} images as stored, but mmcv turns them by their '
                f'EXIF orientation, and the boxes are not turned: see whether they fit {turned[0]}',
                WARNING,
            )


def _sizes(images: Iterable[dict]) -> Dict[Any, Tuple[int, int]]:
    return {image['id']: (image['height'], image['width']) for image in images}


def _boxes(annotations: List[dict]) -> set:
    return {(a['image_id'], a['category_id'], *a.get('bbox', ())) for a in annotations}


def _is_number(value) -> bool:
    return is_number(value) and abs(value) <= sys.float_info.max


def _is_known(value, known) -> bool:
    return isinstance(value, (int, float, str)) and value in known


def _some(names: Iterable, at_most: int = 5) -> str:
    names = list(map(str, names))
    return ', '.join(names[:at_most]) + (', ...' if len(names) > at_most else '') or 'none'


def is_plain_coco(dataset) -> bool:
    """Tell whether a data set reads its annotation file as mmdet's CocoDataset does: it is one, or of a subclass that
    overrides neither the loading of the file nor the parsing of an annotation."""
    for cls in type(dataset).__mro__:
        if cls.__name__ == 'CocoDataset' and cls.__module__.split('.')[0] == 'mmdet':
            return all(
                getattr(type(dataset), name) is getattr(cls, name)
                for name in ('load_data_list', 'parse_data_info', 'COCOAPI')
            )
    return False


def check_evaluated_images(metric, data: CocoCheck, where: str) -> Iterator[Finding]:
    """Compare the images of mmdet's CocoMetric, if it has a separate annotation file, with those of the data set.

    Find a file about other images, or without a segmentation where masks are evaluated.

    Args:
        metric (mmdet.evaluation.CocoMetric): others have no findings.
        data (CocoCheck): of the data set, after its run.
        where (str): name of the evaluator.
    """
    coco = getattr(metric, '_coco_api', None)
    if type(metric).__name__ != 'CocoMetric' or coco is None:
        return
    images = {key: osp.basename(str(image.get('file_name'))) for key, image in coco.imgs.items()}
    names = {image['id']: image['file_name'] for image in data.images}
    unknown = [key for key, name in names.items() if images.get(key) != osp.basename(name)]
    more = len(images) - (len(names) - len(unknown))
    if unknown or more:
        what = (
            f'has no image {unknown[0]} called {names[unknown[0]]!r}'
            if unknown
            else f'has {more} images more, which count as images without predictions'
        )
        yield Finding(f'{where}: ann_file of CocoMetric is another file than that of the data set: it {what}.')
    evaluated = coco.dataset.get('annotations', [])
    if data.annotations and evaluated and _boxes(data.annotations) != _boxes(evaluated):
        yield Finding(
            f'{where}: ann_file of CocoMetric has other boxes than the annotation file of the data set; the '
            "metric's are those that count.",
            WARNING,
        )
    if 'segm' in metric.metrics and not metric.format_only:
        yield from (
            Finding(f'{where}: ann_file of CocoMetric {finding.text}.', finding.level)
            for finding in _check_evaluated_masks(list(coco.imgs.values()), evaluated)
        )


def _check_evaluated_masks(images: List[dict], annotations: List[dict]) -> Iterator[Finding]:
    for image in images:
        if not (image.get('height') and image.get('width')):
            yield Finding(f'has no height and width for image {image["id"]}, which masks need')
    sizes = _sizes(images)
    annotations = [annotation for annotation in annotations if annotation['image_id'] in sizes]
    yield from check_masks(annotations, sizes, 'CocoMetric evaluates masks (metric "segm")')
    for annotation in annotations:
        if isinstance(annotation['segmentation'], list) and len(annotation['segmentation'][0]) < 4:
            yield Finding(f'has a segmentation of fewer than two points for annotation {annotation["id"]}')


def check_categories(metric, data: CocoCheck, where: str) -> Iterator[Finding]:
    """Find other categories, or another order of them, in the file of a CocoMetric than in that of the data set."""
    coco = getattr(metric, '_coco_api', None)
    if type(metric).__name__ != 'CocoMetric' or coco is None:
        return
    classes = tuple(c['name'] for c in coco.dataset['categories'] if not data.classes or c['name'] in data.classes)
    if classes != data.labels:
        yield Finding(
            f'{where}: ann_file of CocoMetric has the categories {_some(classes)}, and the annotation file of the data '
            f'set {_some(data.labels)}: labels follow the order of the file, so that predictions of one class would '
            'be scored as another. Evaluate with the file of the data set.'
        )


def check_yielded_images(metric, datasets: Sequence, where: str, loader: str) -> Iterator[Finding]:
    """Compare the images that built data sets yield with those that mmdet's CocoMetric scores.

    Args:
        metric (mmdet.evaluation.CocoMetric): others have no findings.
        datasets (Sequence[BaseDataset]): the data sets whose predictions the metric is given.
        where, loader (str): names of the evaluator and of the data loader.
    """
    if type(metric).__name__ != 'CocoMetric' or not all(getattr(d, '_fully_initialized', False) for d in datasets):
        return
    yielded: Dict[Any, str] = {}
    for dataset in datasets:
        own = {}
        for info in map(dataset.get_data_info, range(len(dataset))):
            if 'img_id' not in info:
                return
            own[info['img_id']] = osp.basename(str(info.get('img_path')))
        twice = [key for key in own if key in yielded]
        if twice:
            yield Finding(
                f'{where}: the data sets of {loader} have {len(twice)} image ids in common, such as {twice[0]} '
                f'({yielded[twice[0]]} and {own[twice[0]]}), and one CocoMetric scores them as one image: set '
                f"{where}=dict(type='MultiDatasetsEvaluator', metrics=[...], dataset_prefixes=[...]) with a CocoMetric "
                'and a prefix for each data set.'
            )
        yielded.update(own)
    coco = getattr(metric, '_coco_api', None)
    if coco is None:
        return
    unknown = [key for key in yielded if key not in coco.imgs]
    if unknown:
        yield Finding(
            f'{where}: ann_file of CocoMetric lacks {len(unknown)} of the {len(yielded)} images of {loader}, such as '
            f'{unknown[0]} ({yielded[unknown[0]]}): name the annotation file of these images'
            + (', or set a MultiDatasetsEvaluator with a CocoMetric for each data set' if len(datasets) > 1 else '')
            + '.'
        )
    more = [key for key in coco.imgs if key not in yielded and coco.imgToAnns.get(key)]
    if more:
        yield Finding(
            f'{where}: ann_file of CocoMetric has {len(more)} images with annotations that {loader} does not yield, '
            f'such as {more[0]}; all their boxes would count as not found. Name a file of the {len(yielded)} images '
            'that it yields, or let it yield all (indices, filter_cfg).'
        )


def check_learnable(checks: Sequence[CocoCheck], loader: str) -> Iterator[Finding]:
    """Find training data in which no box is left to learn from, after all files were checked."""
    if checks and all(check.learnable == 0 for check in checks):
        annotations = [annotation for check in checks for annotation in check.annotations]
        crowds = sum(bool(annotation.get('iscrowd')) for annotation in annotations)
        yield Finding(
            f'{loader}: no box is left to learn from in {", ".join(check.path for check in checks)}: of '
            f'{len(annotations)} annotations {crowds} have iscrowd=1, which only says where not to learn (set '
            'iscrowd=0 for single objects), and mmdet leaves out the others.'
        )
