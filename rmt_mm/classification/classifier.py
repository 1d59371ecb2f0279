"""An image classifier for training with token labels and MixToken."""

from typing import List, Optional

from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..errors import TokenLabelError
from .mix_token import box_mask, draw_box, paste_flipped


@MODELS.register_module()
class TokenLabelClassifier(ImageClassifier):
    """ImageClassifier with MixToken in training: a box of the stem's output is pasted from the flipped batch.

    The box is drawn on the grid of the last stage's tokens, so that each token belongs to one image. The head undoes
    the mixing for the tokens and mixes the class targets (:class:`RMTTokenLabelHead`). This class overrides only the
    loss of ImageClassifier.

    Args:
        mix_alpha (float): lam ~ Beta(mix_alpha, mix_alpha), where 1 - lam is about the box's share of the image; 0
            turns MixToken off. Default 1.0.
        **kwargs: those of :class:`mmpretrain.models.ImageClassifier`. The backbone needs a module ``stem`` whose output
            has stride 4.

    Raises:
        TokenLabelError: ``train_cfg`` sets batch augmentations as well; in training, 32 does not divide the input.
    """

    STRIDE = 32  # of the labelled tokens
    STEM_STRIDE = 4

    def __init__(self, *args, mix_alpha: float = 1.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self.data_preprocessor, 'batch_augments', None) is not None:
            raise TokenLabelError(
                'TokenLabelClassifier mixes tokens itself, and Mixup or CutMix of the images would '
                'leave their token labels behind: remove train_cfg.augments.'
            )
        self.mix_alpha = mix_alpha
        # Keep the hook registered and switch it by self._mixed: a compiled model ignores later changes of its hooks.
        self._mixed: Optional[Tensor] = None
        self.backbone.stem.register_forward_hook(self._mix)

    def _mix(self, stem: nn.Module, args: tuple, out: Tensor) -> Optional[Tensor]:
        return None if self._mixed is None else paste_flipped(out, self._mixed)

    def loss(self, inputs: Tensor, data_samples: List[DataSample]) -> dict:
        """Compute the losses of a batch.

        Args:
            inputs (Tensor): (B, 3, H, W), H and W multiples of 32.
            data_samples (list[DataSample]): with ``class_score`` and ``token_score``.

        Returns:
            dict[str, Tensor]: the head's losses.
        """
        height, width = inputs.shape[-2:]
        if height % self.STRIDE or width % self.STRIDE:
            raise TokenLabelError(
                f'Training with token labels needs inputs whose height and width are multiples of '
                f'{self.STRIDE}, got {height} x {width}.'
            )
        tokens = height // self.STRIDE, width // self.STRIDE
        box = draw_box(*tokens, self.mix_alpha) if self.mix_alpha > 0 else None
        if box is not None:
            times = self.STRIDE // self.STEM_STRIDE
            y1, y2, x1, x2 = (edge * times for edge in box)
            self._mixed = box_mask((y1, y2, x1, x2), tokens[0] * times, tokens[1] * times, inputs.device)
        try:
            feats = self.extract_feat(inputs)
        finally:
            self._mixed = None
        return self.head.loss(feats, data_samples, mixed=box)
