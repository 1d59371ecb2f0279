"""Predictions for single images, by the inferencers of mmdet, mmseg and mmpretrain behind one interface."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from ...checkpoints import force_safe_loading, read_checkpoint
from ...errors import UsageError, printable
from ...ops import keep_freed_memory
from ...training.image_size import DECODE_ERRORS, explain
from ..flops import input_channels
from ..pictures import choose_colours
from .cfg_options import apply_options
from .config import find_config, read_config
from .images import read_image
from .model_check import check_backbones
from .tiles import TileMask, draw_objects, merge_boxes, tile_windows
from .types import library, type_name
from .weights import LoadReportHook, check_file

# The 80 classes of COCO have the identifiers 1 to 90 without these.
NOT_IN_COCO = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
# What the libraries' transforms, models and visualisers raise for an image of a single pixel, one 400 times as wide as
# high, or one of more pixels than the memory holds.
SIZE_ERRORS = (cv2.error, RuntimeError, ValueError, IndexError, MemoryError)


def check_device(name: Optional[str]) -> None:
    """Raise UsageError if torch cannot use the device of ``--device``."""
    if name is not None:
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
            raise UsageError(f'--device {name} cannot be used: {str(error).splitlines()[0]}') from error


def load_predictor(config: str, checkpoint: str, device: Optional[str], cfg_options: Dict[str, Any]) -> 'Predictor':
    """Build the model of a command line: CONFIG, CHECKPOINT, --device and --cfg-options."""
    check_device(device)
    force_safe_loading()
    if not torch.cuda.is_available():
        keep_freed_memory()
    path = find_config(config)
    cfg = read_config(path)
    apply_options(cfg, cfg_options)
    check_backbones(cfg, path)
    return build_predictor(cfg, check_file(checkpoint, 'CHECKPOINT'), device)


def build_predictor(cfg: Config, checkpoint: str, device: Optional[str] = None) -> 'Predictor':
    """Build a model with its weights, for single images.

    Args:
        cfg (Config): of a detector (mmdet), segmentor (mmseg) or classifier (mmpretrain).
        checkpoint (str): a local file with every tensor of the model.
        device (str, optional): such as ``'cuda:1'``. Default: a GPU if there is one.

    Raises:
        UsageError: the config is of another library, or has no test pipeline.
        CheckpointError: the file lacks tensors of the model.
    """
    kinds: Dict[str, Callable[..., Predictor]] = dict(mmdet=Detector, mmseg=Segmentor, mmpretrain=Classifier)
    if library(cfg) not in kinds:
        raise UsageError(f'the config is of {library(cfg)}: images are for configs of {", ".join(kinds)}.')
    if not cfg.get('test_dataloader'):
        raise UsageError('the config has no test_dataloader, whose pipeline prepares images.')
    predictor = kinds[library(cfg)](cfg, checkpoint, device)
    predictor.cfg = cfg
    # The inferencers load without complaint what fits. Load again, and refuse a file that lacks tensors.
    content, report = read_checkpoint(checkpoint), LoadReportHook(checkpoint, 'test')
    predictor.set_dataset_meta(find_dataset_meta(cfg, content))
    report.watch(predictor.model, content)
    predictor.model.load_state_dict(content.get('state_dict', content), strict=False)
    report.stop()
    return predictor


def find_dataset_meta(cfg: Config, checkpoint: dict) -> dict:
    """Return what a checkpoint says of its data set (classes, palette), else what the config's data set says.

    The inferencers would take the classes of COCO or Cityscapes for a file without names.
    """
    meta = checkpoint.get('meta') or {}
    found = {key.lower(): value for key, value in (meta.get('dataset_meta') or meta).items() if isinstance(key, str)}
    if not found.get('classes'):
        dataset = cfg.test_dataloader.dataset
        with DATASETS.switch_scope_and_registry(library(cfg)) as registry:
            kind = registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
        found = {**getattr(kind, 'METAINFO', {}), **dataset.get('metainfo', {})}
    return {key: found.get(key) for key in ('classes', 'palette')}


def _turn_channels(image: np.ndarray) -> np.ndarray:
    """Return three channels in the other order, RGB or BGR, and all other images as they are."""
    return np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 and image.shape[2] == 3 else image


def as_shown(image: np.ndarray) -> np.ndarray:
    """Return (H, W, 3), RGB, uint8, of an image of any channels: of more than three the first ones, as B, G, R."""
    if image.ndim == 2 or image.shape[2] < 3:
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    elif image.shape[2] > 3:
        image = np.ascontiguousarray(image[..., 2::-1])
    if image.dtype != np.uint8:
        image = (image.clip(0) / max(float(image.max()), 1e-12) * 255).astype(np.uint8)
    return image


class Predictor(ABC):
    """A model for single images. Images are (H, W, 3), RGB, uint8, or what :meth:`read` returns.

    Args:
        cfg (Config): of the model.
        checkpoint (str): its weights.
        device (str, optional): Default: a GPU if there is one.

    Attributes:
        cfg (Config): of the model.
        model (nn.Module): the model.
        classes (Sequence[str]): names of the classes: their numbers, if unknown.
    """

    cfg: Config
    model: Any
    classes: Sequence[str] = ()

    @abstractmethod
    def __init__(self, cfg: Config, checkpoint: str, device: Optional[str]) -> None: ...

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes that the model predicts."""

    def set_dataset_meta(self, meta: dict) -> None:
        """Set names and colours of classes; without a list of names for all of them, use numbers and any colours.

        They may come from a file of any kind: names are made printable, and colours that are none are replaced.
        """
        classes = meta['classes']
        if not isinstance(classes, (list, tuple)) or len(classes) != self.num_classes:
            classes = range(self.num_classes)
        self.classes = list(map(printable, classes))
        self.model.dataset_meta = dict(classes=self.classes, palette=choose_colours(len(classes), meta['palette']))

    @property
    def drawn_classes(self) -> List[str]:
        """Names of the classes for matplotlib, which would take what is between dollars for a formula."""
        return [printable(name, 80).replace('$', r'\$') for name in self.classes]

    def read(self, path: Path) -> np.ndarray:
        """Return an image for :meth:`predict`.

        Three channels are read as a viewer shows them, unless the pipeline's ``LoadImageFromFile`` has another
        ``color_type`` than 'color', or reads by tifffile; then it loads the image.

        Args:
            path (Path): a file.

        Returns:
            np.ndarray: (H, W, 3), RGB; or (H, W) or (H, W, C) as loaded.

        Raises:
            UsageError: the file cannot be read.
        """
        pipeline = self.cfg.test_dataloader.dataset.get('pipeline') or []
        given = next((dict(t) for t in pipeline if type_name(t.get('type')) == 'LoadImageFromFile'), {})
        settings = {key: given[key] for key in ('color_type', 'imdecode_backend') if key in given}
        if settings.get('color_type', 'color') == 'color' and settings.get('imdecode_backend') != 'tifffile':
            return read_image(path)
        load = LoadImageFromFile(**settings)
        try:
            image = load.transform(dict(img_path=str(path)))['img']  # type: ignore[index]
        except DECODE_ERRORS as error:
            reason = explain(error, str(path), load.imdecode_backend)
            raise UsageError(f'{path} cannot be read as an image: {reason}') from error
        return _turn_channels(image)

    def as_loaded(self, image: np.ndarray) -> np.ndarray:
        """Return an image with the channels that the pipeline's transforms take: BGR, or gray for a model of one.

        Raises:
            UsageError: it has other channels than the model takes.
        """
        wanted, channels = input_channels(self.model), 1 if image.ndim == 2 else image.shape[2]
        if wanted == 1 and channels == 3:
            return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if channels not in (1, wanted):  # a single one is spread over all where it is normalised
            raise UsageError(
                f'the image is read with {channels} channels, and the model takes {wanted}: set color_type of '
                'LoadImageFromFile in the test pipeline, or choose an image that has as many.'
            )
        return _turn_channels(image)

    @abstractmethod
    def predict(self, image: np.ndarray) -> Any:
        """Return the library's data sample of an image."""

    def predict_by_tiles(self, image: np.ndarray, size: int, overlap: int) -> Any:
        """Return the data sample of an image, computed in square tiles of ``size`` pixels that share ``overlap``.

        Masks of detections are a list of :class:`~rmt_mm.tools.cli.tiles.TileMask`.
        """
        raise NotImplementedError(f'{type(self).__name__} takes no tiles')

    @abstractmethod
    def draw(self, image: np.ndarray, sample: Any, threshold: float) -> np.ndarray:
        """Return an image with the predictions of at least the score ``threshold`` on it, RGB."""

    @abstractmethod
    def describe(self, sample: Any, threshold: float) -> List[dict]:
        """Return predictions of at least the score ``threshold`` as values for JSON."""

    def entries(self, sample: Any, threshold: float, name: str, number: int) -> List[dict]:
        """Return the entries of predictions.json for the image ``name``, which is the ``number``-th."""
        return [dict(file_name=name, predictions=self.describe(sample, threshold))]


class Detector(Predictor):
    """Boxes, and masks where the model predicts them, by mmdet's ``DetInferencer``."""

    def __init__(self, cfg: Config, checkpoint: str, device: Optional[str]) -> None:
        from mmdet.apis import DetInferencer

        self._inferencer = DetInferencer(cfg, checkpoint, device, show_progress=False)
        self.model = self._inferencer.model

    @property
    def num_classes(self) -> int:
        heads = [module for module in self.model.modules() if hasattr(module, 'num_classes')]
        return max(head.num_classes for head in heads)  # the RPN has one

    def set_dataset_meta(self, meta: dict) -> None:
        super().set_dataset_meta(meta)
        self._inferencer.visualizer.dataset_meta = dict(self.model.dataset_meta, classes=self.drawn_classes)

    def predict(self, image: np.ndarray) -> Any:
        out = self._inferencer(self.as_loaded(image), return_datasamples=True, no_save_vis=True, no_save_pred=True)
        return out['predictions'][0].cpu()

    def predict_by_tiles(self, image: np.ndarray, size: int, overlap: int) -> Any:
        from mmdet.structures import DetDataSample

        height, width = image.shape[:2]
        found = InstanceData.cat(
            [self._predict_tile(image, *window) for window in tile_windows(height, width, size, overlap)]
        )
        kept = merge_boxes(found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy())
        return DetDataSample(
            pred_instances=found[torch.tensor(kept, dtype=torch.long)],
            metainfo=dict(ori_shape=(height, width), tiled=True),
        )

    def _predict_tile(self, image: np.ndarray, rows: slice, columns: slice) -> InstanceData:
        found = self.predict(np.ascontiguousarray(image[rows, columns])).pred_instances
        numbers = torch.nonzero(found.scores > 0.05)[:, 0]
        kept = InstanceData(
            bboxes=found.bboxes[numbers] + torch.tensor([columns.start, rows.start] * 2),
            scores=found.scores[numbers],
            labels=found.labels[numbers],
        )
        if 'masks' in found:
            # A map of the image for each detection of each tile would fill the memory.
            masks = np.asarray(found.masks)
            kept.masks = [TileMask(masks[i].astype(bool), columns.start, rows.start) for i in numbers.tolist()]
        return kept

    def draw(self, image: np.ndarray, sample: Any, threshold: float) -> np.ndarray:
        if sample.get('tiled'):
            found = sample.pred_instances[sample.pred_instances.scores > threshold]
            labels, palette = found.labels.tolist(), self.model.dataset_meta['palette']
            names = [f'{self.classes[i]}: {100 * score:.1f}' for i, score in zip(labels, found.scores.tolist())]
            return draw_objects(image, found.bboxes.numpy(), names, [palette[i] for i in labels], found.get('masks'))
        visualizer = self._inferencer.visualizer
        visualizer.add_datasample('image', image, sample, draw_gt=False, pred_score_thr=threshold)
        return visualizer.get_image()

    def describe(self, sample: Any, threshold: float) -> List[dict]:
        from mmdet.structures.mask import encode_mask_results

        found = sample.pred_instances
        found = found[found.scores >= threshold]
        masks = found.get('masks', [None] * len(found))
        if sample.get('tiled'):
            masks = [mask and mask.encode(*sample.ori_shape) for mask in masks]
        elif 'masks' in found:
            masks = encode_mask_results(np.asarray(masks, dtype=bool))
        results = []
        for box, score, label, mask in zip(found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), masks):
            left, top, right, bottom = box
            result = dict(
                category_id=self._category(label),
                category=self.classes[label],
                bbox=[left, top, right - left, bottom - top],
                score=score,
            )
            if mask is not None:
                result['segmentation'] = dict(mask, counts=mask['counts'].decode())
            results.append(result)
        return results

    def entries(self, sample: Any, threshold: float, name: str, number: int) -> List[dict]:
        return [dict(image_id=number, file_name=name, **found) for found in self.describe(sample, threshold)]

    def _category(self, label: int) -> int:
        """Return COCO's identifier of a class for COCO's 80 classes, else its number from 1."""
        from mmdet.datasets import CocoDataset

        if tuple(self.classes) != tuple(CocoDataset.METAINFO['classes']):
            return label + 1
        return sorted(set(range(1, 91)) - NOT_IN_COCO)[label]


class Segmentor(Predictor):
    """A class of every pixel, by mmseg's ``MMSegInferencer``."""

    def __init__(self, cfg: Config, checkpoint: str, device: Optional[str]) -> None:
        from mmseg.apis import MMSegInferencer

        self._inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        self._inferencer.show_progress = False
        self.model = self._inferencer.model

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    def predict(self, image: np.ndarray) -> Any:
        return self._inferencer(self.as_loaded(image), return_datasamples=True).cpu()

    def predict_by_tiles(self, image: np.ndarray, size: int, overlap: int) -> Any:
        height, width = image.shape[:2]
        total: Optional[Tensor] = None
        for rows, columns in tile_windows(height, width, size, overlap):
            sample = self.predict(np.ascontiguousarray(image[rows, columns]))
            logits = sample.seg_logits.data
            if total is None:
                total, count = torch.zeros(len(logits), height, width), torch.zeros(height, width)
            total[:, rows, columns] += logits
            count[rows, columns] += 1
        assert total is not None
        labels = total.div_(count).argmax(0, keepdim=True)
        if len(total) == 1:  # a single logit: the model's threshold
            labels = (total.sigmoid() > self.model.decode_head.threshold).long()
        sample.set_metainfo(dict(ori_shape=(height, width), img_shape=(height, width)))
        del sample.seg_logits, sample.pred_sem_seg
        sample.pred_sem_seg = PixelData(data=labels)
        return sample

    def draw(self, image: np.ndarray, sample: Any, threshold: float) -> np.ndarray:
        visualizer = self._inferencer.visualizer
        visualizer.set_dataset_meta(**self.model.dataset_meta)
        visualizer.add_datasample('image', image, sample, draw_gt=False, draw_pred=True)
        return visualizer.get_image()

    def labels(self, sample: Any) -> np.ndarray:
        """Return the class of every pixel, (H, W), uint8 or, beyond 256 classes, uint16."""
        labels = sample.pred_sem_seg.data[0].numpy()
        return labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)

    def describe(self, sample: Any, threshold: float) -> List[dict]:
        numbers, counts = np.unique(self.labels(sample), return_counts=True)
        return [
            dict(label=int(number), category=self.classes[number], pixels=int(count))
            for number, count in zip(numbers, counts)
        ]


class Classifier(Predictor):
    """The most probable classes, by mmpretrain's ``ImageClassificationInferencer``."""

    TOP = 5

    def __init__(self, cfg: Config, checkpoint: str, device: Optional[str]) -> None:
        from mmpretrain.apis import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        self._inferencer = ImageClassificationInferencer(cfg, checkpoint, device)
        self.model = self._inferencer.model
        self._visualizer = UniversalVisualizer()

    @property
    def num_classes(self) -> int:
        return self.model.head.num_classes

    def predict(self, image: np.ndarray) -> Any:
        [data] = self._inferencer.preprocess([self.as_loaded(image)])
        return self._inferencer.forward(data)[0].cpu()

    def draw(self, image: np.ndarray, sample: Any, threshold: float) -> np.ndarray:
        shorter = min(image.shape[:2])
        self._visualizer.visualize_cls(
            image, sample, classes=self.drawn_classes, draw_gt=False, resize=256 if shorter < 256 else None
        )
        return self._visualizer.get_image()

    def describe(self, sample: Any, threshold: float) -> List[dict]:
        scores, labels = sample.pred_score.topk(min(self.TOP, len(sample.pred_score)))
        return [
            dict(label=label, category=self.classes[label], score=score)
            for score, label in zip(scores.tolist(), labels.tolist())
        ]
