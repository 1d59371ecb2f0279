"""Work dirs as a training leaves them, made without training: data, config, logs and predictions."""

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image
from pycocotools import mask as rle

CLASSES = ('<script>document.title="run"</script>', 'a & b', '"quoted" $x$ \x1b[2J\u202e\ud800 $\\frac{$')
SIZE = (40, 56)
IMAGES = 7
LOG = """2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: <img src=x onerror=alert(1)>
    PyTorch: 2.0.0
    PyTorch compiling details: PyTorch built with:
  - GCC 9

    MMEngine: 0.10.0

Runtime environment:
    seed: 7
    GPU number: 1
------------------------------------------------------------
"""


def make_boxes(index):
    """Return two boxes of the scene ``index``, left, top, width, height, and their classes."""
    return [[4 + index, 5, 12, 10], [30, 8 + index, 14, 16]], [index % 3, (index + 1) % 3]


def make_mask(box):
    mask = np.zeros(SIZE, np.uint8)
    left, top, width, height = box
    mask[top : top + height, left : left + width] = 1
    return mask


def make_images(folder, suffix='.png'):
    folder.mkdir(parents=True)
    generator = np.random.RandomState(0)
    for index in range(IMAGES):
        small = generator.randint(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize(SIZE[::-1]).save(folder / f'{index}{suffix}')


def make_coco(folder: Path) -> Path:
    """Write images and annotations of masks, and return the file of the annotations."""
    make_images(folder / 'images')
    annotations = []
    for index in range(IMAGES):
        for box, label in zip(*make_boxes(index)):
            mask = rle.encode(np.asfortranarray(make_mask(box)))
            entry = dict(bbox=box, area=box[2] * box[3], iscrowd=0, category_id=label + 1, image_id=index)
            entry['segmentation'] = dict(mask, counts=mask['counts'].decode())
            annotations.append(dict(entry, id=len(annotations) + 1))
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', height=SIZE[0], width=SIZE[1]) for i in range(IMAGES)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
        annotations=annotations,
    )
    path = folder / 'annotations.json'
    path.write_text(json.dumps(content))
    return path


def predict_boxes(path: Path) -> list:
    """Write and return predictions of those scenes: the first is exact, others are not."""
    from mmdet.evaluation import DumpDetResults
    from mmdet.structures import DetDataSample

    metric = DumpDetResults(out_file_path=str(path))
    for index in range(IMAGES):
        boxes, labels = make_boxes(index)
        boxes = [[box[0] + index // 2, *box[1:]] for box in boxes]
        if index % 3 == 2:
            labels[0] = (labels[0] + 1) % 3
        scores = [0.9, 0.8 if index < 5 else 0.2]
        found = InstanceData(
            bboxes=torch.tensor([[b[0], b[1], b[0] + b[2], b[1] + b[3]] for b in boxes], dtype=torch.float32),
            scores=torch.tensor(scores),
            labels=torch.tensor(labels),
            masks=torch.tensor(np.stack([make_mask(box) for box in boxes])).bool(),
        )
        sample = DetDataSample(metainfo=dict(img_id=index, img_path=f'{index}.png', ori_shape=SIZE, img_shape=SIZE))
        sample.pred_instances = found
        metric.process({}, [sample.to_dict()])
    metric.compute_metrics(metric.results)
    return metric.results


def make_work_dir(folder: Path, cfg: dict, name='stranger', lines=(), by_epoch=True) -> Path:
    """Write a config and the log of a training, as mmengine does; ``lines`` follow the training's scalars."""
    run = folder / '20260101_000000'
    (run / 'vis_data').mkdir(parents=True)
    config = Config(dict(model=dict(type='Unknown', note='</script><b>'), **cfg))
    config.dump(run / 'vis_data/config.py')
    config.dump(folder / f'{name}.py')
    (run / '20260101_000000.log').write_text(LOG)
    scalars = [
        dict(lr=0.1 / i, loss=2.0 / i, loss_cls=1.0 / i, grad_norm=3.0, data_time=0.1, time=0.5, memory=900 + i)
        for i in range(1, 9)
    ]
    for i, line in enumerate(scalars):
        line.update(iter=10 * (i + 1), step=10 * (i + 1), **(dict(epoch=1 + i // 4) if by_epoch else {}))
    text = ''.join(json.dumps(line) + '\n' for line in (*scalars, *lines))
    (run / 'vis_data/scalars.json').write_text(text)
    return folder


def make_detector(folder: Path) -> Path:
    """Return the work dir of a detector with predictions, two validations among its logs."""
    annotations = make_coco(folder / 'data')
    dataset = dict(
        type='CocoDataset',
        data_root=str(folder / 'data'),
        ann_file=annotations.name,
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[dict(type='LoadImageFromFile')],
    )
    lines = [{'coco/bbox_mAP': 0.1 * i, 'coco/bbox_mAP_l': -1.0, 'time': 0.1, 'step': i} for i in (1, 2)]
    cfg = dict(default_scope='mmdet', test_dataloader=dict(dataset=dataset))
    work_dir = make_work_dir(folder / 'work', cfg, lines=lines)
    predict_boxes(work_dir / 'predictions.pkl')
    return work_dir


def make_segmentor(folder: Path) -> Path:
    """Return the work dir of a segmentor with predictions."""
    make_images(folder / 'data/images', '.jpg')
    (folder / 'data/maps').mkdir()
    metric = DumpResults(out_file_path=str(folder / 'predictions.pkl'))
    for index in range(IMAGES):
        truth = np.zeros(SIZE, np.uint8)
        truth[10:30, 10 + index : 30] = 1 + index % 2
        truth[:2] = 255
        Image.fromarray(truth).save(folder / f'data/maps/{index}.png')
        found = np.roll(np.where(truth == 255, 0, truth), index, 1)
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg', img_shape=SIZE))
        sample.pred_sem_seg = PixelData(data=torch.tensor(found[None].astype(np.int64)))
        metric.process({}, [sample.to_dict()])
    metric.compute_metrics(metric.results)
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder / 'data'),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        metainfo=dict(classes=('background', *CLASSES[:2]), palette=[[0, 0, 0], [250, 0, 0], [0, 0, 250]]),
        pipeline=[],
    )
    cfg = dict(default_scope='mmseg', test_dataloader=dict(dataset=dataset))
    lines = [dict(mIoU=30.0, step=40), dict(mIoU=50.0, step=80)]
    work_dir = make_work_dir(folder / 'work', cfg, lines=lines, by_epoch=False)
    (folder / 'predictions.pkl').rename(work_dir / 'predictions.pkl')
    return work_dir


def make_classifier(folder: Path) -> Path:
    """Return the work dir of a classifier with predictions."""
    metric = DumpResults(out_file_path=str(folder / 'predictions.pkl'))
    names = 'abc'
    for label, name in enumerate(names):
        make_images(folder / f'data/{name}')
        for index in range(IMAGES):
            scores = np.full(3, 0.1)
            scores[label if index < 5 else (label + 1) % 3] = 0.8 - 0.05 * index
            sample = BaseDataElement(metainfo=dict(img_path=f'{name}/{index}.png', img_shape=SIZE))
            sample.pred_score = torch.tensor(scores / scores.sum())
            metric.process({}, [sample.to_dict()])
    metric.compute_metrics(metric.results)
    dataset = dict(type='CustomDataset', data_root=str(folder / 'data'), metainfo=dict(classes=CLASSES), pipeline=[])
    cfg = dict(default_scope='mmpretrain', test_dataloader=dict(dataset=dataset))
    work_dir = make_work_dir(folder / 'work', cfg, lines=[{'accuracy/top1': 60.0, 'step': 2}])
    (folder / 'predictions.pkl').rename(work_dir / 'predictions.pkl')
    return work_dir
