"""Models and data for mmengine's Runner that take milliseconds: an RMT, or a convolution, and a linear head.

Configs import it; it registers in mmengine's root scope.
"""

import random

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

from support.official_files import NANO


@MODELS.register_module()
class ToyClassifier(BaseModel):
    def __init__(self, num_classes=3, extra=False, init_cfg=None, backbone=None, **settings):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build({**(backbone or dict(type='RMT', arch=NANO._asdict())), **settings})
        self.head = nn.Linear(NANO.embed_dims[-1], num_classes)
        if extra:
            self.auxiliary_head = nn.Linear(2, 2)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(logits, labels)) if mode == 'loss' else list(logits)


@MODELS.register_module()
class ToyConvNet(BaseModel):
    """A model without RMT."""

    def __init__(self, channels=4, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.backbone = nn.Conv2d(3, channels, 1)
        self.head = nn.Linear(channels, 3)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.dropout(self.backbone(inputs)).mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(logits, labels)) if mode == 'loss' else list(logits)


@MODELS.register_module()
class ToyTTA(BaseTTAModel):
    def test_step(self, data):
        return self.module.test_step(data)

    def merge_preds(self, data_samples_list):
        raise NotImplementedError


@DATASETS.register_module()
class ToyData(Dataset):
    metainfo = {}

    def __init__(self, pipeline=()):
        self.pipeline = pipeline

    def full_init(self):
        """ConcatDataset calls it."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3, 32, 32), index


@DATASETS.register_module()
class NoisyData(ToyData):
    """Images that augmentation changes: by the random numbers of Python, NumPy and torch."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(3, 32, 32)
        return (noise + index) / 4, index % 3


@METRICS.register_module()
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(float(sample.sum()) for sample in data_samples)

    def compute_metrics(self, results):
        return dict(sum=sum(results))
