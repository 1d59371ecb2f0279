"""Find masks of COCO files that mmdet ignores in silence, or that pycocotools misreads or raises an error for.

A mask is a list of polygons, or run lengths (RLE): a dict of ``counts``, the lengths of runs of 0 and 1 by turns along
the columns, and ``size``, height and width.
"""

import math
from logging import ERROR, WARNING
from typing import Any, Iterator, List, Mapping, Sequence

from .datasets import pick_evenly
from .findings import Finding

# pycocotools takes memory for every pixel along a polygon, and is ended by a signal where its integers overflow.
MAX_COORDINATE = 10**6


def check_masks(annotations: Sequence[dict], sizes: Mapping[Any, Sequence[int]], reader: str) -> Iterator[Finding]:
    """Check the ``segmentation`` of annotations. The texts have no subject, which is the file.

    Args:
        annotations (Sequence[dict]): of images in ``sizes``, each with its ``id`` and ``image_id``.
        sizes (dict): the id of an image -> its (height, width).
        reader (str): who reads the masks, for messages.
    """
    compressed = []
    for annotation in annotations:
        mask, number = annotation.get('segmentation'), annotation['id']
        if not mask:
            yield Finding(f'has no segmentation for annotation {number}, and {reader}')
        if isinstance(mask, dict):
            fault = _find_fault(mask, list(sizes[annotation['image_id']]))
            if fault:
                yield Finding(f'has a segmentation {fault.format(number=number)}')
            if isinstance(mask['counts'], str):
                compressed.append(annotation)
        elif not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
            yield Finding(
                f'has a segmentation for annotation {number} that is neither a list of polygons '
                '[[x1, y1, x2, y2, ...], ...] nor run lengths'
            )
        elif not all(is_number(n) and abs(n) <= MAX_COORDINATE for polygon in mask for n in polygon):
            yield Finding(
                f'has a segmentation for annotation {number} with coordinates that are no numbers of at most '
                f'{MAX_COORDINATE:,} pixels'
            )
    for annotation in pick_evenly(compressed):
        if not _is_readable(annotation['segmentation']):
            yield Finding(
                f'has run lengths for annotation {annotation["id"]} whose counts cannot be decoded: write a list of '
                'numbers, or the text that pycocotools encodes'
            )


def check_ignored_masks(annotations: Sequence[dict], poly2mask: bool) -> Iterator[Finding]:
    """Find masks that mmdet's LoadAnnotations ignores together with their boxes, after :func:`check_masks`.

    Args:
        annotations (Sequence[dict]): of :func:`check_masks`.
        poly2mask (bool): LoadAnnotations reads run lengths too.
    """
    masks = {a['id']: a['segmentation'] for a in annotations if not a.get('iscrowd')}  # those of crowds are ignored
    kinds = {
        'without a polygon of three points [x1, y1, x2, y2, x3, y3, ...]': [
            number
            for number, mask in masks.items()
            if isinstance(mask, list) and not any(len(p) >= 6 and len(p) % 2 == 0 for p in mask)
        ],
        'of run lengths, and LoadAnnotations has poly2mask=False (set poly2mask=True)': [
            number for number, mask in masks.items() if isinstance(mask, dict) and not poly2mask
        ],
    }
    for what, ignored in kinds.items():
        if ignored:
            yield Finding(
                f'has {len(ignored)} of {len(masks)} segmentations {what}, such as annotation {ignored[0]}: they are '
                'ignored',
                ERROR if len(ignored) * 2 > len(masks) else WARNING,
            )


def _find_fault(mask: dict, size: List[int]) -> str:
    """Return what is wrong with run lengths, with ``{number}`` for the annotation's id; empty if nothing is."""
    counts, given = mask.get('counts'), mask.get('size')
    if not given:
        return (
            f'for annotation {{number}} of run lengths without a size: add "size": {size} (height, width of its '
            'image) beside "counts"'
        )
    if given != size:
        return f'of {given} pixels for annotation {{number}}, whose image has {size} (height, width)'
    if isinstance(counts, str) and counts:
        return ''
    if not isinstance(counts, list) or not all(is_number(n) and 0 <= n == int(n) for n in counts):
        return (
            f'for annotation {{number}} with "counts" that are neither a list of run lengths nor a text: {counts!r:.50}'
        )
    if sum(counts) != size[0] * size[1]:
        return (
            f'for annotation {{number}} whose run lengths add up to {sum(counts)}, and its image has '
            f'{size[0]} x {size[1]} = {size[0] * size[1]} pixels'
        )
    return ''


def is_number(value: Any) -> bool:
    """Tell whether a value of JSON is a finite number; an int may be larger than any float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _is_readable(mask: dict) -> bool:
    from pycocotools.mask import area, decode  # mmdet requires it, this package does not

    try:
        return decode(mask).sum() == area(mask)  # too few runs leave the rest of the mask as it was in memory
    except ValueError:
        return False
