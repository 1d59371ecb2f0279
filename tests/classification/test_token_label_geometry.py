"""Token labels follow the pixels, in synthetic images whose pixels encode the class that the label map has there."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.registry import DefaultScope  # noqa: E402
from mmpretrain.registry import TRANSFORMS  # noqa: E402
from torchvision.ops import roi_align  # noqa: E402

from rmt_mm.classification import MakeTokenLabels, TrackGeometry  # noqa: E402
from rmt_mm.classification.token_label import crop_label_map  # noqa: E402

NO_CLASS = 255
GEOMETRIC_POLICIES = [
    dict(type='Rotate', magnitude_range=(0, 30)),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal'),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical'),
    dict(type='Translate', magnitude_range=(0, 0.45), direction='horizontal'),
    dict(type='Translate', magnitude_range=(0, 0.45), direction='vertical'),
]
NEAREST = dict(prob=1.0, pad_val=NO_CLASS, interpolation='nearest')
FLIPS = [dict(type='RandomFlip', prob=1.0, direction=d) for d in ('horizontal', 'vertical', 'diagonal')]
CROP = dict(type='RandomResizedCrop', scale=224, interpolation='nearest')
PIPELINES = {
    'nothing': [],
    'horizontal flip': FLIPS[:1],
    'vertical flip': FLIPS[1:2],
    'diagonal flip': FLIPS[2:],
    'crop': [CROP],
    'rotation': [dict(type='Rotate', angle=30.0, **NEAREST)],
    'rotation about a point': [dict(type='Rotate', angle=20.0, center=(10.0, 70.0), scale=1.2, **NEAREST)],
    'horizontal shear': [dict(type='Shear', magnitude=0.3, **NEAREST)],
    'vertical shear': [dict(type='Shear', magnitude=0.3, direction='vertical', **NEAREST)],
    'horizontal translation': [dict(type='Translate', magnitude=0.4, **NEAREST)],
    'vertical translation': [dict(type='Translate', magnitude=0.4, direction='vertical', **NEAREST)],
    'resize': [dict(type='Resize', scale=(64, 192), interpolation='nearest')],
    'all': [
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(
            type='RandAugment',
            policies=[dict(**policy, interpolation='nearest') for policy in GEOMETRIC_POLICIES],
            num_policies=3,
            magnitude_level=9,
            magnitude_std=0.5,
            hparams=dict(pad_val=NO_CLASS),
        ),
        CROP,
    ],
}


def track(transforms):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return TRANSFORMS.build(dict(type='TrackGeometry', transforms=transforms))


def synthetic(height, width, blocks_y, blocks_x):
    """Return an image in which every pixel holds the number of its block, and the map of these numbers as classes."""
    y = np.arange(height)[:, None] * blocks_y // height
    x = np.arange(width)[None, :] * blocks_x // width
    classes = (y * blocks_x + x).astype(np.uint8)
    return np.stack([classes] * 3, axis=-1), classes


def as_label_map(classes, score=1.0):
    indices = torch.from_numpy(classes.astype(np.float32))
    return torch.stack((torch.full_like(indices, score), indices))[:, None]  # (2, 1, h, w)


def shares_of_pixels(image, grid, num_classes):
    """Return the share of each class in the pixels of each grid cell, (num_classes, grid_h, grid_w)."""
    height, width = image.shape[0] // grid[0], image.shape[1] // grid[1]
    shares = np.zeros((num_classes, *grid))
    for i in range(grid[0]):
        for j in range(grid[1]):
            cell = image[i * height : (i + 1) * height, j * width : (j + 1) * width, 0]
            shares[:, i, j] = [(cell == c).mean() for c in range(num_classes)]
    return shares


@pytest.mark.parametrize('name', PIPELINES)
def test_scores_of_tokens_are_the_shares_of_their_pixels(name):
    """With a label map as fine as the image, a token's score for a class is the share of its pixels of that class."""
    transform = track(PIPELINES[name])
    for seed in range(5 if name != 'all' else 40):
        np.random.seed(seed)
        image, classes = synthetic(96, 128, 4, 5)
        results = transform(dict(img=image))
        grid = (results['img'].shape[0] // 32, results['img'].shape[1] // 32)
        scores = crop_label_map(as_label_map(classes), results['label_transforms'], grid, 20).numpy()
        expected = shares_of_pixels(results['img'], grid, 20)
        assert np.abs(scores - expected).mean() < 0.003
        assert np.abs(scores - expected).max() < 0.12, f'seed {seed}'


def test_a_wrong_geometry_would_be_seen():
    image, classes = synthetic(96, 128, 4, 5)
    flipped = track(FLIPS[:1])(dict(img=image))['img']
    scores = crop_label_map(as_label_map(classes), [], (3, 4), 20).numpy()
    assert np.abs(scores - shares_of_pixels(flipped, (3, 4), 20)).max() > 0.5


@pytest.mark.parametrize('seed', range(20))
def test_tokens_within_a_cell_of_a_coarse_map_have_its_class(seed):
    """In the published case of a coarse map, a token's label is that of the cell that covers it."""
    np.random.seed(seed)
    image, _ = synthetic(180, 216, 6, 6)
    label_map = as_label_map(np.arange(36).reshape(6, 6), score=9.0)
    results = track(PIPELINES['all'])(dict(img=image, label_map=label_map))
    results = MakeTokenLabels(num_classes=36)(results)
    shares = shares_of_pixels(results['img'], (7, 7), 36)
    labels = results['token_score'].numpy()
    for i, j in zip(*np.nonzero(shares.max(0) == 1)):
        assert labels[:, i, j].argmax() == shares[:, i, j].argmax()
    outside = shares.sum(0) == 0  # padding only: no class is preferred
    assert np.ptp(labels[:, outside], axis=0).max(initial=0) < 1e-6


@pytest.mark.parametrize('box', [(0.0, 0.0, 1.0, 1.0), (0.1, 0.3, 0.9, 0.5), (0.45, 0.2, 0.5, 0.93)])
@pytest.mark.parametrize('size', [(7, 7), (1, 1), (3, 5)])
def test_boxes_give_what_roi_align_gives(box, size):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 18, 17, generator=generator)
    top, indices = scores.topk(5, dim=0)
    x1, y1, x2, y2 = box
    matrix = np.array([[x2 - x1, 0, x1], [0, y2 - y1, y1], [0, 0, 1.0]])
    out = crop_label_map(torch.stack((top, indices.float())), [matrix], size, 12)
    dense = torch.zeros_like(scores).scatter_(0, indices, top)
    expected = roi_align(dense[None], [torch.tensor([[x1 * 17, y1 * 18, x2 * 17, y2 * 18]])], size, aligned=True)
    torch.testing.assert_close(out, expected[0], atol=1e-5, rtol=1e-4)


def test_labels_are_smoothed_softmax():
    label_map = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    label_map = torch.cat((label_map, torch.tensor([4.0, 0.0]).view(1, 2, 1, 1)))  # class 4: 3, class 0: 1
    results = dict(img=np.zeros((64, 32, 3), np.uint8), label_map=label_map, label_transforms=[])
    results = MakeTokenLabels(num_classes=10, smoothing=0.1)(results)
    expected = torch.tensor([1.0, 0, 0, 0, 3, 0, 0, 0, 0, 0]).softmax(0) * (1 - 0.1 + 0.01) + 0.01
    torch.testing.assert_close(results['class_score'], expected)
    torch.testing.assert_close(results['token_score'], expected[:, None, None].expand(-1, 2, 1))


def test_colour_operations_leave_places_alone():
    transform = track(
        [
            dict(
                type='RandAugment',
                policies=[dict(type='Equalize'), dict(type='Solarize', magnitude_range=(256, 0))],
                num_policies=2,
                magnitude_level=9,
            ),
            dict(type='ColorJitter', brightness=0.4),
        ]
    )
    results = transform(dict(img=synthetic(40, 40, 2, 2)[0]))
    assert len(results['label_transforms']) == 3
    for matrix in results['label_transforms']:
        np.testing.assert_array_equal(matrix, np.eye(3))


def test_an_image_is_transformed_as_without_tracking():
    image, _ = synthetic(96, 128, 4, 5)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        plain = [TRANSFORMS.build(t) for t in PIPELINES['all']]
    np.random.seed(3)
    expected = dict(img=image)
    for transform in plain:
        expected = transform(expected)
    np.random.seed(3)
    np.testing.assert_array_equal(track(PIPELINES['all'])(dict(img=image))['img'], expected['img'])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='TrackGeometry does not know what CenterCrop does'):
        track([dict(type='CenterCrop', crop_size=10)])
    with pytest.raises(ValueError, match='RandomChoice'):
        track(
            [
                dict(
                    type='RandAugment',
                    num_policies=1,
                    magnitude_level=9,
                    policies=[dict(type='RandomChoice', transforms=[[dict(type='Equalize')]])],
                )
            ]
        )
    make = MakeTokenLabels(num_classes=10)
    image, label_map = np.zeros((100, 64, 3), np.uint8), torch.zeros(2, 5, 4, 4)
    with pytest.raises(ValueError, match='label_map, which LoadLabelMap adds'):
        make(dict(img=image, label_transforms=[]))
    with pytest.raises(ValueError, match='label_transforms, which TrackGeometry adds'):
        make(dict(img=image, label_map=label_map))
    with pytest.raises(ValueError, match='multiples of 32, got 100 x 64'):
        make(dict(img=image, label_map=label_map, label_transforms=[]))


def test_repr_names_the_transforms():
    assert 'RandomFlip' in repr(TrackGeometry(track(FLIPS[:1]).transforms))
