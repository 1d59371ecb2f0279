"""Label map files and the datasets that go with them."""

import os
import pickle

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.registry import DefaultScope  # noqa: E402
from mmpretrain.registry import DATASETS  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from rmt_mm.classification import LoadLabelMap, TokenLabelError  # noqa: E402
from rmt_mm.classification.label_map import keep_best, load_label_map, save_label_map  # noqa: E402


def random_label_map(num_classes=10, k=5, size=(4, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores, indices = torch.randn(num_classes, *size, generator=generator).topk(k, dim=0)
    return torch.stack((scores, indices.float()))


@pytest.mark.parametrize('extension', ['.pt', '.npz'])
def test_files_round_trip_as_fp16(tmp_path, extension):
    label_map, path = random_label_map(), str(tmp_path / f'a/b/1{extension}')
    save_label_map(label_map, path)
    loaded = load_label_map(path, num_classes=10)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, label_map.half().float(), atol=0, rtol=0)
    assert os.listdir(tmp_path / 'a/b') == [f'1{extension}']


def test_files_of_others_load(tmp_path):
    """They may hold a plain tensor saved with torch.save, or an array saved by np.savez without a name."""
    label_map = random_label_map()
    torch.save(label_map.half(), tmp_path / '1.pt')
    np.savez(tmp_path / '2.npz', label_map.half().numpy())
    for name in ('1.pt', '2.npz'):
        torch.testing.assert_close(load_label_map(str(tmp_path / name), 10), label_map.half().float())


@pytest.mark.parametrize('extension', ['.pt', '.npz'])
@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.95])
def test_truncated_files_are_named_with_their_image(tmp_path, extension, share):
    path = tmp_path / f'1{extension}'
    save_label_map(random_label_map(), str(path))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(TokenLabelError, match=rf'1\{extension} of image cat/1.jpg cannot be read, it is truncated'):
        load_label_map(str(path), 10, 'cat/1.jpg')


@pytest.mark.parametrize(
    'wrong, message',
    [
        (torch.zeros(5, 4, 3), r'\(2, k, h, w\).*is \(5, 4, 3\)'),
        (torch.zeros(3, 5, 4, 3), r'is \(3, 5, 4, 3\)'),
        (torch.zeros(2, 5, 0, 3), r'is \(2, 5, 0, 3\)'),
        ({'a': torch.zeros(2)}, 'is dict'),
        (random_label_map(num_classes=20), r'class indices from \d+ to 1\d; .*num_classes - 1 = 9'),
        (torch.full((2, 5, 1, 1), -1.0), 'class indices from -1'),
        (torch.full((2, 5, 1, 1), 0.5), 'must be integers'),
        (torch.full((2, 5, 1, 1), float('nan')), 'not finite'),
    ],
)
def test_wrong_contents_are_named_with_their_image(tmp_path, wrong, message):
    path = tmp_path / '1.pt'
    torch.save(wrong, path)
    with pytest.raises(TokenLabelError, match=message) as info:
        load_label_map(str(path), 10, 'cat/1.jpg')
    assert '1.pt of image cat/1.jpg' in str(info.value)


def test_a_missing_file_is_named_with_its_image(tmp_path):
    with pytest.raises(TokenLabelError, match='1.pt of image cat/1.jpg does not exist'):
        LoadLabelMap(num_classes=10)(dict(label_map_path=str(tmp_path / '1.pt'), img_path='cat/1.jpg'))


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / '1.pt'
    path.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(TokenLabelError, match='cannot be read'):
        load_label_map(str(path), 10)


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / '1.pt'
    save_label_map(random_label_map(seed=1), str(path))
    before = path.read_bytes()

    def interrupted(obj, file):
        file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_label_map(random_label_map(seed=2), str(path))
    assert os.listdir(tmp_path) == ['1.pt']
    assert path.read_bytes() == before


def test_class_indices_that_fp16_cannot_hold_are_refused(tmp_path):
    with pytest.raises(TokenLabelError, match='up to 2048, got 2049'):
        save_label_map(torch.tensor([1.0, 2049.0]).view(2, 1, 1, 1), str(tmp_path / '1.pt'))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('num_classes', [3, 5, 6, 100])
def test_the_best_classes_keep_their_probabilities(num_classes):
    logits = 4 * torch.randn(num_classes, 2, 3) + 1
    scores, indices = keep_best(logits, k=5)
    dense = torch.zeros_like(logits).scatter_(0, indices.long(), scores)
    kept = min(5, num_classes)
    assert scores.shape == (kept, 2, 3)
    expected = logits.softmax(0).topk(kept, dim=0)[0]
    torch.testing.assert_close(dense.softmax(0).gather(0, indices.long()), expected)


@pytest.fixture
def folder(tmp_path):
    """Make images of two classes, each with a label map."""
    for name in ('cat/1', 'cat/deep/2', 'dog/3', 'dog/4'):
        image = tmp_path / f'train/{name}.png'
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
        save_label_map(random_label_map(), str(tmp_path / f'labels/{name}{".npz" if name == "dog/4" else ".pt"}'))
    return tmp_path


def build_dataset(folder, **kwargs):
    cfg = dict(
        type='TokenLabelDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='train', label_map_path='labels'),
        pipeline=[dict(type='LoadLabelMap', num_classes=10)],
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build({**cfg, **kwargs})


def test_every_image_gets_its_label_map(folder):
    dataset = build_dataset(folder)
    assert len(dataset) == 4
    for i in range(4):
        info = dataset[i]
        image = os.path.relpath(info['img_path'], folder / 'train')
        label = os.path.relpath(info['label_map_path'], folder / 'labels')
        assert os.path.splitext(image)[0] == os.path.splitext(label)[0]
        assert info['label_map'].shape == (2, 5, 4, 3)


@pytest.mark.parametrize('tree', ['labels', 'train'])
def test_linked_class_folders_are_entered(folder, tree):
    """mmpretrain's CustomDataset enters linked folders of images too; a link to a parent folder does no harm."""
    (folder / tree / 'dog').rename(folder / 'elsewhere')
    (folder / tree / 'dog').symlink_to(folder / 'elsewhere', target_is_directory=True)
    (folder / 'labels/cat/up').symlink_to(folder / 'labels', target_is_directory=True)
    dataset = build_dataset(folder)
    assert len(dataset) == 4 and all(dataset[i]['label_map'].shape == (2, 5, 4, 3) for i in range(4))


def test_errors_name_nothing_that_a_wheel_does_not_carry(folder):
    (folder / 'labels/dog/3.pt').unlink()
    for prefix in ('labels', 'nowhere'):
        with pytest.raises(TokenLabelError, match='"Token labels" in the documentation') as info:
            build_dataset(folder, data_prefix=dict(img_path='train', label_map_path=prefix))
        assert 'tools/' not in str(info.value)


def test_imagenet_by_annotation_file(folder):
    (folder / 'train.txt').write_text('cat/1.png 0\ndog/4.png 1\n')
    dataset = build_dataset(folder, type='TokenLabelImageNet', ann_file='train.txt')
    assert [dataset[i]['gt_label'] for i in range(2)] == [0, 1]
    assert dataset[1]['label_map_path'].endswith('dog/4.npz')


def test_partial_cover_is_counted_and_named(folder):
    for name in ('cat/deep/2.pt', 'dog/3.pt'):
        (folder / 'labels' / name).unlink()
    with pytest.raises(TokenLabelError, match='for 2 of 4 images, such as cat/deep/2.png, dog/3.png;'):
        build_dataset(folder)


def test_errors_of_workers_are_one_sentence(folder):
    (folder / 'labels/dog/3.pt').write_bytes(b'')
    with pytest.raises(TokenLabelError) as info:
        list(DataLoader(build_dataset(folder), num_workers=1, collate_fn=list))
    text = str(info.value)
    assert text.startswith('Label map ') and text.count('\n') == 0
    assert 'labels/dog/3.pt of image ' in text


def test_missing_folders_are_named(folder):
    with pytest.raises(TokenLabelError, match='nowhere does not exist'):
        build_dataset(folder, data_prefix=dict(img_path='train', label_map_path='nowhere'))
    with pytest.raises(TokenLabelError, match='label_map_path='):
        build_dataset(folder, data_prefix='train')
    with pytest.raises(TokenLabelError, match='needs label_map_path'):
        LoadLabelMap(num_classes=10)({})
