"""tools/deployment: whole models of the three libraries, run.py against demo.py's predictor, and mistakes."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from rmt_mm.errors import UsageError
from rmt_mm.tools.cli.predictor import build_predictor
from rmt_mm.tools.commands import export as tool
from rmt_mm.tools.deployment.detectors import detector_graph, pool
from rmt_mm.tools.deployment.graphs import segmentor_graph
from rmt_mm.tools.deployment.inputs import ImageNorm, Preparation, read_preprocessor
from rmt_mm.tools.deployment.onnx_file import operators, run_onnx, write_onnx
from rmt_mm.tools.deployment.pipeline import describe_pipeline

from support import ROOT, load_tool
from support.archs import LEAST_ARCH

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

CONFIGS = dict(
    mmdet='detection/mask-rcnn_rmt-mini_fpn_4e_digits',
    mmseg='segmentation/rmt-mini_fpn_digits',
    mmpretrain='classification/rmt-digits',
)
CLASSES = tuple('0123456789')
SCORE = 0.11  # of random weights: some boxes are above it


def read_config(scope):
    cfg = Config.fromfile(ROOT / f'configs/{CONFIGS[scope]}.py')
    arch = cfg.model.backbone.arch
    arch.update(depths=(1, 1, 1, 1), decomposed=(True, True, False, False))
    return cfg


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('export')


@pytest.fixture(scope='module')
def files(folder):
    """Return a config, a checkpoint of random weights and a picture for each library."""
    found = {}
    for scope in CONFIGS:
        pytest.importorskip(f'{scope}.utils').register_all_modules(init_default_scope=False)
        cfg = read_config(scope)
        with DefaultScope.overwrite_default_scope(scope):
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
            model.init_weights()
            for name, buffer in model.named_buffers():  # BatchNorms that do something
                if name.endswith(('running_mean', 'running_var')):
                    buffer.uniform_(0.5, 1.0)
        config, checkpoint = folder / f'{scope}.py', folder / f'{scope}.pth'
        cfg.dump(str(config))
        meta = {} if scope == 'mmseg' else dict(dataset_meta=dict(classes=CLASSES))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
        found[scope] = str(config), str(checkpoint)
    return found


@pytest.fixture(scope='module')
def picture(folder):
    """Return the path of a picture of 120 x 150 pixels, which the detector's pipeline enlarges."""
    small = np.random.RandomState(0).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    (folder / 'pictures').mkdir()
    path = folder / 'pictures/scene.png'
    Image.fromarray(small).resize((150, 120)).save(path)
    return path


def export(monkeypatch, *args):
    """Run the tool in this process."""
    monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, args)])
    tool.main()


@pytest.fixture(scope='module')
def models(files, folder):
    """Return a function that gives an ONNX file for images of any size, for a library."""

    @functools.lru_cache(None)
    def make(scope):
        path = str(folder / f'{scope}.onnx')
        with pytest.MonkeyPatch.context() as patch, DefaultScope.overwrite_default_scope(scope):
            export(patch, *files[scope], '--dynamic', '--normalize', '--out', path)
        return path

    return make


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['run.py', *map(str, args)])
    load_tool('deployment/run.py').main()


def predictor_of(files, scope):
    return build_predictor(Config.fromfile(files[scope][0]), files[scope][1], 'cpu')


@pytest.mark.parametrize(
    'scope', ['mmpretrain', *(pytest.param(scope, marks=pytest.mark.slow) for scope in ('mmdet', 'mmseg'))]
)
def test_run_predicts_what_demo_predicts(scope, files, models, picture, tmp_path, monkeypatch):
    image = np.array(Image.open(picture))
    with DefaultScope.overwrite_default_scope(scope):
        predictor = predictor_of(files, scope)
        sample = predictor.predict(image)
    model = load_tool('deployment/run.py').Model(Path(models(scope)))
    outputs, size = model.predict(image)
    if scope == 'mmpretrain':
        np.testing.assert_allclose(outputs['scores'][0], sample.pred_score.numpy(), atol=1e-4)
    elif scope == 'mmseg':
        np.testing.assert_allclose(outputs['logits'][0], sample.seg_logits.data.numpy(), atol=1e-3)
    else:
        found = sample.pred_instances
        assert size == (128, 160) and len(found) == len(outputs['boxes']) > 10
        scale = [150 / 160, 120 / 128] * 2
        # cv2 rounds pixels in steps of 1 / 2048, which changes some by one grey level.
        np.testing.assert_allclose(outputs['scores'], found.scores.numpy(), atol=2e-3)
        same = [np.abs(found.bboxes.numpy() - box * scale).max(1).min() < 0.5 for box in outputs['boxes'][:20]]
        assert np.mean(same) > 0.8
    run(monkeypatch, models(scope), picture, '--out-dir', tmp_path / 'out', '--score-thr', SCORE)
    [entry] = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert entry['file_name'] == 'scene.png' and entry['predictions']
    assert all(found['category'] in ('background', *CLASSES) for found in entry['predictions'])
    drawn = np.array(Image.open(tmp_path / 'out/scene.png'))
    assert drawn.ndim == 3 and (drawn.shape != image.shape or (drawn != image).any())


def test_masks_are_pasted_as_mmdet_does(files):
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    tool = load_tool('deployment/run.py')
    mask, box = np.random.RandomState(0).rand(28, 28).astype(np.float32), np.array([10.3, -4.0, 60.2, 33.7])
    [expected], _ = _do_paste_mask(
        torch.tensor(mask)[None, None], torch.tensor(box, dtype=torch.float32)[None], 50, 64, skip_empty=False
    )
    np.testing.assert_allclose(tool.paste_mask(mask, box, 50, 64), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize('size', [(64, 80), (17, 301), (150, 120), (1, 2)])
def test_pictures_are_resized_as_cv2_and_torch_do(size):
    import cv2

    tool = load_tool('deployment/run.py')
    image = np.random.RandomState(0).randint(0, 256, (97, 131, 3), dtype=np.uint8)
    ours = tool.resize_bilinear(image, *size)
    assert np.abs(ours - cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)).max() <= 1.01
    planes = torch.tensor(image).permute(2, 0, 1)[None].float()
    for corners in (False, True):
        expected = torch.nn.functional.interpolate(planes, size, mode='bilinear', align_corners=corners)
        found = tool.resize_bilinear(image.astype(np.float32), *size, align_corners=corners)
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), atol=1e-2)


def test_pipelines_are_described():
    cfg = Config.fromfile(ROOT / 'configs/classification/rmt-tiny_8xb128_in1k.py')
    assert describe_pipeline(cfg.test_dataloader.dataset.pipeline) == [
        dict(op='resize_edge', size=256, filter='bicubic'),
        dict(op='center_crop', size=[224, 224]),
    ]
    cfg = Config.fromfile(ROOT / 'configs/detection/retinanet_rmt-t_fpn_amp-1x_coco.py')
    assert describe_pipeline(cfg.test_dataloader.dataset.pipeline) == [
        dict(op='resize', scale=[1333, 800], keep_ratio=True)
    ]
    assert describe_pipeline([dict(type='LoadImageFromFile'), dict(type='Rot90')]) is None
    assert describe_pipeline([dict(type='Resize', scale=(8, 8), interpolation='bicubic')]) is None


def test_classifier_pictures_are_prepared_as_mmpretrain_does():
    from mmpretrain.registry import TRANSFORMS

    tool = load_tool('deployment/run.py')
    image = np.random.RandomState(0).randint(0, 256, (131, 97, 3), dtype=np.uint8)
    for picture in (image, np.ascontiguousarray(image.transpose(1, 0, 2))):
        pipeline = [
            dict(type='ResizeEdge', scale=80, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=64),
        ]
        expected, found = dict(img=picture, img_shape=picture.shape[:2]), picture
        for transform in pipeline:
            expected = TRANSFORMS.build(dict(transform))(expected)
        for step in describe_pipeline(pipeline):
            found = tool.STEPS[step['op']](found, step)
        np.testing.assert_array_equal(found, expected['img'])


# Detectors.


def dense_config(name):
    cfg = Config.fromfile(ROOT / f'configs/detection/{name}.py')
    arch = dict(LEAST_ARCH, _delete_=True)
    cfg.merge_from_dict(dict(model=dict(backbone=dict(arch=arch), neck=dict(out_channels=64))))
    channels = list(LEAST_ARCH['embed_dims'][-len(cfg.model.neck.in_channels) :])
    cfg.model.neck.in_channels = channels
    cfg.model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1, num_classes=3)
    cfg.model.test_cfg.update(nms_pre=50, score_thr=0.0)
    return cfg


@pytest.mark.parametrize('with_file', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['graph', 'file'])
@pytest.mark.parametrize('name', ['retinanet_rmt-t_fpn_amp-1x_coco', 'fcos_rmt-t_fpn_gn-head_amp-1x_coco'])
def test_dense_detectors(name, with_file, tmp_path):
    from mmdet.structures import DetDataSample

    pytest.importorskip('mmdet.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(dense_config(name).model).eval()
        model.init_weights()
        for parameter in model.bbox_head.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    prepare = Preparation(read_preprocessor(model.data_preprocessor), False)
    graph = detector_graph(model, prepare).eval()
    image = prepare.example(1, 70, 90)
    meta = dict(img_shape=(70, 90), ori_shape=(70, 90), scale_factor=(1.0, 1.0), batch_input_shape=(96, 96))
    with torch.no_grad():
        [sample] = model.predict(prepare(image), [DetDataSample(metainfo=meta)], rescale=False)
        outs = graph(image)
    found = sample.pred_instances
    assert len(found) > 20
    for out, expected in zip(outs, (found.bboxes, found.scores, found.labels)):
        torch.testing.assert_close(out, expected)
    if not with_file:
        return
    path = str(tmp_path / 'a.onnx')
    write_onnx(graph, prepare.example(1, 64, 96), path, True, 17, {})
    assert 'NonMaxSuppression' in operators(onnx.load(path))
    for out, expected in zip(run_onnx(path, image), outs):
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-3)


def test_features_of_a_graph_are_those_of_mmdet():
    """Boxes of every level, in mixed order, get the features that mmdet's extractor gives them."""
    models = pytest.importorskip('mmdet.models')
    layer = dict(type='RoIAlign', output_size=5, sampling_ratio=0)
    extractor = models.SingleRoIExtractor(layer, out_channels=3, featmap_strides=[4, 8, 16, 32])
    maps = [torch.rand(1, 3, 512 // stride, 512 // stride) for stride in (4, 8, 16, 32)]
    sides = torch.tensor([300.0, 20, 130, 500, 60, 250])
    boxes = torch.stack([torch.full_like(sides, 5), torch.full_like(sides, 3), 5 + sides, 3 + sides], dim=1)
    expected = extractor(tuple(maps), torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1))
    torch.testing.assert_close(pool(extractor, maps, boxes), expected)


def test_the_graph_of_mask_rcnn_finds_what_mmdet_finds(files, picture):
    image = np.array(Image.open(picture))[:96, :128].repeat(2, 0)[:160]
    image = np.ascontiguousarray(np.resize(image, (160, 160, 3)))  # which the pipeline leaves as it is
    with DefaultScope.overwrite_default_scope('mmdet'):
        predictor = predictor_of(files, 'mmdet')
        found = predictor.predict(image).pred_instances
    model = predictor.model
    graph = detector_graph(model, Preparation(read_preprocessor(model.data_preprocessor), True)).eval()
    with torch.no_grad():
        boxes, scores, labels, masks = graph(torch.tensor(image[None]))
    assert len(found) > 10
    for out, expected in zip((boxes, scores, labels), (found.bboxes, found.scores, found.labels)):
        torch.testing.assert_close(out, expected)
    paste = load_tool('deployment/run.py').paste_mask
    for box, mask, expected in zip(boxes.numpy(), masks.numpy(), np.asarray(found.masks)):
        assert (np.mean((paste(mask, box, 160, 160) >= 0.5) != expected)) < 1e-3


@pytest.mark.slow
def test_a_detector_without_detections(files, tmp_path):
    """No box is above the threshold: every output has no row, and no operator fails."""
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = predictor_of(files, 'mmdet').model
        model.test_cfg.rcnn.score_thr = 0.99
        graph = detector_graph(model, Preparation(read_preprocessor(model.data_preprocessor), True)).eval()
        with torch.no_grad():
            assert [len(out) for out in graph(image)] == [0, 0, 0, 0]
        path = str(tmp_path / 'a.onnx')
        write_onnx(graph, image, path, True, 17, {})
    assert [out.shape for out in run_onnx(path, image)] == [(0, 4), (0,), (0,), (0, 28, 28)]


@pytest.mark.slow
@pytest.mark.parametrize('head', ['upernet', 'segformer'])
def test_other_segmentors_at_another_size(head, tmp_path):
    """UPerNet pools maps into grids, SegFormer resizes them: layers of which recorders fix the sizes."""
    pytest.importorskip('mmseg.utils').register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(ROOT / f'configs/segmentation/rmt-tiny_{head}_8xb2-amp-160k_ade20k-512x512.py')
    channels = list(LEAST_ARCH['embed_dims'])
    cfg.merge_from_dict(dict(model=dict(backbone=dict(arch=dict(LEAST_ARCH, _delete_=True)))))
    cfg.model.decode_head.update(in_channels=channels, channels=16, num_classes=5)
    if cfg.model.get('auxiliary_head'):
        cfg.model.auxiliary_head.update(in_channels=channels[2], channels=16, num_classes=5)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    prepare = Preparation(read_preprocessor(model.data_preprocessor), True)
    image = prepare.example(2, 97, 131)
    with torch.no_grad():  # the library's own, before any layer is replaced
        expected = torch.stack([sample.seg_logits.data for sample in model.predict(prepare(image))])
    path = str(tmp_path / 'a.onnx')
    write_onnx(segmentor_graph(model, prepare).eval(), prepare.example(2, 64, 96), path, True, 17, {})
    np.testing.assert_allclose(run_onnx(path, image)[0], expected.numpy(), atol=1e-4)


# Mistakes.


@pytest.mark.parametrize(
    'args, words',
    [
        (['--format', 'tflite'], '--format tflite is not known: choose one of onnx, openvino'),
        (['--opset', '99'], '--opset 99 cannot be written: choose from 17 to 20'),
        (['--out', 'a.pth'], '--out a.pth: the name of a file of onnx ends in .onnx'),
        (['--out', '/nowhere/a.onnx'], '/nowhere/a.onnx cannot be written'),
        (['--shape', '0', '5'], '--shape and --batch must be positive'),
        (['--batch', '2'], '--batch 2: a whole detector takes one image at a time'),
        (['--format', 'torch-export'], 'the number of boxes depends on values'),
        (['--arch', 'tiny'], '--arch takes at most a checkpoint of the backbone'),
        (['--cfg-options', 'model.test_cfg.rcnn.nms.type=soft_nms'], 'nms of type soft_nms, for which ONNX has no'),
    ],
)
def test_mistakes_are_one_sentence(args, words, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        export(monkeypatch, *files['mmdet'], *args)
    assert words in str(stop.value.code) and '\n' not in str(stop.value.code)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='does not hold the whole model'):
        export(monkeypatch, files['mmdet'][0], files['mmseg'][1])
    with pytest.raises(SystemExit, match='does not exist'):
        export(monkeypatch, files['mmdet'][0], 'none.pth')
    (tmp_path / 'mmdet.onnx').touch()
    with pytest.raises(SystemExit, match='mmdet.onnx exists already: name another file with --out, or .* --force'):
        export(monkeypatch, *files['mmdet'])
    with pytest.raises(SystemExit, match='name a config and a checkpoint'):
        export(monkeypatch)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(SystemExit, match=r'pip install "rmt-mm\[deploy\]" installs it'):
        export(monkeypatch, *files['mmdet'], '--format', 'openvino')


def test_a_file_that_computes_something_else_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = run_onnx
    wrong = dict(tool.RUNNERS, onnx=lambda path, image: [out * 1.01 for out in real(path, image)])
    monkeypatch.setattr(tool, 'RUNNERS', wrong)
    with pytest.raises(SystemExit, match='does not compute what PyTorch computes .* not kept'):
        export(monkeypatch, *files['mmpretrain'], '--shape', 32, 32)
    assert not list(tmp_path.iterdir())


def rewrite(path, new, **changes):
    """Copy an ONNX file with other metadata or another opset."""
    model = onnx.load(path)
    if 'opset' in changes:
        model.opset_import[0].version = changes.pop('opset')
    meta = {entry.key: entry.value for entry in model.metadata_props}
    kept = {key: value for key, value in {**meta, **changes}.items() if value is not None}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, str(new))


@pytest.mark.parametrize(
    'changes, words',
    [
        ('no onnx', 'cannot be loaded as an ONNX model'),
        ('missing', 'a.onnx does not exist'),
        (dict(opset=9999), 'update it, or export with a lower --opset'),
        (dict(classes=None), 'has no metadata of export.py (classes missing)'),
        (dict(classes='{'), 'has no metadata of export.py'),
        (dict(task='"features"'), 'computes features, not predictions'),
        (dict(pipeline='null'), 'does not say how pictures are resized'),
    ],
)
def test_run_names_what_is_wrong_with_a_model(changes, words, models, picture, tmp_path, monkeypatch):
    path = tmp_path / 'a.onnx'
    if changes == 'no onnx':
        path.write_bytes(b'no onnx' * 100)
    elif changes != 'missing':
        rewrite(models('mmpretrain'), path, **changes)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, path, picture, '--out-dir', tmp_path / 'out')
    assert words in str(stop.value.code) and '\n' not in str(stop.value.code)


def test_run_skips_pictures_that_do_not_fit(files, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export(monkeypatch, *files['mmpretrain'], '--shape', 120, 150, '--normalize')
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    (pictures / 'a.png').write_bytes(picture.read_bytes())
    (pictures / 'broken.jpg').write_bytes(b'no picture')
    Image.new('L', (40, 30)).save(pictures / 'small.png')
    run(monkeypatch, 'mmpretrain.onnx', pictures)
    done = capsys.readouterr()
    assert '1 predicted, 2 skipped: outputs' in done.out
    assert 'the model takes 1 x 120 x 150 x 3, the picture is 1 x 30 x 40 x 3: export with --dynamic' in done.err
    assert 'broken.jpg: cannot identify' in done.err
    with pytest.raises(SystemExit, match='holds the pictures themselves'):
        run(monkeypatch, 'mmpretrain.onnx', pictures, '--out-dir', pictures)
    with pytest.raises(SystemExit, match='there is no such picture'):
        run(monkeypatch, 'mmpretrain.onnx', tmp_path / 'none')


def test_cascades_name_the_route_that_remains():
    pytest.importorskip('mmdet.utils').register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(ROOT / 'configs/detection/mask2former_rmt-t_8xb2-lsj-50e_coco.py')
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(cfg.model)
    with pytest.raises(UsageError, match='Mask2Former .* cannot be exported whole: export .* --part features'):
        detector_graph(model, Preparation(ImageNorm(), False))
