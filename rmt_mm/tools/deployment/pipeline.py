"""Describe how a config prepares a picture, as data that an application without the libraries can follow."""

from typing import Any, List, Optional, Sequence

# Transforms that read files or collect keys, and change no pixel.
NEUTRAL = (
    'LoadAnnotations',
    'PackDetInputs',
    'PackSegInputs',
    'PackInputs',
    'LoadImageFromFile',
    'LoadImageFromNDArray',
)


def describe_pipeline(pipeline: Sequence[dict]) -> Optional[List[dict]]:
    """Return the geometric steps of a test pipeline, or None if a transform in it is not known.

    The steps are dicts with ``op``:

    - ``resize``: bilinear without smoothing, half-pixel centres (cv2's INTER_LINEAR); ``scale`` (width, height). With
      ``keep_ratio``, the picture is made as large as fits: its longer side at most the larger number, its shorter side
      at most the smaller.
    - ``resize_edge``: by Pillow with ``filter``, so that the shorter side is ``size``.
    - ``center_crop``: to ``size`` (height, width), or less where the picture is smaller.
    """
    steps: List[dict] = []
    for transform in pipeline:
        kind = str(transform['type']).rsplit('.', 1)[-1]
        if kind in NEUTRAL:
            continue
        step = _describe(kind, transform)
        if step is None:
            return None
        steps.append(step)
    return steps


def _describe(kind: str, transform: Any) -> Optional[dict]:
    backend, interpolation = transform.get('backend', 'cv2'), transform.get('interpolation', 'bilinear')
    if kind == 'Resize' and backend == 'cv2' and interpolation == 'bilinear':
        scale = transform.get('scale')
        if isinstance(scale, (list, tuple)) and len(scale) == 2 and 'scale_factor' not in transform:
            return dict(op='resize', scale=list(scale), keep_ratio=bool(transform.get('keep_ratio', False)))
    if kind == 'ResizeEdge' and backend == 'pillow' and transform.get('edge', 'short') == 'short':
        return dict(op='resize_edge', size=transform['scale'], filter=interpolation)
    if kind == 'CenterCrop' and not transform.get('auto_pad', False):
        size = transform['crop_size']
        # mmcv reads a pair as (width, height), mmpretrain as (height, width): only squares are certain.
        if isinstance(size, int) or size[0] == size[1]:
            side = size if isinstance(size, int) else size[0]
            return dict(op='center_crop', size=[side, side])
    return None
