"""What the page computes, without the page: predictions of a picture, and the attention at one of its pixels."""

import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
from PIL import Image

from ...backbone import RMT
from ...errors import UsageError, printable
from ...training.image_size import PILLOW_ERRORS
from ..analysis import Recorded, View, find_backbone, record
from ..cli.images import IMAGE_SUFFIXES
from ..cli.predictor import SIZE_ERRORS, Classifier, Detector, Predictor, as_shown
from .attention import Panels, draw_panels
from .sizes import enlarge_with_sample, shrink

# The lowest threshold of the page. Detections below it are not kept.
LEAST_SCORE = 0.05
# Formats of strangers' files. Pillow reads more, among them PostScript, for which it starts another program.
FORMATS = sorted({Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES})


@dataclass
class Result:
    """The predictions of one picture, of one user.

    Attributes:
        name (str): the user's name of the file.
        image (np.ndarray): what is shown, (H, W, 3), RGB, uint8.
        loaded (np.ndarray): what the model is given, of any channels.
        sample: the library's data sample, without what drawing does not need.
        pixel (tuple[float, float], optional): x and y in the image where the user clicked last.
        recorded (dict): stage and block -> what their MaSA computed, for the last ones that the user chose.
    """

    name: str
    image: np.ndarray
    loaded: np.ndarray
    sample: Any
    pixel: Optional[Tuple[float, float]] = None
    recorded: Dict[Tuple[int, int], Recorded] = field(default_factory=dict)


class Trial:
    """A model that several users try at once. One thread at a time computes and draws.

    Args:
        predictor (Predictor): the model.
        max_pixels (int): most pixels of a picture.

    Attributes:
        backbone (RMT | None): whose attention is shown.
        no_attention (str): why none is shown.
    """

    def __init__(self, predictor: Predictor, max_pixels: int) -> None:
        self.predictor = predictor
        self.max_pixels = max_pixels
        # Models, inferencers and visualisers hold what they work on: two threads in one of them would mix pictures.
        self.lock = threading.Lock()
        self.backbone: Optional[RMT] = None
        self.no_attention = ''
        try:
            self.backbone = find_backbone(predictor.model)
        except ValueError as error:
            self.no_attention = str(error)

    def read(self, path: Path, name: str) -> np.ndarray:
        """Return a picture as :meth:`rmt_mm.tools.cli.predictor.Predictor.read` does; errors name it ``name``.

        Raises:
            UsageError: the file is no picture, is damaged, or has too many pixels.
        """
        name = printable(name, 80)
        try:
            with Image.open(path, formats=FORMATS) as opened:  # reads the size, and no pixels
                width, height = opened.size
        except Image.DecompressionBombError as error:
            raise UsageError(f'{name} has more pixels than Pillow opens: {error}') from error
        except PILLOW_ERRORS as error:
            kinds = ', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise UsageError(f'{name} cannot be read as a picture ({kinds}).') from error
        if width * height > self.max_pixels:
            raise UsageError(
                f'{name} has {width} x {height} pixels, and this page takes {self.max_pixels:,}: reduce it, or start '
                'the page with a larger --max-pixels.'
            )
        try:
            return self.predictor.read(path)
        except UsageError as error:
            reason = str(error.__cause__ or '').replace(str(path), name)
            raise UsageError(f'{name} is damaged: {reason}.') from error

    def predict(self, path: Path, name: str) -> Result:
        """Read a picture and predict it.

        Raises:
            UsageError: the picture cannot be read, or the model's pipeline does not take its size.
        """
        loaded = self.read(path, name)
        with self.lock, self._name_size(name, loaded, 'predicted'):
            sample = self.predictor.predict(loaded)
        if 'seg_logits' in sample:  # a number for every pixel and class
            del sample.seg_logits
        if isinstance(self.predictor, Detector):
            sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= LEAST_SCORE]
        return Result(name, as_shown(loaded), loaded, sample)

    def draw(self, result: Result, threshold: float) -> np.ndarray:
        """Return the picture with the predictions of at least ``threshold`` on it, for the browser.

        Raises:
            UsageError: the library's visualiser does not take its size.
        """
        image, sample = result.image, result.sample
        if not isinstance(self.predictor, Classifier):  # whose visualiser enlarges
            image, sample = enlarge_with_sample(image, sample)
        with self.lock, self._name_size(result.name, image, 'drawn'):
            np.random.seed(0)  # mmdet varies the colours of masks at random: keep them while the threshold moves
            return shrink(self.predictor.draw(image, sample, threshold))

    @contextlib.contextmanager
    def _name_size(self, name: str, image: np.ndarray, done: str) -> Iterator[None]:
        """Turn what the libraries raise for odd sizes into a sentence."""
        try:
            yield
        except SIZE_ERRORS as error:
            height, width = image.shape[:2]
            raise UsageError(
                f'{printable(name, 80)}, of {width} x {height} pixels, cannot be {done} with this model: '
                f'{printable(" ".join(str(error).split()), 200)}'
            ) from error

    def entries(self, result: Result, threshold: float) -> List[dict]:
        """Return what ``demo.py --json`` writes for this picture."""
        return self.predictor.entries(result.sample, threshold, result.name, 1)

    def attend(self, result: Result, stage: int, block: int, head: Optional[int]) -> Panels:
        """Draw the attention at ``result.pixel``, which is set.

        Args:
            result (Result): of :meth:`predict`. What the block computes is kept in it, for the next pixel or head.
            stage (int): from 0.
            block (int): from 0.
            head (int, optional): from 0. Default: the mean of the heads.

        Raises:
            UsageError: the model does not see this pixel, does not compute the stage, or sees the image in parts.
        """
        assert self.backbone is not None and result.pixel is not None
        with self.lock:
            try:
                if (stage, block) not in result.recorded:
                    found = record(self.backbone, lambda: self.predictor.predict(result.loaded), stage, block)
                    result.recorded = {(stage, block): found}
                view = View.from_metainfo(result.sample.metainfo)
                stride = self.backbone.strides[stage]
                return draw_panels(result.image, view, result.recorded[stage, block], result.pixel, stride, head)
            except (ValueError, IndexError) as error:
                raise UsageError(str(error)) from error
