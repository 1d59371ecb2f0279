"""Edits that break the package, and the tests that must fail: a row is (name, file, old text, new text, tests).

The old text occurs in its file exactly once. Keep it short, so that few changes of the file make a row out of date.
Tests are arguments of pytest, which runs the fast tests unless they contain ``-m slow``.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A named edit of one file, and the tests that must fail with it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def _group(file, tests, *rows):
    """Return the mutants of a file; a row's own tests, if it has any, replace those of the group."""
    return [Mutant(row[0], file, row[1], row[2], row[3] if len(row) > 3 else tests) for row in rows]


RECIPES = 'tests/configs/test_recipes_against_libraries.py'
SCHEDULES = 'tests/configs/test_schedules.py'
BACKBONE = 'tests/backbone/test_backbone.py'
FORMS = 'tests/backbone/test_forms.py'
PARITY = 'tests/backbone/test_parity.py'
KERNELS = 'tests/ops/test_kernels.py'
TRITON = 'tests/ops/test_triton.py'
DISPATCH = 'tests/ops/test_dispatch.py'
OBSERVERS = 'tests/backbone/test_observers.py'
DEPLOY = 'tests/backbone/test_deploy.py'
CLS_HEAD = 'tests/classification/test_classification_head.py'
CLS_RECIPES = 'tests/classification/test_classification_recipes.py'
TOKEN_CLASSIFIER = 'tests/classification/test_token_label_classifier.py'
TOKEN_DATA = 'tests/classification/test_token_label_data.py'
TOKEN_GEOMETRY = 'tests/classification/test_token_label_geometry.py'
TOKEN_TOOL = 'tests/classification/test_token_label_tool.py'
OFFICIAL = 'tests/checkpoints/test_official.py'
CONVERTER = 'tests/checkpoints/test_converter.py'
PROCESS = 'tests/checkpoints/test_process.py'
SAFETY = 'tests/checkpoints/test_safety.py'
DATA_CHECK = 'tests/training/test_data_check.py'
TOOLS = 'tests/cli/test_tools.py'
OPTIONS = 'tests/cli/test_options_take_effect.py'
REPORT = 'tests/report/test_report.py'
RESUMING = 'tests/cli/test_resuming.py'
PROPERTIES = 'tests/backbone/test_properties.py'
FAULTS = 'tests/training/test_faults.py'
COCO_CHECK = 'tests/training/test_coco_check.py'
FUZZ = 'tests/test_fuzz.py'
EXPORTED = 'tests/ops/test_exported.py'

_MODELS, _DATASETS, _SCHEDULES = (f'configs/_base_/{folder}' for folder in ('models', 'datasets', 'schedules'))

MUTANTS = [
    # Recipes
    *_group(
        f'{_DATASETS}/ade20k_512x512.py',
        RECIPES,
        ('ADE20K: background is a class', "dataset_type = 'ADE20KDataset'", "dataset_type = 'BaseSegDataset'"),
        (
            'ADE20K: the test resize distorts',
            "dict(type='Resize', scale=(2048, 512), keep_ratio=True)",
            "dict(type='Resize', scale=(2048, 512))",
        ),
        (
            'ADE20K: validation on the training images',
            "data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')",
            "data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')",
        ),
        (
            'ADE20K: label 0 is not taken away',
            "data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')",
            'reduce_zero_label=False, '
            "data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')",
        ),
        ('ADE20K: crops of one class', 'cat_max_ratio=0.75', 'cat_max_ratio=1.0'),
    ),
    *_group(
        f'{_DATASETS}/coco_instance.py',
        RECIPES,
        (
            'COCO: validation on the training annotations',
            "ann_file='annotations/instances_val2017.json'",
            "ann_file='annotations/instances_train2017.json'",
        ),
        ('COCO: validation on the training images', "img='val2017/'", "img='train2017/'"),
        ('COCO: small images are left out', 'min_size=32', 'min_size=320'),
        ('COCO: empty images are kept', 'filter_empty_gt=True', 'filter_empty_gt=False'),
        ('COCO: boxes alone are evaluated', "metric=['bbox', 'segm']", "metric=['bbox']"),
    ),
    *_group(
        f'{_DATASETS}/coco_instance_ms-crop.py',
        RECIPES,
        ('COCO 3x: fewer scales', 'range(480, 801, 32)', 'range(480, 800, 32)'),
        ('COCO 3x: another crop', 'crop_size=(384, 600)', 'crop_size=(384, 500)'),
    ),
    *_group(
        f'{_DATASETS}/imagenet.py',
        RECIPES,
        ('ImageNet: validation on the training images', "split='val'", "split='train'"),
        (
            'ImageNet: bilinear test images',
            "edge='short', backend='pillow', interpolation='bicubic'",
            "edge='short', backend='pillow', interpolation='bilinear'",
        ),
        ('ImageNet: weaker RandAugment', 'magnitude_level=9', 'magnitude_level=7'),
        ('ImageNet: erasing in one colour', "mode='rand'", "mode='const'"),
        ('ImageNet: no repeated augmentation', 'num_repeats=3', 'num_repeats=1'),
    ),
    *_group(
        f'{_MODELS}/fpn_rmt.py',
        RECIPES,
        ('Semantic FPN: padding is a class', 'seg_pad_val=255', 'seg_pad_val=0'),
        ('Semantic FPN: means in BGR', 'mean=[123.675, 116.28, 103.53]', 'mean=[103.53, 116.28, 123.675]'),
        ('Semantic FPN: sliding test', "mode='whole'", "mode='slide'"),
    ),
    *_group(
        f'{_MODELS}/upernet_rmt.py',
        RECIPES,
        ('UperNet: images in BGR', 'bgr_to_rgb=True', 'bgr_to_rgb=False'),
        ('UperNet: auxiliary loss', 'loss_weight=0.4', 'loss_weight=1.0'),
    ),
    *_group(
        f'{_MODELS}/mask-rcnn_rmt_fpn.py',
        RECIPES,
        ('Mask R-CNN: images in BGR', 'bgr_to_rgb=True', 'bgr_to_rgb=False'),
        ('Mask R-CNN: anchors of half the size', 'scales=[8]', 'scales=[4]'),
        ('Mask R-CNN: overlap of positives', 'pos_iou_thr=0.5', 'pos_iou_thr=0.6'),
        ('Mask R-CNN: spread of box targets', 'target_stds=[0.1, 0.1, 0.2, 0.2]', 'target_stds=[1., 1., 1., 1.]'),
        ('Mask R-CNN: least score', 'score_thr=0.05', 'score_thr=0.5'),
        (
            'Mask R-CNN: suppression',
            "score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5)",
            "score_thr=0.05, nms=dict(type='nms', iou_threshold=0.7)",
        ),
        ('Mask R-CNN: masks not padded', 'pad_mask=True', 'pad_mask=False'),
    ),
    *_group(
        f'{_MODELS}/cascade-mask-rcnn_rmt_fpn.py',
        RECIPES,
        ('Cascade: stages of one overlap', 'pos_ious = (0.5, 0.6, 0.7)', 'pos_ious = (0.5, 0.5, 0.5)'),
        ('Cascade: GIoU loss', 'loss_weight=10.0', 'loss_weight=1.0'),
        ('Cascade: weights of stages', '[1, 0.5, 0.25]', '[1, 1, 1]'),
    ),
    *_group(
        f'{_MODELS}/retinanet_rmt_fpn.py',
        RECIPES,
        ('RetinaNet: anchor scale', 'octave_base_scale=4', 'octave_base_scale=8'),
        ('RetinaNet: extra levels', "add_extra_convs='on_input'", "add_extra_convs='on_output'"),
        ('RetinaNet: suppression', 'iou_threshold=0.5', 'iou_threshold=0.6'),
    ),
    *_group(
        f'{_MODELS}/rmt_cls.py',
        RECIPES,
        ('classifier: Mixup', "dict(type='Mixup', alpha=0.8)", "dict(type='Mixup', alpha=0.2)"),
        ('classifier: no label smoothing', 'label_smooth_val=0.1', 'label_smooth_val=0.01'),
    ),
    *_group(
        f'{_SCHEDULES}/seg_upernet_160k.py',
        f'{SCHEDULES} -k polynomial',
        ('UperNet: the decay begins after the warm-up', 'begin=0, end=160001', 'begin=1500, end=160001'),
        ('UperNet: the decay ends an iteration early', 'end=160001', 'end=160000'),
        ('UperNet: the warm-up ends an iteration early', 'end=1501', 'end=1500'),
        ('UperNet: loss scale', 'loss_scale=512.', "loss_scale='dynamic'", RECIPES),
    ),
    *_group(
        f'{_SCHEDULES}/seg_fpn_80k.py',
        f'{SCHEDULES} -k polynomial',
        ('Semantic FPN: power', 'power=0.9', 'power=1.0'),
        ('Semantic FPN: lowest rate', 'eta_min=1e-6', 'eta_min=1e-5'),
    ),
    *_group(
        f'{_SCHEDULES}/det_1x.py',
        f'{SCHEDULES} -k steps',
        ('COCO 1x: warm-up', 'start_factor=0.001', 'start_factor=0.01'),
        ('COCO 1x: steps', 'milestones=[8, 11]', 'milestones=[8, 10]'),
        (
            'COCO 1x: norms are decayed',
            "paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)})",
            'paramwise_cfg=dict()',
            RECIPES,
        ),
    ),
    *_group(
        f'{_SCHEDULES}/cls_300e.py',
        f'{SCHEDULES} -k cosine',
        ('ImageNet: the cosine begins after the warm-up', 'begin=0, end=300', 'begin=5, end=300'),
        ('ImageNet: warm-up', 'begin=0, end=5', 'begin=0, end=10'),
        ('ImageNet: biases are decayed', 'bias_decay_mult=0.', 'bias_decay_mult=1.', RECIPES),
        ('ImageNet: raw weights are not evaluated', 'evaluate_on_origin=True', 'evaluate_on_origin=False', RECIPES),
    ),
    *_group(
        'configs/detection/mask-rcnn_rmt-l_fpn_amp-1x_coco.py', RECIPES, ('Mask R-CNN L: rate', 'lr=2e-4', 'lr=4e-4')
    ),
    # The recipes without the libraries' own configs
    *_group(
        f'{_DATASETS}/coco_instance.py',
        'tests/configs/test_configs.py -k detection',
        (
            'COCO: the test resize distorts',
            """test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True)""",
            """test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(1333, 800), keep_ratio=False)""",
        ),
    ),
    *_group(
        f'{_MODELS}/mask-rcnn_rmt_fpn.py',
        'tests/configs/test_configs.py -k detection',
        ('Mask R-CNN: proposals of a low overlap', 'pos_iou_thr=0.7', 'pos_iou_thr=0.5'),
        ('Mask R-CNN: means in BGR', 'mean=[123.675, 116.28, 103.53]', 'mean=[103.53, 116.28, 123.675]'),
    ),
    *_group(
        f'{_MODELS}/upernet_rmt.py',
        'tests/configs/test_configs.py -k segmentation',
        ('UperNet: padding is a class', 'seg_pad_val=255', 'seg_pad_val=0'),
    ),
    # Attention, position, layers
    *_group(
        'rmt_mm/arch.py',
        PARITY,
        (
            'unsorted out_indices',
            'tuple(sorted({index % num_stages for index in indices}))',
            'tuple(index % num_stages for index in indices)',
            BACKBONE,
        ),
        ('decay: the far end is reached', 'heads_range * i / num_heads', 'heads_range * i / max(1, num_heads - 1)'),
        (
            'rotation: without the endpoint',
            '10000 ** torch.linspace(0, 1, head_dim // 2',
            '10000 ** torch.linspace(0, 1 - 2 / head_dim, head_dim // 2',
        ),
        (
            'tiny: three stages decomposed',
            'mlp_ratios=(3, 3, 3, 3),\n        decomposed=(True, True, False, False)',
            'mlp_ratios=(3, 3, 3, 3),\n        decomposed=(True, True, True, False)',
            'tests/backbone/test_arch.py',
        ),
        ('swin: a of the other sizes', 'init_values=(1, 1, 1, 1)', 'init_values=(2, 2, 2, 2)'),
        ("no decay: the formula's", "if decay == 'none':", "if decay == 'nothing':", FORMS),
        (
            'options do not replace the arch',
            'given.update(options or {})',
            'given = {**(options or {}), **given}',
            FORMS,
        ),
        ('fields are not checked', "_check_keys('arch_options', options or {}, ())", 'pass', FORMS),
        (
            'base: FFN of stage 4',
            'heads_ranges=(5, 5, 6, 6),\n        mlp_ratios=(4, 4, 3, 3)',
            'heads_ranges=(5, 5, 6, 6),\n        mlp_ratios=(4, 4, 4, 3)',
        ),
        (
            'large: decay range',
            'heads_ranges=(6, 6, 6, 6)',
            'heads_ranges=(5, 5, 6, 6)',
            'tests/backbone/test_arch.py',
        ),
    ),
    *_group(
        'rmt_mm/backbone/attention.py',
        PARITY,
        (
            'blocks share the first decay that is learned',
            'if tables is None or self.log_rate is not None',
            'if tables is None',
            FORMS,
        ),
        ('LCE is always there', 'LCE(dim) if lce else None', 'LCE(dim)', FORMS),
        ('LCE of what is attended to', 'ops.to_image(v)', 'ops.to_image(out)'),
    ),
    *_group(
        'rmt_mm/ops/plain.py',
        'tests/ops/test_kernels.py tests/backbone/test_parity.py',
        ('decomposed attention: rows twice', 'call, q, k, rows, tables, 1)', 'call, q, k, rows, tables, 2)'),
        ('decomposed attention: columns of the values', 'call, q, k, rows, tables, 1)', 'call, q, k, v, tables, 1)'),
        ('attention: without rotation', 'if tables.prior.rotation:', 'if False:'),
        (
            'values: not those of the projection',
            'return out.flatten(3), v.flatten(3)',
            'return out.flatten(3), q.flatten(3)',
        ),
    ),
    *_group(
        'rmt_mm/ops/cpu.py',
        'tests/ops/test_kernels.py tests/backbone/test_parity.py',
        (
            'C++ attention: rows twice',
            'q, k, rows, tables.log_decay, 1, phases)',
            'q, k, rows, tables.log_decay, 2, phases)',
        ),
        ('C++ attention: without rotation', 'tables.phases() if tables.prior.rotation else None', 'None'),
        (
            'C++ attention: always rotated',
            'tables.phases() if tables.prior.rotation else None',
            'tables.phases()',
            FORMS,
        ),
    ),
    *_group(
        'rmt_mm/ops/dispatch.py',
        'tests/ops/test_dispatch.py',
        (
            'a pin of lines leaves attend alone',
            "if any(operator.startswith('attend_') for operator in resolved)",
            'if False',
        ),
    ),
    *_group(
        'rmt_mm/ops/plain.py',
        KERNELS,
        ('plain lines: columns are rows', 'if dim == 1:\n        q, k, v', 'if dim == 3:\n        q, k, v'),
        (
            'plain map: half the decay',
            '_attend(q, k, v, bias, tables).transpose(1, 2).unflatten(1',
            '_attend(q, k, v, bias / 2, tables).transpose(1, 2).unflatten(1',
        ),
        (
            'decay outside: renormalised',
            'scores.softmax(-1) * log_decay.exp()',
            '(scores + log_decay).softmax(-1)',
            FORMS,
        ),
        ('plain rotation: the other way', 'u0 * cos - u1 * sin', 'u0 * cos + u1 * sin'),
        (
            'plain rotation in the dtype of the model',
            'cos, sin = phases.unbind(-1)',
            'cos, sin = phases.to(x.dtype).unbind(-1)',
            f'{KERNELS} -k in_bf16',
        ),
        ('depthwise convolution without GELU', 'F.gelu(x) if gelu else x)', 'x)'),
        ('depthwise convolution without the residual', 'out.add_(image) if residual else out', 'out'),
        ('plain FFN without GELU', 'fc2(dwconv(F.gelu(fc1(x))))', 'fc2(dwconv(fc1(x)))'),
    ),
    *_group(
        'rmt_mm/ops/eager.py',
        KERNELS,
        ('large maps: no limit of memory', 'heads * (height * width) ** 2 <= MAX_BIAS_ELEMENTS', 'True', DISPATCH),
        (
            'large maps: keys are not counted backward',
            '(t.flip(1).flatten(1, 2).transpose(1, 2) for t in (k, v))',
            '(t.flatten(1, 2).transpose(1, 2) for t in (k, v))',
        ),
        (
            'large maps: a program for one size alone',
            'isinstance(q.shape[1], int) else',
            'True else',
            EXPORTED,
        ),
        ('large maps: a strict program for one size alone', 'if call.hides_symbols:', 'if False:', EXPORTED),
        (
            'complex rotation: the other way',
            '* torch.view_as_complex(phases.to(pairs.dtype))',
            '* torch.view_as_complex(phases.to(pairs.dtype)).conj()',
        ),
        (
            'complex rotation in the dtype of the model',
            'torch.promote_types(x.dtype, phases.dtype)',
            'x.dtype',
            f'{BACKBONE} -k bf16',
        ),
        ('complex rotation in a trace', 'return call.why_not_run() or None', 'return None', OBSERVERS),
        ('with_cp keeps everything', 'if not Call.of(x).needs_grad:', 'if True:', BACKBONE),
        (
            'with_cp draws another drop path',
            'use_reentrant=False, **options)',
            'use_reentrant=False, preserve_rng_state=False)',
            BACKBONE,
        ),
        ('hooks on the FFN fire twice', 'if with_cp and call.plain and', 'if with_cp and', OBSERVERS),
        ('the FFN keeps its maps', 'if with_cp and call.plain and', 'if False and', BACKBONE),
        ('the FFN in a trace', 'if call.exported or call.traced else None', 'if False else None', KERNELS),
        ('hooks of the FFN see no GELU', '    if call.plain:\n', '    if True:\n', KERNELS),
        ('the FFN by one kernel: no GELU', 'dwconv, x, dwconv.residual, True)', 'dwconv, x, dwconv.residual, False)'),
        ('the FFN by one kernel: no residual', 'dwconv, x, dwconv.residual, True)', 'dwconv, x, False, True)'),
    ),
    *_group(
        'rmt_mm/ops/cpu.py',
        KERNELS,
        (
            'Linear on the CPU is a product',
            'return call.why_not_run() if call.traced else None',
            "return 'never'",
        ),
        ('Linear of another class is not called', 'if not call.plain:', 'if False:'),
        (
            'compiled maps of one image are copied',
            'if len(x) == 1 and x.is_contiguous()',
            'if len(x) == 0',
            'tests/backbone/test_compile.py -m slow -k strides',
        ),
        ('gradients of a 1x1 convolution', 'if call.grad else None', 'if False else None', DISPATCH),
        (
            'gradients in bf16 stay in bf16',
            "return tables.why_plain() or call.why_not_run() or None\n\n\n@kernel('attend_lines', 'float32'",
            "return 'never'\n\n\n@kernel('attend_lines', 'float32'",
            f'{KERNELS} -k float32',
        ),
    ),
    *_group(
        'rmt_mm/ops/cuda.py',
        f'{KERNELS} -k flex',
        (
            'FlexAttention: distance along one axis',
            '((y[i] - y[j]).abs() + (x[i] - x[j]).abs())',
            '((y[i] - y[j]).abs() + (y[i] - y[j]).abs())',
        ),
        ('Triton for small batches', '>= MIN_TOKENS else', '>= 0 else', TRITON),
        ('Triton in training, unasked', 'if call.needs_grad or call.compiled:', 'if False:', TRITON),
        ('Triton for fp32', 'not in (torch.float16, torch.bfloat16)', 'in ()', TRITON),
        ('Triton in an exported program', 'if call.exported or call.traced else None', 'if False else None', TRITON),
    ),
    *_group(
        'rmt_mm/ops/triton_masa.py',
        TRITON,
        ('Triton: the decay grows', 'distance.to(tl.float32) * decay', '-distance.to(tl.float32) * decay'),
        ('Triton: a key too many', 'tl.where(j[None, :] < n,', 'tl.where(j[None, :] < n + 1,'),
        ('Triton: one tile of many', 'one_block = logsum.shape[-1] <= MAX_BLOCK', 'one_block = True'),
        ('Triton: channels apart', 'return t if t.stride(4) == 1 else t.contiguous()', 'return t'),
        ('Triton: gradients without their mean', '- mean[:, None]\n        grad_logits', '\n        grad_logits'),
        (
            'Triton: second gradients in silence',
            'if torch.is_grad_enabled():  # create_graph',
            'if False:  # create_graph',
        ),
        (
            'Triton: compilers see the other line',
            'lines = (height, width) if dim == 2',
            'lines = (width, height) if dim == 2',
        ),
    ),
    *_group(
        'rmt_mm/ops/dispatch.py',
        DISPATCH,
        ('pins stay after their context', '        _PINNED.clear()\n', '        pass\n'),
        ('a pin is only a wish', '(pinned,) if pinned else PRIORITY[operator]', 'PRIORITY[operator]'),
        ('a pinned kernel may find a call too small', 'if reason is None and not pinned:', 'if reason is None:'),
        ('attend is no group', "(operator, operator.split('_')[0])", '(operator,)'),
        ('the environment variable is not read', "read_pins(os.environ.get(VARIABLE, ''))", "read_pins('')"),
        (
            'reasons are forgotten',
            'reasons = (*reasons, (name, reason))',
            'reasons = ((name, reason),)',
            DISPATCH,
        ),
    ),
    *_group(
        'rmt_mm/ops/tables.py',
        PARITY,
        ('Chebyshev: Euclidean', "norm = 2 if self.prior.distance == 'euclidean' else float('inf')", 'norm = 2', FORMS),
        ('kernels take every form', "return f'the decay is {decay}'", "return None and f'the decay is {decay}'", FORMS),
        ('a learned decay is cached', 'if makes_values() and not learned', 'if makes_values()', FORMS),
        (
            'decay: squared distance',
            'distance = (index[:, None] - index[None, :]).abs()',
            'distance = (index[:, None] - index[None, :]).square()',
        ),
        (
            'rotation: cosine and sine exchanged',
            'torch.stack((phase.cos(), phase.sin()), dim=-1)',
            'torch.stack((phase.sin(), phase.cos()), dim=-1)',
        ),
        (
            'tables of inference mode',
            'with torch.inference_mode(False), torch.no_grad():',
            'with torch.no_grad():',
            f'{BACKBONE} -k tables',
        ),
        ('tables: rows for columns', "('row', self.width) if dim == 2", "('row', self.height) if dim == 2", KERNELS),
        ('tables: of the first dtype', ' or self._tables[name].dtype != dtype', '', DISPATCH),
    ),
    *_group(
        'rmt_mm/backbone/stem.py',
        PARITY,
        (
            'stem: no GELU before the last convolution',
            'norm_cfg, kernel), nn.GELU()]',
            'norm_cfg, kernel), nn.GELU() if in_channels < dim // 2 else nn.Identity()]',
        ),
        ('patch stem: the last pixels are cut off', 'if self.patch > 1:', 'if False:', FORMS),
        (
            'norm_cfg does not reach the convolutions',
            'build_norm_layer(norm_cfg, out_channels)[1]',
            "build_norm_layer(dict(type='BN'), out_channels)[1]",
            f'{BACKBONE} -k norm',
        ),
    ),
    *_group(
        'rmt_mm/backbone/layers.py',
        PARITY,
        ('a depthwise convolution without x', 'ops.dwconv(self, x, self.residual)', 'ops.dwconv(self, x)'),
        ('kernels call every depthwise convolution', '@ops.known\n', '', KERNELS),
    ),
    *_group(
        'rmt_mm/backbone/fold.py',
        DEPLOY,
        ('deploy: the norms of the stem stay', 'if isinstance(layer, nn.Conv2d):', 'if False:'),
        ('deploy: identity beside the centre', 'module.weight[:, :, 1, 1] += 1', 'module.weight[:, :, 0, 1] += 1'),
        (
            'deploy: BatchNorm without statistics is folded',
            'not isinstance(norm, _BatchNorm) or norm.running_mean is None',
            'not isinstance(norm, _BatchNorm)',
        ),
        ('deploy: LayerScale leaves the bias', 'projection.bias.mul_(gamma.flatten())', 'pass'),
        ('deploy: downsampling keeps its norm', 'elif isinstance(module, Downsample):', 'elif False:'),
        ('deploy: twice is not once', 'module.residual = False', 'pass'),
    ),
    *_group(
        'rmt_mm/backbone/block.py',
        BACKBONE,
        ('CPE is always there', 'ResidualDWConv(dim) if stage.cpe else nn.Identity()', 'ResidualDWConv(dim)', FORMS),
        (
            'eps of the first LayerNorm of a block',
            'self.norm1 = nn.LayerNorm(dim, eps=1e-6)',
            'self.norm1 = nn.LayerNorm(dim, eps=1e-8)',
        ),
        (
            'eps of the second LayerNorm of a block',
            'self.norm2 = nn.LayerNorm(dim, eps=1e-6)',
            'self.norm2 = nn.LayerNorm(dim, eps=1e-8)',
        ),
        ('drop path on attention alone', 'x + self.drop_path2(scale(', 'x + (scale('),
        ('drop path on the FFN alone', 'x + self.drop_path1(scale(', 'x + (scale('),
        ('with_cp does nothing', 'if self.with_cp else', 'if False else'),
        ('LayerScale of one branch', 'scale(self.gamma2, ', 'scale(None, '),
        ('layer_scale_init is ignored', 'float(layer_scale_init)', 'float(1e-6)'),
        (
            'every block makes its own tables',
            'else block(x, tables)',
            'else block(x)',
            'tests/backbone/test_compile.py -m slow -k once',
        ),
    ),
    *_group(
        'rmt_mm/backbone/openmmlab.py',
        BACKBONE,
        (
            'frozen stages: the stem learns',
            'frozen: List[nn.Module] = [self.stem] if self.frozen_stages >= 0 else []',
            'frozen: List[nn.Module] = []',
        ),
        ('frozen stages: one less', 'in range(self.frozen_stages):', 'in range(self.frozen_stages - 1):'),
        (
            'frozen stages: only gradients',
            '            module.eval()\n            module.requires_grad_(False)',
            '            module.requires_grad_(False)',
        ),
        ('norm_eval does nothing', 'if mode and self.norm_eval:', 'if False:'),
        ('norm_eval always', 'if mode and self.norm_eval:', 'if mode:'),
        (
            'layer depth: downsampling below its stage',
            'layer = sum(depths[: int(rest[0]) + 1]) + 1',
            'layer = sum(depths[: int(rest[0]) + 1])',
        ),
        (
            'layer depth: blocks of a stage at once',
            'layer = sum(depths[: int(rest[0])]) + int(rest[1]) + 1',
            'layer = sum(depths[: int(rest[0])]) + 1',
        ),
        (
            'an unused output leaves no gradient',
            'if self.training and dist.is_available() and dist.is_initialized():',
            'if False:',
        ),
        (
            'initialisation of another spread',
            "layer='Linear', std=0.02, bias=0.0)",
            "layer='Linear', std=0.1, bias=0.0)",
        ),
        (
            'init_cfg Pretrained loads nothing',
            '            if is_pretrained(cfg):',
            '            if False:',
            f'{OFFICIAL} -k init_cfg',
        ),
    ),
    *_group(
        'rmt_mm/ops/memory.py',
        'tests/ops/test_memory.py',
        ('maps are returned to the system', 'mallopt(M_MMAP_MAX, 0)', 'mallopt(M_MMAP_MAX, 65536)'),
        ("the user's settings are replaced", "or any(name.startswith('MALLOC_') for name in os.environ)", ''),
    ),
    *_group(
        'rmt_mm/ops/recorders.py',
        OBSERVERS,
        (
            'functional transforms take the eager shortcuts',
            'or torch._C._functorch.peek_interpreter_stack() is not None',
            '',
        ),
        ('hooks are not looked for', 'any(getattr(module, name, None) for name in _HOOKS)', 'False'),
        ('fake tables are cached', 'and _get_current_dispatch_mode() is None', ''),
        ('an adapted layer is known', 'type(layer) in _KNOWN', 'isinstance(layer, tuple(_KNOWN))', KERNELS),
    ),
    *_group(
        'rmt_mm/backbone/rmt.py',
        BACKBONE,
        ('eps of the output norms', 'nn.LayerNorm(dims[i]))', 'nn.LayerNorm(dims[i], eps=1e-6))'),
        ('drop path of a constant rate', 'drop_path_rate * i / max(1, num_blocks - 1)', 'drop_path_rate'),
        ('all stages run', 'range(self.out_indices[-1] + 1)', 'range(NUM_STAGES)'),
        (
            'outputs in channels-last memory',
            'out.permute(0, 3, 1, 2).contiguous() for out in',
            'out.permute(0, 3, 1, 2) for out in',
        ),
        (
            'with_cp in all stages',
            'for _ in range(stage.depth)],\n                recompute,',
            'for _ in range(stage.depth)],\n                any(self.with_cp),',
        ),
        ('the FFN keeps its maps all the same', 'layer_scale_init, ffn_with_cp) for', 'layer_scale_init) for'),
        ('masked tokens stay', 'x * (1 - mask) + ', 'x + '),
    ),
    *_group(
        'rmt_mm/backbone/attention.py',
        'tests/backbone/test_flops.py -k backbone',
        ('multiply-adds: one product of attention', 'return 2 * height * width', 'return height * width'),
        (
            'multiply-adds: decomposed attention as full',
            'height + width if self.decomposed else height * width',
            'height * width',
        ),
    ),
    *_group(
        'rmt_mm/tools/flops.py',
        'tests/backbone/test_flops.py -k backbone',
        ('multiply-adds: hooks stay', 'hook.remove()', 'pass', 'tests/backbone/test_flops.py -k hooks'),
    ),
    # Training
    *_group(
        'rmt_mm/training/layer_decay.py',
        'tests/configs/test_configs.py -k layer_decay',
        ('layer decay: one layer off', '(num_layers - 1 - layer)', '(num_layers - layer)'),
        ('layer decay: custom rates are lost', "group.get('lr', self.base_lr)", 'self.base_lr'),
        ('layer decay: any rate', 'or not 0 < rate <= 1', 'or not 0 <= rate'),
    ),
    # Classification
    *_group(
        'rmt_mm/classification/mix_token.py',
        TOKEN_CLASSIFIER,
        ('MixToken: another Beta', 'np.random.beta(alpha, alpha)', 'np.random.beta(2 * alpha, 2 * alpha)'),
        ('MixToken: always Beta(1, 1)', 'np.random.beta(alpha, alpha)', 'np.random.beta(1., 1.)'),
        ('MixToken: larger boxes', 'rand_bbox((height, width), lam)', 'rand_bbox((height, width), lam / 2)'),
        ('MixToken: height and width exchanged', 'rand_bbox((height, width), lam)', 'rand_bbox((width, height), lam)'),
        (
            'MixToken: the batch is not flipped',
            'torch.where(inside, x.flip(0), x)',
            'torch.where(inside, x.roll(1, 0), x)',
        ),
        ('MixToken: lam is the pasted share', 'return 1 - (y2 - y1)', 'return (y2 - y1)'),
    ),
    *_group(
        'rmt_mm/classification/classifier.py',
        TOKEN_CLASSIFIER,
        ('MixToken: alpha is ignored', 'draw_box(*tokens, self.mix_alpha)', 'draw_box(*tokens)'),
        ('MixToken: the box stays after a batch', '            self._mixed = None', '            pass'),
        ('MixToken: the head is not told', 'mixed=box)', 'mixed=None)'),
        (
            'MixToken: beside batch augmentations',
            "'batch_augments', None) is not None:",
            "'batch_augments', None) is 0:",
        ),
    ),
    *_group(
        'rmt_mm/classification/head.py',
        CLS_HEAD,
        ('head: pooled before the norm', 'F.silu(self.norm(x)).mean((2, 3))', 'F.silu(self.norm(x).mean((2, 3)))'),
        ('head: another activation', 'F.silu(', 'F.gelu('),
        ('token labels: the whole auxiliary head at inference', '+ 0.5 * self.aux_logits', '+ 1.0 * self.aux_logits'),
        ('token labels: the mean of tokens at inference', '.amax((2, 3))', '.mean((2, 3))'),
        ('token labels: weight of the auxiliary loss', 'loss_aux=self.aux_weight', 'loss_aux=self.cls_weight'),
        ('token labels: tokens stay mixed', 'aux_score = paste_flipped(aux_score, mixed)', 'pass', TOKEN_CLASSIFIER),
        (
            'token labels: class targets stay unmixed',
            '(1 - kept) * class_target.flip(0)',
            '(1 - kept) * class_target',
            TOKEN_CLASSIFIER,
        ),
    ),
    *_group(
        'rmt_mm/classification/token_label.py',
        TOKEN_GEOMETRY,
        ('token labels: smoothing', '(1 - self.smoothing + off) + off', '(1 - self.smoothing) + off'),
        ('token labels: outside counts as the border', 'F.avg_pool2d(sampled * inside,', 'F.avg_pool2d(sampled,'),
        ('token labels: transforms in the wrong order', 'for matrix in reversed(matrices):', 'for matrix in matrices:'),
        ('token labels: one sample a cell', 'max(1, math.ceil(length - 1e-6))', '1'),
    ),
    *_group(
        'rmt_mm/classification/geometry.py',
        TOKEN_GEOMETRY,
        ('token labels: flips are not tracked', 'matrix[axis] = -matrix[axis]', 'matrix[axis] = matrix[axis]'),
        (
            'token labels: crops shifted the wrong way',
            '_shift(left / width, top / height)',
            '_shift(top / height, left / width)',
        ),
        ('token labels: half a pixel', '_shift(0.5, 0.5) @ backward @ _shift(-0.5, -0.5)', 'backward'),
        ('token labels: tracking draws random numbers', 'np.random.set_state(after)', 'pass'),
    ),
    *_group(
        'rmt_mm/classification/label_map.py',
        TOKEN_DATA,
        (
            'label maps: pickles are executed',
            'else safe_load(path)',
            'else torch.load(path, weights_only=False)',
            'tests/checkpoints/test_safety.py',
        ),
        ('label maps: any class', 'indices.max() >= num_classes', 'False'),
        ('label maps: scores are not shifted', 'scores = scores - rest', 'pass'),
        ('label maps: classes beyond fp16', 'if label_map[1].max() > 2048:', 'if False:'),
    ),
    *_group(
        'rmt_mm/classification/ema_hook.py',
        f'{CLS_RECIPES} -k ema',
        ('EMA: one process', "loader['batch_size'] * get_world_size()", "loader['batch_size']"),
        ('EMA: the batch size is ignored', 'batch_size / self.base_batch_size', '1'),
    ),
    *_group(
        'rmt_mm/classification/dataset.py', TOKEN_DATA, ('data: images without label maps', 'if missing:', 'if False:')
    ),
    *_group(
        'rmt_mm/classification/dense.py',
        TOKEN_TOOL,
        (
            'places of an image are transposed',
            'view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)',
            'view(len(x), *x.shape[2:], -1).permute(0, 3, 2, 1)',
        ),
    ),
    # Pictures of one's own
    *_group(
        'rmt_mm/tools/cli/images.py',
        'tests/cli/test_demo.py -k pictures',
        ('pictures: EXIF', 'return ImageOps.exif_transpose(image)', 'return image.copy()'),
        ('pictures: only those that Pillow reads', 'None if is_cut_off else cv2.imread(str(path))', 'None'),
        ('pictures: 16 bits', 'line * (255 / top)', 'line'),
        ('pictures: NaN and infinity set the scale', 'where=np.isfinite(values), initial=0', 'initial=0'),
        ('pictures: transparent pixels', "'white'), layers)", "'black'), layers)"),
    ),
    *_group(
        'rmt_mm/tools/cli/tiles.py',
        'tests/cli/test_demo.py -k tile',
        ('tiles: without overlap', 'size - overlap', 'size'),
        ('tiles: the border', '*range(0, last, size - overlap), last]', '*range(0, last, size - overlap)] or [0]'),
        ('tiles: over the larger area', 'np.minimum(areas[same], areas[i])', 'np.maximum(areas[same], areas[i])'),
    ),
    *_group(
        'rmt_mm/tools/cli/tiles.py',
        'tests/cli/test_demo.py -k masks_of_tiles',
        ('tiles: masks lie a column aside', '(columns.start + x) * height', '(columns.start + x + 1) * height'),
        (
            'tiles: masks are drawn nowhere',
            'part[inside > 0] = painted[inside > 0]',
            'pass',
            'tests/cli/test_demo.py -k objects_are_drawn',
        ),
    ),
    *_group(
        'rmt_mm/tools/cli/predictor.py',
        'tests/cli/test_demo.py -k tile',
        (
            'pictures: no memory ends in a traceback',
            'IndexError, MemoryError)',
            'IndexError)',
            'tests/cli/test_demo.py -k memory',
        ),
        ('tiles: boxes stay in their tile', '[columns.start, rows.start] * 2', '[0, 0] * 2'),
        ('tiles: boxes with x and y exchanged', '[columns.start, rows.start] * 2', '[rows.start, columns.start] * 2'),
        (
            'tiles: logits are not averaged over tiles',
            'total[:, rows, columns] += logits',
            'total[:, rows, columns] = logits',
        ),
        (
            'pictures: a part of a checkpoint',
            'report.watch(predictor.model, content)',
            'pass',
            'tests/cli/test_demo.py -k lack',
        ),
        (
            'pictures: names of other data',
            'or len(classes) != self.num_classes:',
            ':',
            'tests/cli/test_demo.py -k names',
        ),
        (
            'names of classes: a text is a list of names',
            'if not isinstance(classes, (list, tuple)) or',
            'if',
            'tests/webui/test_page.py -k list_of_names',
        ),
        (
            'names of classes: control characters',
            'list(map(printable, classes))',
            'list(map(str, classes))',
            'tests/webui/test_page.py -k are_text',
        ),
        ('names of classes: dollars are TeX', ".replace('$', r'\\$')", '', 'tests/webui/test_page.py -k are_text'),
    ),
    # The page to try a model
    *_group(
        'rmt_mm/tools/webui/trial.py',
        'tests/webui/test_page.py',
        ('page: two threads in the model', 'self.lock = threading.Lock()', 'self.lock = contextlib.nullcontext()'),
        ('page: any number of pixels', 'if width * height > self.max_pixels:', 'if False:'),
        ('page: formats that start programs', 'Image.open(path, formats=FORMATS)', 'Image.open(path)'),
        (
            'page: an error of the library',
            'except SIZE_ERRORS as error:',
            'except MemoryError as error:',
        ),
        ('page: every click computes again', 'result.recorded = {(stage, block): found}', 'pass'),
    ),
    *_group(
        'rmt_mm/tools/webui/page.py',
        'tests/webui/test_page.py',
        ('page: clicks of x and y exchanged', 'in zip(at.index,', 'in zip(at.index[::-1],'),
        ('page: names of files are HTML', '{escape(text)}</p>', '{text}</p>'),
        ('page: the mean for every head', 'None if head == MEAN else int(head)', 'None'),
    ),
    *_group(
        'rmt_mm/tools/webui/sizes.py',
        'tests/webui/test_page.py',
        ('page: boxes of the small picture', 'found.bboxes * times', 'found.bboxes'),
        ('page: the sample is enlarged itself', 'sample.pred_instances.clone()', 'sample.pred_instances'),
    ),
    *_group(
        'rmt_mm/tools/webui/attention.py',
        'tests/webui/test_page.py',
        ('page: heat where the model is blind', 'np.isnan(heat)[..., None], 0,', 'np.isnan(heat)[..., None], 1,'),
        ('page: maps of the transposed token', 'view.token(*pixel, stride)', 'view.token(*pixel[::-1], stride)'),
    ),
    *_group(
        'rmt_mm/tools/webui/listing.py',
        'tests/webui/test_page.py',
        ('page: names of classes are HTML', '{escape(name)}', '{name}'),
    ),
    *_group(
        'rmt_mm/tools/webui/server.py',
        'tests/webui/test_server.py',
        ('page: addresses are fetched', "'/proxy=' in path or", 'False and'),
        ('page: any name of the machine', 'if host in LOOPBACK:', 'if False:'),
        ('page: uploads of any size', 'max_file_size=int(max_megabytes * 1e6)', 'max_file_size=None'),
        ('page: the whole disk', 'share=False,', "share=False, allowed_paths=['/'],"),
        ('page: the port of another host', 'socket.create_server((host, port)', "socket.create_server(('', port)"),
    ),
    *_group(
        'rmt_mm/training/config_key.py',
        'tests/cli/test_config_mistakes.py',
        ('config key: the outermost part is named', 'found = _locate(values.get', 'found = key or _locate(values.get'),
        ('config key: _delete_ in a list', 'if any(part.isdigit()', 'if not any(part.isdigit()'),
        ('config key: _delete_ is unknown', "if refused and refused[1] == '_delete_':", 'if False:'),
        ('config key: constructor of other backbones', 'if isinstance(error, NotImplementedError) and', 'if False and'),
        ('config key: two selections of a loop', "if 'Only one of `type` or `by_epoch`' in text:", 'if False:'),
        ('config key: torch.fx', 'if key in SWITCHES:', 'if False:'),
        ('config key: another library', 'if _knows(registry, scope, unknown[1])', 'if False'),
    ),
    *_group(
        'rmt_mm/tools/cli/loop_settings.py',
        'tests/cli/test_config_mistakes.py',
        ('loops: incomplete', 'if missing and len(missing) < len(keys):', 'if False:'),
        ('loops: counts', 'value < 1):', 'False):'),
        ('loops: clipping', "if key != 'type' and key not in parameters:", 'if False:'),
        ('loops: unknown optimizer', 'registry.get(kind) is None:', 'False:'),
        ('loops: options for parameters', "(wrapper.get('paramwise_cfg') or {}) - PARAMWISE", '()'),
    ),
    *_group(
        'rmt_mm/tools/cli/saving.py',
        'tests/cli/test_config_mistakes.py',
        ('saving: a missing score', 'metrics[name] = None', 'pass'),
        ('saving: a score that no metric gives', 'if name not in given:', 'if False:'),
        ('saving: a score without its prefix', 'if not name.startswith(tuple(', 'if not name and not (('),
        ('saving: accuracies of several places', "names = [f'top{k}' for k in settings.topk]", "names = ['top1']"),
    ),
    *_group(
        'rmt_mm/tools/cli/loaders.py',
        'tests/cli/test_loaders.py',
        ('loaders: nothing is dropped', 'loader.pop(key)', 'loader[key]'),
    ),
    *_group(
        'rmt_mm/tools/cli/brief.py',
        'tests/cli/test_brief.py',
        ('brief: stdout after an error', 'sys.stdout = stdout', 'pass'),
        ('brief: everything is shown', 'handler.setLevel(logging.WARNING)', 'pass'),
        ('brief: an epoch with a validation has two lines', 'if not self._validates(runner):', 'if True:'),
    ),
    *_group(
        'rmt_mm/tools/analysis/attention_maps.py',
        'tests/analysis',
        ('maps: rows of the query alone', 'q[:, column], k)', 'q[row, column].expand_as(q[:, column]), k)'),
        ('maps: row and column bias exchanged', 'weights(to_columns, to_rows)', 'weights(to_rows, to_columns)'),
        ('maps: the softmax has the decay', 'weights(0, 0)', 'weights(to_columns, to_rows)'),
        ('maps: scores that are not scaled', 'q.float() * masa.head_dim**-0.5', 'q.float()'),
        ('maps: without LCE', 'received = received + masa.lce', 'received = received + 0 * masa.lce'),
        ('maps: hooks stay', 'handle.remove()', 'pass'),
    ),
    *_group(
        'rmt_mm/tools/analysis/view.py',
        'tests/analysis',
        ('view: without the window', '- self.top\n        x = (torch', '\n        x = (torch'),
        ('view: x and y exchanged', 'return x, y', 'return y, x'),
    ),
    # Checkpoints
    *_group(
        'rmt_mm/checkpoints/official_names.py',
        f'{OFFICIAL} {PARITY}',
        (
            'official names: query and key exchanged',
            "[parts[which] for which in 'qkv']",
            "[parts[which] for which in 'kqv']",
        ),
        (
            'official names: the norms of a block exchanged',
            "retention_layer_norm.*', 'stages.#.#.norm1.*'",
            "retention_layer_norm.*', 'stages.#.#.norm2.*'",
        ),
        (
            'official names: what is unknown is dropped',
            """            unknown.append(name)
        else:
            converted[new] = tensor""",
            """            continue
        else:
            converted[new] = tensor""",
            'tests/checkpoints',
        ),
        ('official names: positions of another decay', 'rtol=5e-3, atol=1e-5', 'rtol=5e3, atol=1e5'),
        ('official names: positions of another size', 'theirs.shape == ours.shape and', ''),
        ('official names: projections of different shapes', 'if len(set(shapes)) > 1 or () in shapes:', 'if False:'),
    ),
    *_group(
        'rmt_mm/checkpoints/state_dicts.py',
        CONVERTER,
        (
            'converter: the average instead of the raw weights',
            "('state_dict', 'model', 'model_ema')",
            "('state_dict', 'model_ema', 'model')",
        ),
        ('converter: missing tensors', 'missing = [name for name in wanted if name not in have]', 'missing = []'),
    ),
    *_group(
        'rmt_mm/checkpoints/official_model.py',
        CONVERTER,
        ('converter: stem of one channel', 'weight.sum(dim=1, keepdim=True)', 'weight.mean(dim=1, keepdim=True)'),
        ('converter: stem of four channels', '* (have / channels)', '* 1.0'),
        (
            'converter: positions of another decay',
            'check_position_buffers(parsed.backbone, arch)',
            'pass',
            'tests/checkpoints',
        ),
    ),
    *_group(
        'rmt_mm/checkpoints/loading.py',
        OFFICIAL,
        (
            'loading: what is missing or of another shape',
            '    if not problems:\n        return notes',
            '    return notes',
        ),
        (
            'loading: deployed files in an ordinary model',
            '    _check_form(spec, have, deploy)\n',
            '',
            'tests/checkpoints tests/cli/test_loading.py',
        ),
        (
            'loading: official files unconverted',
            'if is_official(state_dict):\n            state_dict, notes',
            'if False:\n            state_dict, notes',
        ),
        ('loading: models of others', '    require_rmt(below or state_dict)\n', '    pass\n'),
        ('loading: positions of another decay', '    check_position_buffers(part, spec.arch)\n', ''),
        (
            'loading: errors on official files in our names',
            'differences(official_shapes(needed), official_shapes(given)) if official else',
            '',
        ),
    ),
    *_group(
        'rmt_mm/checkpoints/files.py',
        CONVERTER,
        (
            'files: written in place',
            '    with replacing(path) as temporary:\n',
            '    for temporary in (path,):\n',
        ),
        ('files: replaced unasked', 'if osp.exists(path) and not force:', 'if False:'),
    ),
    # Reading mmengine's own files
    *_group(
        'rmt_mm/checkpoints/safe/load.py',
        SAFETY,
        (
            'files: pickles are executed',
            'map_location=map_location, weights_only=True',
            'map_location=map_location, weights_only=False',
            CONVERTER,
        ),
        ('files: damage is not looked for', 'while entry.CRC and file.read(2**20):', 'while False:', CONVERTER),
        ('files: bombs', '        if unpacked > limit:', '        if False:'),
        ('files: tensors larger than their file', '    if total > TENSOR_TIMES', '    if 0 > TENSOR_TIMES'),
    ),
    *_group(
        'rmt_mm/checkpoints/safe/process.py',
        SAFETY,
        (
            'files: what others have allowed stays forbidden',
            '            set_safe_globals(before)',
            '            pass',
        ),
        (
            'files: the switch stays off',
            "os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'",
            'pass',
            f'{CONVERTER} -k force_safe_loading',
        ),
        (
            'import: mmengine cannot resume',
            "    if not hasattr(checkpoint, 'get_torch_safe_globals'):\n",
            '    if False:\n',
            PROCESS,
        ),
    ),
    *_group(
        'rmt_mm/checkpoints/shapes.py',
        OFFICIAL,
        ('shapes: hidden channels of another ratio', 'int(stage.dim * stage.mlp_ratio)', '3 * stage.dim'),
        ('shapes: what a model computes is demanded', 'if name not in computed', 'if True'),
    ),
    *_group(
        'rmt_mm/atomic.py',
        'tests/test_atomic.py',
        ('atomic: not on the disk', 'os.fsync(file.fileno())', 'pass'),
        (
            'atomic: an earlier file without its companion',
            'key=lambda name: name == target',
            'key=lambda name: name != target',
        ),
        (
            'atomic: an incomplete file after an error',
            '        shutil.rmtree(temporary, ignore_errors=True)',
            '        pass',
        ),
    ),
    *_group(
        'rmt_mm/checkpoints/safe/unpickler.py',
        SAFETY,
        ('files: keys that take the stack', "require(not nested, 'tuples", "require(True, 'tuples"),
    ),
    *_group(
        'rmt_mm/checkpoints/safe/types.py',
        SAFETY,
        (
            "allowance: mmengine's history",
            "    _named('mmengine.logging.history_buffer.HistoryBuffer', _HistoryBuffer),\n",
            '',
            PROCESS,
        ),
        ('allowance: any attribute', "known and name in ('min', 'max', 'mean', 'current')", 'known'),
        ('allowance: any dtype', 'type(kind) is str and _PLAIN_KIND.fullmatch(kind) is not None', 'True'),
        ('allowance: data of another size', 'and len(data) == math.prod(shape) * dtype.itemsize', 'and True'),
        ('allowance: NumPy 1 alone', "for core in ('core', '_core')", "for core in ('core', )", PROCESS),
    ),
    *_group(
        'rmt_mm/errors.py',
        'tests/checkpoints',
        ('errors: unprintable characters', 'c if c.isprintable() else', 'c if True else'),
    ),
    # Data checks
    *_group(
        'rmt_mm/training/class_check.py',
        DATA_CHECK,
        ('data check: class counts', 'and given not in counts', 'and False'),
        ('data check: class weights', 'if len(weights) not in (1, given + background):', 'if False:'),
        ('data check: CLASSES in capitals', "if name in ('classes', 'palette') and", 'if False and'),
        ('data check: PALETTE stops', "ERROR if name == 'classes' else WARNING", 'ERROR'),
        ('data check: another order of classes', 'and name not in train[label : label + 1]]', 'and False]'),
    ),
    *_group(
        'rmt_mm/training/coco_check.py',
        'tests/training/test_coco_check.py',
        ('data check: ids of several files', 'twice = [key for key in own if key in yielded]', 'twice = []'),
        ('data check: crowds alone', 'all(check.learnable == 0 for check in checks)', 'False'),
    ),
    *_group(
        'rmt_mm/training/segmentor_check.py',
        'tests/training/test_segmentor_check.py',
        ('data check: labels of padding', 'labels.union(*batches) if weights', 'labels if weights'),
        ('data check: a constant loss', 'return None, bool(gradient.any())', 'return None, True'),
        ('data check: a last batch of one', '1 in (dataloader.batch_size, last)', '1 == dataloader.batch_size'),
    ),
    *_group(
        'rmt_mm/training/label_check.py',
        'tests/training/test_label_check.py',
        ('data check: ignored labels in a metric', '- {metric.ignore_index}', '- set(labels)'),
        ('data check: masks of 0 and 255', 'if stored == {0, 255} and', 'if False and'),
        ('accuracy: images without labels', '    if missing:', '    if False:'),
        ('accuracy: several labels', '    elif single and several:', '    elif False:'),
        ('accuracy: negative labels', '    elif single and negative:', '    elif False:'),
        ('accuracy: labels of an own transform', "if not modules <= {'mmpretrain', 'mmcv'}:", 'if False:'),
    ),
    *_group(
        'rmt_mm/training/findings.py',
        'tests/training/test_findings.py',
        ('data check: goes on behind an error', '            break', '            pass'),
        ('data check: an error is a note', '            raise kind(finding.text)', '            pass'),
    ),
    *_group(
        'rmt_mm/training/coco_check.py',
        'tests/training/test_coco_check.py -k twice',
        ('data check: both categories go', 'empty = empty[1:]', 'pass'),
        ('data check: the used category goes', 'if not count]', 'if count]'),
    ),
    *_group(
        'rmt_mm/training/image_size.py',
        'tests/training/test_coco_check.py -k image',
        ('data check: another orientation than stored', "flag='color_ignore_orientation'", "flag='color'"),
        ('data check: no word on the limit of pixels', 'if backend in limits and', 'if False and'),
    ),
    *_group(
        'rmt_mm/training/mask_check.py',
        'tests/training/test_coco_check.py',
        ('data check: run lengths of another total', 'if sum(counts) != size[0] * size[1]:', 'if False:'),
        ('data check: run lengths without a size', '    if not given:', '    if False:'),
        ('data check: run lengths left out with polygons', 'and not poly2mask', 'and False'),
    ),
    *_group(
        'rmt_mm/training/data_check.py',
        DATA_CHECK,
        ('data check: empty data sets', 'and len(dataset) == 0:', 'and False:'),
        ('data check: training alone', "self.check(runner, 'train', 'val')", "self.check(runner, 'train')"),
        ('data check: no test', "        self.check(runner, 'test')", '        pass'),
    ),
    # Command line
    *_group(
        'rmt_mm/tools/cli/config.py',
        OPTIONS,
        ('tools: pickles are executed', '    force_safe_loading()', '    pass'),
        (
            'tools: options do nothing',
            '    apply_options(cfg, args.cfg_options)',
            '    pass',
            f'{TOOLS} -k option_that',
        ),
        ('tools: folders that cannot be written', '_check_work_dir(cfg.work_dir)', 'pass', f'{TOOLS} -k work_dir'),
    ),
    *_group(
        'rmt_mm/tools/cli/cfg_options.py',
        'tests/cli/test_cfg_options.py',
        ('options: ingredients of a base', '    if places:', '    if False:'),
        ('options: misspelt names', '    if key not in cfg and close:', '    if False:'),
    ),
    *_group(
        'rmt_mm/tools/cli/data_files.py',
        'tests/cli/test_data_files.py',
        ('tools: missing files', 'not isinstance(path, str) or osp.exists(path):', 'True:'),
    ),
    *_group(
        'rmt_mm/tools/cli/options.py',
        OPTIONS,
        ('--amp does nothing', "wrapper['type'] = 'AmpOptimWrapper'", 'pass'),
        ('--auto-scale-lr does nothing', 'cfg.auto_scale_lr.enable = True', 'pass'),
        ('--tta: an ordinary model', 'cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)', 'pass'),
        ('--tta: ordinary images', "dataset['pipeline'] = cfg.tta_pipeline", 'pass'),
    ),
    *_group(
        'rmt_mm/tools/cli/runner.py',
        OPTIONS,
        ('CPU: SyncBN stays', "norm['type'] = 'BN'", 'pass'),
        ('CPU: AMP stays', "wrapper['type'] = 'OptimWrapper'", 'pass'),
    ),
    *_group(
        'rmt_mm/tools/cli/weights.py',
        'tests/cli/test_loading.py',
        (
            '--resume begins anew',
            'latest, passed = find_newest_whole(cfg)',
            'latest, passed = None, []',
        ),
        ('a test of half a model', "if self.use != 'start' and (lacking or reshaped):", 'if False:'),
        (
            'nothing to resume forgets load_from',
            "        if not cfg.get('load_from'):",
            '        if cfg.pop("load_from", None) or True:',
        ),
    ),
    *_group(
        'rmt_mm/tools/cli/resuming.py',
        RESUMING,
        ('--resume: a file that is cut off ends it', 'except (DamagedCheckpointError, FileNotFoundError)', 'except ()'),
        ('--resume: a copy resumes the original', 'last = record.parent / last.name', 'pass'),
        ('--resume: files of an earlier training', ' and path.stat().st_mtime >= written', ''),
        (
            '--resume: the file after the record is left',
            '[*newer, last,',
            '[last,',
        ),
        ('--resume: numbers sort as words', 'numbers[path] = int(match.group(1))', 'numbers[path] = match.group(1)'),
    ),
    *_group(
        'rmt_mm/tools/cli/saving.py',
        RESUMING,
        ('checkpoints are written in place', "part = f'{filepath}.part'", 'part = filepath'),
        ('the old checkpoint goes before the new one', 'self._outdated.append(filepath)', 'super().remove(filepath)'),
        ('the new best checkpoint is removed', 'if path != filepath and', 'if'),
    ),
    *_group(
        'rmt_mm/training/seed_hook.py',
        RESUMING,
        ('epochs are not seeded', 'seed = _seed(runner, runner.epoch)', 'seed = 0'),
        ('batches are not seeded', '_seed(self._runner, self._number)\n', 'pass\n'),
        (
            'persistent workers live on',
            'if self.restart and loader.persistent_workers',
            'if False',
            f'{RESUMING} -m slow -k draws',
        ),
    ),
    *_group(
        'rmt_mm/training/divergence.py',
        'tests/training/test_divergence.py',
        ('a NaN loss trains on', 'if names or self._count >= self.patience:', 'if False:'),
        ('NaN of two parts of a training add up', 'self._count = 0\n        if', 'if'),
        ('NaN weights are saved', 'self._check_weights(runner, runner.iter + 1)', 'pass'),
        ('no layer of an output is named', 'found.append(name)', 'pass'),
    ),
    *_group(
        'rmt_mm/training/faults.py',
        'tests/training/test_faults.py',
        (
            'mistakes in a transform lose their traceback',
            'isinstance(error, cv2.error) or type(transform)',
            'True or type(transform)',
        ),
        ('the image is named for a label map', 'keys.reverse()', 'pass'),
        ('a full disk has no sentence', 'if number in NO_SPACE:', 'if False:'),
    ),
    *_group(
        'rmt_mm/checkpoints/state_dicts.py',
        'tests/checkpoints/test_weight_values.py',
        ('weights of int8 are taken', '    if odd:\n        kind', '    if False:\n        kind'),
        ('NaN weights are not named', 'not tensor.isfinite().all()', 'False'),
    ),
    *_group(
        'rmt_mm/config_path.py',
        'tests/configs/test_configs.py -k by_name',
        ('bases are configs', "and path.parent.name != '_base_':", ':'),
    ),
    *_group(
        'rmt_mm/tools/cli/model_check.py',
        'tests/cli/test_model_check.py',
        ('tools: a neck that does not fit', 'problems = [_describe_neck(backbone, given, outs, error)]', 'return'),
        ('tools: strides of a head', 'if strides and not same_strides(strides, outs.strides):', 'if False:'),
    ),
    *_group(
        'rmt_mm/tools/commands/train.py',
        OPTIONS,
        ('--auto-scale-lr is not passed on', 'cli.use_auto_scale_lr(cfg)', 'pass'),
    ),
    *_group(
        'rmt_mm/tools/cli/runner.py',
        f'{OPTIONS} -k keeps',
        ('test: the config of the training is replaced', 'path.write_bytes(content)', 'pass'),
        ('test: the config with --tta is left', 'runner.cfg = cfg', 'pass', f'{OPTIONS} -k tta_leaves'),
    ),
    *_group(
        'rmt_mm/tools/commands/test.py',
        'tests/cli/test_loading.py -k several_data',
        ('test: predictions of several data sets are lost', 'if dump and dump.results:', 'if False:'),
    ),
    *_group(
        'rmt_mm/training/label_check.py',
        'tests/training/test_label_check.py -k Suffixes',
        ('suffixes: labels are images', 'else (suffixes, *labels)', 'else (suffixes,)'),
    ),
    *_group(
        'rmt_mm/training/class_check.py',
        'tests/training/test_segmentor_check.py -k softmax',
        ('one output: a sigmoid is refused', "    and not getattr(loss, 'use_sigmoid', False)\n", '\n'),
    ),
    *_group(
        'rmt_mm/tools/cli/options.py',
        'tests/cli/test_options.py tests/cli/test_options_take_effect.py -k palette',
        ('--show-dir: a short palette', 'len(palette) < len(classes)', 'False'),
    ),
    *_group('rmt_mm/tools/commands/test.py', OPTIONS, ('--tta does nothing', 'cli.use_tta(cfg)', 'pass')),
    *_group(
        'rmt_mm/tools/cli/measure.py',
        'tests/cli/test_measure.py',
        ("measuring: another's stochastic depth stays", 'module.p = 0.0', 'pass'),
    ),
    *_group(
        'rmt_mm/tools/cli/isolation.py',
        'tests/cli/test_isolation.py',
        ('isolation: a GPU is asked for before forking', "'torch.distributed.optim'", "'rmt_mm'"),
        ('isolation: a child outlives its caller', '    os._exit(1)', '    pass'),
    ),
    *_group(
        'tools/analysis_tools/gpu_report.py',
        'tests/cli/test_gpu_report.py',
        ('GPU report: any error passes', 'ours <= max(2 * its, 1e-4)', 'ours <= max(2 * its, 1e-1)'),
        ('GPU report: begins anew', '    results = read_results(path)\n', '    results = {}\n'),
    ),
    *_group(
        'rmt_mm/tools/deployment/inputs.py',
        'tests/deployment/test_exported_sizes.py -k normalisation',
        ('export: channels in the wrong order', 'image = image.flip(1)', 'pass'),
        ('export: padded before normalisation', 'value=self.norm.pad_value', 'value=0'),
    ),
    *_group(
        'rmt_mm/tools/deployment/detectors.py',
        'tests/deployment/test_export_tool.py -k graph',
        ('export: NMS across classes', "if not cfg.get('class_agnostic', False):", 'if False:'),
        ('export: boxes beyond the image', 'return torch.minimum(boxes.clamp(min=0), limits)', 'return boxes'),
        ('export: features in the order of levels', '[torch.cat(order).argsort()]', ''),
    ),
    *_group(
        'rmt_mm/tools/deployment/files.py',
        'tests/deployment/test_exported_sizes.py -k interrupted',
        ('export: half a file', 'stack.enter_context(replacing(path))', 'path'),
    ),
    *_group(
        'rmt_mm/tools/commands/export.py',
        'tests/deployment/test_export_tool.py -k something_else',
        ('export: wrong values are kept', 'and not is_equal', 'and not max(errors) < 1'),
    ),
    *_group(
        'tools/deployment/run.py',
        'tests/deployment/test_export_tool.py -k resized',
        (
            'run.py: corners instead of centres',
            '(np.arange(new) + 0.5) * (old / new) - 0.5',
            'np.arange(new) * (old / new)',
        ),
        (
            'run.py: masks half a cell away',
            '* cells - 0.5',
            '* cells',
            'tests/deployment/test_export_tool.py -k pasted',
        ),
    ),
    *_group(
        'rmt_mm/tools/report/predictions.py',
        REPORT,
        ('report: a tensor without data', 'require(max(end, count)', 'require(0 * max(end, count)'),
    ),
    *_group(
        'rmt_mm/tools/report/logs.py',
        REPORT,
        (
            'report: the earlier run counts',
            'steps[is_train, step] = scalars',
            'steps.setdefault((is_train, step), scalars)',
        ),
        ('report: a test is a validation', 'elif is_train or step > 0:', 'else:'),
    ),
    *_group(
        'rmt_mm/tools/report/detection.py',
        REPORT,
        ('report: an object is found twice', 'free[row.argmax()] = False', 'pass'),
        ('report: AP at one IoU', "{'AP': slice(None)", "{'AP': slice(0, 1)"),
        ('report: other classes match', 'np.where(same, overlaps, 0)', 'overlaps'),
        ('report: names of classes as they are', 'list(map(printable,', 'list(map(str,'),
    ),
    *_group(
        'rmt_mm/tools/pictures.py',
        'tests/webui/test_page.py -k colours',
        ('colours: any number', 'and 0 <= value <= 255', ''),
        ('colours: of any length', 'and len(colour) == 3', ''),
    ),
    *_group('rmt_mm/tools/report/scenes.py', REPORT, ('report: names on masks', 'cost = hidden + 4', 'cost = 4')),
    *_group(
        'rmt_mm/tools/report/page.py', REPORT, ('report: texts are not escaped', 'autoescape=True', 'autoescape=False')
    ),
    *_group(
        'rmt_mm/tools/report/run_config.py', REPORT, ('report: lists of lists', 'any(map(_holds_dict, node))', 'False')
    ),
    *_group(
        'rmt_mm/tools/commands/report.py',
        REPORT,
        ('report: halves of surrogates', ", errors='backslashreplace'", ''),
        ('report: any class is built', "in ('', scope) else []", "in ('', scope, 'mmengine.dataset') else []"),
    ),
    *_group(
        'rmt_mm/tools/cli/old_config.py',
        'tests/cli/test_old_config.py',
        ('old configs: RMT_Swin is no name', "(found[2] or 't')", "(found[2] or 'x')"),
        ('old configs: any RMT_... is a name', 'OLD_NAME.fullmatch', 'OLD_NAME.match'),
    ),
    *_group(
        'rmt_mm/tools/cli/model_check.py',
        'tests/cli/test_old_config.py',
        ('old configs: type RMT_B', "if old_name(model['backbone'].get('type'))", 'if False'),
    ),
    *_group(
        'rmt_mm/tools/cli/config.py',
        'tests/cli/test_config_mistakes.py -k delete',
        ('configs: _delete_ of a variable', "and parent.split('.')[0] in KNOWN_KEYS", ''),
    ),
    *_group('rmt_mm/reference.py', PARITY, ('reference: a decay on the CPU', 'self.r, x.device)', 'self.r, None)')),
    # Kernels and position tables, by drawn cases.
    *_group(
        'rmt_mm/ops/eager.py',
        PROPERTIES,
        ('by_row: keys in order', 'k, v = (t.flip(1).flatten(1, 2)', 'k, v = (t.flatten(1, 2)'),
        ('by_row: the first image for all', '(t[image].expand(', '(t[0].expand('),
        ('by_row: all rows at once', 'q[image].split(rows)', 'q[0].split(rows)'),
        ('rotation: by the conjugate', '* torch.view_as_complex(phases.to', '* torch.view_as_complex(-phases.to'),
        ('FFN by layers: no GELU', 'fc2, gelu_dwconv(dwconv, x))', 'fc2, dwconv(x))'),
    ),
    *_group(
        'rmt_mm/ops/plain.py',
        PROPERTIES,
        ('plain: columns are rows', 'bias = tables.line(dim, q.dtype)', 'bias = tables.line(2, q.dtype)'),
        ('plain: rotation by the opposite angle', '(u0 * cos - u1 * sin, u1', '(u0 * cos + u1 * sin, u1'),
        (
            'plain: no bias of the map',
            'return _attend(q, k, v, bias, tables).transpose(1, 2).unflatten(1,',
            'return _attend(q, k, v, 0 * bias, tables).transpose(1, 2).unflatten(1,',
        ),
    ),
    *_group(
        'rmt_mm/ops/tables.py',
        PROPERTIES,
        (
            'tables: a row is as long as a column',
            "('row', self.width) if dim == 2 else",
            "('row', self.height) if dim == 2 else",
        ),
        (
            'tables: no distance of rows',
            'bias = rows[:, :, None, :, None] + columns',
            'bias = 0 * rows[:, :, None, :, None] + columns',
        ),
        ('tables: by_row is one row off', '(index - (height - 1)).abs()', '(index - height).abs()'),
        (
            'tables: angles of another width',
            '.view(height, width, 1, head_dim // 2)',
            '.view(width, height, 1, head_dim // 2).transpose(0, 1)',
        ),
    ),
    # Faults of tests and of other processes.
    *_group(
        'rmt_mm/training/faults.py',
        FAULTS,
        (
            'a test is told to resume',
            'NamingCompose(dataset.pipeline.transforms, training)',
            'NamingCompose(dataset.pipeline.transforms)',
        ),
        ('a test is told of with_cp', '        if training:\n            cure', '        if True:\n            cure'),
        ('memory has no sentence', 'isinstance(error, MemoryError) or "can\'t', 'False and "can\'t'),
        ('a killed worker has no sentence', "('killed' in reason or", "('nothing' in reason and"),
        ('a lost process has no sentence', '(closed by peer|reset by peer)', '(nothing)'),
        ('a file that cannot be written has no sentence', '        if number:\n', '        if False:\n'),
        ('an empty image is not called empty', 'empty = osp.isfile(path) and not osp.getsize(path)', 'empty = False'),
        ('/dev/shm is not named', "if 'shm' in reason or", "if 'nothing' in reason or"),
    ),
    *_group(
        'rmt_mm/tools/commands/test.py',
        FAULTS,
        ('test: images are not named', 'name_images(runner, training=False)', 'pass'),
        ('test: faults keep their traceback', ', explaining_faults(cfg.work_dir, training=False)', ''),
    ),
    *_group(
        'rmt_mm/training/divergence.py',
        'tests/training/test_divergence.py',
        ('divergence: validations of NaN weights', '    def before_val(self', '    def before_nothing(self'),
        ('divergence: epochs of NaN weights', '    def after_train_epoch(self', '    def after_nothing(self'),
        ('divergence: the checkpoint is not named', 'and hook.last_ckpt]', 'and False]'),
    ),
    *_group(
        'rmt_mm/training/seed_hook.py',
        'tests/training/test_seed_hook.py',
        ('seeds: batches that are skipped are not counted', 'self._number += 1', 'pass'),
        ('seeds: the seed of the training is left out', 'SeedSequence([runner.seed, step])', 'SeedSequence([step])'),
    ),
    # What fuzzing found.
    *_group(
        'rmt_mm/training/mask_check.py',
        COCO_CHECK,
        ('polygons of any coordinates', 'abs(n) <= MAX_COORDINATE for', 'True for'),
        ('polygons of anything', 'all(is_number(n) and abs(n)', 'all(abs(n)'),
        ('run lengths of halves', '0 <= n == int(n)', '0 <= n'),
    ),
    *_group(
        'rmt_mm/training/coco_check.py',
        COCO_CHECK,
        ('numbers beyond floats', 'abs(value) <= sys.float_info.max', 'float(value) < 1e308'),
        ('ids of lists', "if not isinstance(annotation['image_id'], (int, float, str)):", 'if False:'),
        ('JSON of any depth', 'except (ValueError, RecursionError) as error:', 'except ZeroDivisionError as error:'),
    ),
    *_group(
        'rmt_mm/training/label_check.py',
        'tests/training/test_label_check.py',
        ('label maps with a side of 1', 'if min(raw.shape[:2]) == 1:', 'if False:'),
    ),
    *_group(
        'rmt_mm/errors.py',
        COCO_CHECK,
        ('messages of any length', 'return text if more <= 0 else', 'return text if True else'),
    ),
    *_group(
        'rmt_mm/tools/cli/images.py',
        'tests/cli/test_demo.py -k postscript',
        ('PostScript starts a program', "- {'EPS'}", '- set()'),
    ),
    *_group(
        'tools/deployment/run.py',
        'tests/cli/test_demo.py -k postscript',
        ('run.py: PostScript starts a program', "- {'EPS'}", '- set()'),
    ),
    *_group(
        'rmt_mm/tools/cli/config.py',
        'tests/cli/test_old_config.py',
        ('configs that raise StopIteration', ', StopIteration, yaml.YAMLError', ', yaml.YAMLError'),
    ),
    *_group(
        'rmt_mm/tools/report/logs.py',
        REPORT,
        ('report: ints beyond floats', 'int(digits) if len(digits) < 300 else float(digits)', 'int(digits)'),
    ),
    *_group(
        'rmt_mm/tools/report/sections.py',
        REPORT,
        ('report: infinite durations', 'if not math.isfinite(seconds):\n        return', 'if False:\n        return'),
    ),
    *_group(
        'rmt_mm/tools/report/run_config.py',
        REPORT,
        (
            'report: settings of another kind',
            '_check_kind(values, path_of_key',
            '0 and _check_kind(values, path_of_key',
        ),
    ),
    *_group(
        'rmt_mm/checkpoints/safe/load.py',
        FUZZ,
        ('fuzz: damaged records are read', 'while entry.CRC and file.read(2**20):', 'while False:'),
        ('fuzz: a bomb is unpacked', '        if unpacked > limit:', '        if False:', SAFETY),
    ),
    *_group(
        'rmt_mm/classification/label_map.py',
        FUZZ,
        ('fuzz: indices of no class', 'indices.max() >= num_classes or', 'False or', TOKEN_DATA),
    ),
]
