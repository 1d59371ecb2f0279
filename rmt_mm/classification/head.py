"""The classification heads of RMT, as in the released code."""

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..errors import TokenLabelError
from .mix_token import Box, kept_fraction, paste_flipped


@MODELS.register_module()
class RMTClsHead(ClsHead):
    """RMT's classification head: Linear on every token, BatchNorm, x * sigmoid(x), average over tokens, Linear.

    It works on the last stage's output, without an output norm: ``backbone=dict(type='RMT', out_indices=(3, ),
    out_norm=False)``.

    Args:
        num_classes (int): number of classes.
        in_channels (int): channels C of the last stage.
        hidden_channels (int): channels before the last Linear. Default 1024, as published.
        norm_cfg (dict): norm of the hidden channels. Default ``dict(type='BN')``.
        init_cfg (dict, optional): by default the published initialisation, truncated normal of std 0.02 for Linear.
        **kwargs: ``loss``, ``topk`` and ``cal_acc`` of :class:`mmpretrain.models.heads.ClsHead`.

    Raises:
        ValueError: ``num_classes`` is not positive.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        hidden_channels: int = 1024,
        norm_cfg: dict = dict(type='BN'),
        init_cfg: Optional[dict] = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        **kwargs,
    ) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        if num_classes <= 0:
            raise ValueError(f'num_classes must be a positive integer, got {num_classes}.')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.proj = nn.Linear(in_channels, hidden_channels)
        self.norm = build_norm_layer(norm_cfg, hidden_channels)[1]
        self.fc = nn.Linear(hidden_channels, num_classes)

    def pre_logits(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Compute the features before the last Linear.

        Args:
            feats (tuple[Tensor]): outputs of the backbone; the last one, (B, C, H, W), is used.

        Returns:
            Tensor: (B, hidden_channels).
        """
        x = self.proj(feats[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.silu(self.norm(x)).mean((2, 3))

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Compute logits, (B, num_classes), from the backbone's outputs."""
        return self.fc(self.pre_logits(feats))


@MODELS.register_module()
class RMTTokenLabelHead(RMTClsHead):
    """RMT's head for training with token labels: :class:`RMTClsHead` and a Linear on every token.

    The loss is ``cls_weight * CE(cls, class score) + aux_weight * CE(aux, token scores)``, with soft targets that
    :class:`rmt_mm.classification.MakeTokenLabels` makes: ``class_score`` (num_classes, ) and ``token_score``
    (num_classes, h, w) of a data sample. At inference logits = cls + 0.5 * max over tokens (aux).

    Args:
        num_classes (int): number of classes.
        in_channels (int): channels C of the last stage.
        cls_weight (float): weight of the class loss. Default 1.0.
        aux_weight (float): weight of the token loss. Default 0.5.
        **kwargs: those of :class:`RMTClsHead`, without ``loss``.
    """

    def __init__(
        self, num_classes: int, in_channels: int, cls_weight: float = 1.0, aux_weight: float = 0.5, **kwargs
    ) -> None:
        super().__init__(num_classes, in_channels, loss=dict(type='CrossEntropyLoss', use_soft=True), **kwargs)
        self.cls_weight = cls_weight
        self.aux_weight = aux_weight
        self.aux_fc = nn.Linear(in_channels, num_classes)

    def aux_logits(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Compute the logits of every token, (B, num_classes, H, W)."""
        return self.aux_fc(feats[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Compute logits, (B, num_classes), from the backbone's outputs."""
        return super().forward(feats) + 0.5 * self.aux_logits(feats).amax((2, 3))

    def loss(self, feats: Tuple[Tensor, ...], data_samples: List[DataSample], mixed: Optional[Box] = None) -> dict:
        """Compute both losses.

        Args:
            feats (tuple[Tensor]): outputs of the backbone; the last one, (B, C, H, W), is used.
            data_samples (list[DataSample]): with ``class_score`` and ``token_score``.
            mixed (tuple[int], optional): box (y1, y2, x1, x2), in tokens of the last stage, within which MixToken has
                replaced every sample by its counterpart in the flipped batch.

        Returns:
            dict[str, Tensor]: ``loss_cls`` and ``loss_aux``.

        Raises:
            TokenLabelError: data samples have no token labels, or labels of another size than the last stage's output.
        """
        cls_score, aux_score = super().forward(feats), self.aux_logits(feats)
        if 'token_score' not in data_samples[0] or 'class_score' not in data_samples[0]:
            raise TokenLabelError(
                'RMTTokenLabelHead needs class_score and token_score in the data samples: the '
                'training pipeline must end with MakeTokenLabels and '
                "PackInputs(algorithm_keys=('class_score', 'token_score'))."
            )
        class_target = torch.stack([sample.class_score for sample in data_samples]).to(cls_score.device)
        token_target = torch.stack([sample.token_score for sample in data_samples]).to(cls_score.device)
        if token_target.shape != aux_score.shape:
            raise TokenLabelError(
                f'The token labels have shape {tuple(token_target.shape)} and the last stage gives '
                f'{tuple(aux_score.shape)} (batch, classes, height, width): the labels must be made '
                'for the image that enters the model, with as many classes as the head.'
            )
        if mixed is not None:
            aux_score = paste_flipped(aux_score, mixed)  # its own inverse: each token's logits go back to its image
            kept = kept_fraction(mixed, aux_score.shape[-2:])
            class_target = kept * class_target + (1 - kept) * class_target.flip(0)
        return dict(
            loss_cls=self.cls_weight * self.loss_module(cls_score, class_target),
            loss_aux=self.aux_weight
            * self.loss_module(
                aux_score.permute(0, 2, 3, 1).flatten(0, 2), token_target.permute(0, 2, 3, 1).flatten(0, 2)
            ),
        )
