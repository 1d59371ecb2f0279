"""What becomes of each command and Python block of the pages: run here, run by another test, or not run, and why.

A command that stands in none of the tables fails tests/docs.
"""

from typing import Dict, List, NamedTuple, Tuple

# Small files of the folder in which commands are run (tests/docs/conftest.py), and values, for what a page leaves open.
VALUES = {
    'CONFIG': 'classifier.py',
    'CHECKPOINT': 'classifier.pth',
    'INPUT': 'photos',
    'DIR': 'drawn',
    'S': '0.5',
    'PIXELS': '160',
    'D': 'cpu',
    'GPUS': '2',
    'WORK_DIR': 'reported',
    'FILE.html': 'page.html',
    'N': '2',
}
TINY = {'--shape 800 1344': '--shape 32 32', '--arch small': '--arch tiny'}
ONE_EPOCH = 'train_cfg.max_epochs=1 train_cfg.val_interval=1 train_dataloader.batch_size=2'


class Run(NamedTuple):
    """Run in tests/docs, on small files."""

    leaves: Tuple[str, ...] = ()  # files that it must write
    values: Dict[str, str] = {}  # what stands for parts of the text, beside VALUES
    add: str = ''  # arguments that make it short
    slow: bool = False
    says: str = ''  # a part of its output


RUN = {
    'python tools/train.py CONFIG': Run(('work_dirs/classifier/epoch_1.pth',)),
    'python tools/test.py CONFIG CHECKPOINT': Run(says='accuracy/top1'),
    "python tools/demo.py CONFIG CHECKPOINT 'photos/*.jpg' --out-dir outputs": Run(('outputs/scene.jpg',)),
    'python tools/analysis_tools/plot_curves.py WORK_DIR curves.png': Run(('curves.png',)),
    'python tools/draw_architecture.py docs/architecture.svg': Run(
        ('drawing.svg',), {'docs/architecture.svg': 'drawing.svg'}
    ),
    'python -c "import mmdet; print(mmdet.__path__[0] + \'/.mim/configs\')"': Run(says='mmdet/.mim/configs'),
    # Everything below takes longer.
    'python tools/train.py CONFIG --cfg-options optim_wrapper.accumulative_counts=8': Run(
        ('work_dirs/classifier/epoch_1.pth',), slow=True
    ),
    'python tools/train.py CONFIG --cfg-options model.backbone.init_cfg.type=Pretrained '
    'model.backbone.init_cfg.checkpoint=CHECKPOINT model.backbone.init_cfg.prefix=backbone.': Run(
        values={'CONFIG': 'detector.py'}, slow=True, says='RMT loaded from classifier.pth'
    ),
    'python tools/train.py CONFIG --cfg-options model.backbone.init_cfg.type=Pretrained '
    'model.backbone.init_cfg.checkpoint=rmt-t.pth model.backbone.init_cfg.prefix=backbone.': Run(
        values={'CONFIG': 'detector.py', 'rmt-t.pth': 'classifier.pth'},
        slow=True,
        says='RMT loaded from classifier.pth',
    ),
    'python tools/train.py configs/classification/rmt-digits.py --cfg-options '
    'model.backbone.arch_options.decay=none': Run(
        ('work_dirs/rmt-digits/epoch_1.pth',), add=f'{ONE_EPOCH} train_dataloader.num_workers=0', slow=True
    ),
    'python tools/train.py CONFIG --cfg-options train_dataloader.dataset.data_root=/disk/coco/ '
    'val_dataloader.dataset.data_root=/disk/coco/ test_dataloader.dataset.data_root=/disk/coco/ '
    'val_evaluator.ann_file=/disk/coco/annotations/instances_val2017.json '
    'test_evaluator.ann_file=/disk/coco/annotations/instances_val2017.json': Run(
        ('work_dirs/detector/epoch_1.pth',), {'CONFIG': 'detector.py', '/disk/coco': 'data/digits/coco'}, slow=True
    ),
    'python tools/test.py configs/classification/rmt-small_8xb128_in1k.py checkpoints/rmt-s.pth': Run(
        values={
            'configs/classification/rmt-small_8xb128_in1k.py': 'classifier.py',
            'checkpoints/rmt-s.pth': 'classifier.pth',
        },
        slow=True,
        says='accuracy/top1',
    ),
    'python tools/test.py configs/classification/rmt-tiny_8xb128_in1k.py CHECKPOINT': Run(
        values={'configs/classification/rmt-tiny_8xb128_in1k.py': 'classifier.py'}, slow=True, says='accuracy/top1'
    ),
    'python tools/test.py rmt-small_8xb128_in1k FILE.pth': Run(
        values={'rmt-small_8xb128_in1k': 'classifier.py', 'FILE.pth': 'classifier.pth'},
        slow=True,
        says='accuracy/top1',
    ),
    'bash tools/dist_train.sh CONFIG 2': Run(('work_dirs/classifier/epoch_1.pth',), slow=True),
    'bash tools/dist_test.sh CONFIG CHECKPOINT 8': Run(values={'8': '2'}, slow=True, says='accuracy/top1'),
    'python tools/demo.py CONFIG CHECKPOINT INPUT [--out-dir DIR] [--json] [--score-thr S] [--tile PIXELS] '
    '[--device D]': Run(
        ('drawn/scene.jpg', 'drawn/predictions.json'),
        {'CONFIG': 'detector.py', 'CHECKPOINT': 'work_dirs/demo/epoch_4.pth'},
        slow=True,
    ),
    'python tools/demo.py mask-rcnn_rmt-mini_fpn_4e_digits "$(cat work_dirs/demo/last_checkpoint)" '
    'data/digits/coco/val2017 --json': Run(('outputs/predictions.json',), slow=True),
    'python tools/analysis_tools/vis_masa.py CONFIG CHECKPOINT scene.jpg --query 115 110 --stage 1 --block 0': Run(
        ('outputs/scene_attention_stage1_block0.png',),
        {'scene.jpg': 'photos/scene.jpg'},
        '--out-dir outputs',
        slow=True,
        says='the drawn attention gives the output of MaSA',
    ),
    'python tools/dataset_converters/make_token_labels.py CONFIG CHECKPOINT data/imagenet/train '
    'data/imagenet/token_labels/train --size 576': Run(
        ('token_labels/3',),
        {
            'data/imagenet/train': 'data/digits/imagenet/val',
            'data/imagenet/token_labels/train': 'token_labels',
            '576': '64',
        },
        '--num-workers 0',
        slow=True,
    ),
    'python tools/analysis_tools/report.py WORK_DIR [WORK_DIR ...] [--out FILE.html]': Run(('page.html',), slow=True),
    'python tools/analysis_tools/report.py WORK_DIR': Run(('reported/report.html',), slow=True),
    'python tools/get_flops.py CONFIG': Run(slow=True, says='attention'),
    'python tools/deployment/export.py CONFIG CHECKPOINT': Run(('classifier.onnx',), slow=True),
    'python tools/deployment/export.py --arch tiny': Run(add='--out tiny.onnx', leaves=('tiny.onnx',), slow=True),
    'python tools/deployment/benchmark.py --arch tiny --shape 224 224 --batch 8': Run(
        values={'--shape 224 224': '--shape 32 32', '--batch 8': '--batch 1'}, add='--repeats 1', slow=True
    ),
    'python tools/analysis_tools/benchmark.py --arch small --shape 800 1344 --impl reference rmt_mm '
    'mmdet.SwinTransformer': Run(values=TINY, add='--repeat 1', slow=True, says='mmdet.SwinTransformer'),
    'python tools/analysis_tools/benchmark.py --arch small --shape 800 1344 --impl reference rmt_mm deploy '
    'mmdet.SwinTransformer': Run(values=TINY, add='--repeat 1', slow=True, says='deploy'),
    'python tools/analysis_tools/benchmark.py --impl decomposed rmt_mm whole --scaling whole.png '
    '--sizes 224 320 512 800 1024 2048 --max-gmac 1000 --repeat 2': Run(
        leaves=('whole.png',), values={'224 320 512 800 1024 2048': '32 64'}, slow=True, says='exponents'
    ),
    'python tools/analysis_tools/compare_pins.py --arch small --shape 800 1344 default attend=plain': Run(
        values=TINY, add='--rounds 1', slow=True, says='attend=plain'
    ),
    'python tools/analysis_tools/compare_pins.py --arch small --shape 800 1344 default attend=plain dwconv=plain': Run(
        values=TINY, add='--rounds 1', slow=True, says='dwconv=plain'
    ),
}

# The test that runs it, or on small files the tool or the training of which it is the call.
ELSEWHERE = {
    'tests/test_doctor.py::test_a_working_environment': [
        'python -m rmt_mm',
        'OMP_NUM_THREADS=1 python -m rmt_mm',
    ],
    'tests/checkpoints/test_documented_output.py::test_report_of_the_converter': [
        'python tools/model_converters/rmt_to_mm.py checkpoints/RMT_S.pth checkpoints/rmt-s.pth'
    ],
    'tests/classification/test_classification_usage.py::test_linear_probe': [
        'python tools/train.py configs/classification/rmt-tiny_linear-probe_8xb128-90e_in1k.py --cfg-options '
        'model.backbone.init_cfg.checkpoint=CHECKPOINT'
    ],
    'tests/cli/test_launchers.py::test_dist_train': [
        'bash tools/dist_train.sh CONFIG 8',
        'bash tools/dist_train.sh CONFIG GPUS',
        'bash tools/dist_train.sh configs/classification/rmt-tiny_8xb128_in1k.py 8',
        'bash tools/dist_train.sh rmt-small_8xb128_in1k 8',
    ],
    'tests/cli/test_launchers.py::test_slurm_train': [
        'GPUS=16 GPUS_PER_NODE=8 bash tools/slurm_train.sh PARTITION rmt-b '
        'configs/detection/mask-rcnn_rmt-b_fpn_amp-ms-crop-3x_coco.py --auto-scale-lr'
    ],
    'tests/cli/test_digits.py::test_the_same_seed_gives_the_same_files': [
        'python tools/dataset_converters/make_digits.py data/digits'
    ],
    'tests/configs/test_configs_metafiles.py::test_a_change_is_noticed_and_written': [
        'python tools/make_model_table.py'
    ],
    'tests/deployment/test_deployment_page.py::test_the_commands_of_the_page': [
        'python tools/deployment/export.py mask-rcnn_rmt-mini_fpn_4e_digits '
        '"$(cat work_dirs/demo/last_checkpoint)" --dynamic --normalize --out mask-rcnn.onnx',
        'python tools/deployment/run.py mask-rcnn.onnx data/digits/coco/val2017/000000000001.jpg '
        '--out-dir outputs/onnx',
    ],
    'tests/cli/test_compare_checkouts.py::test_each_checkout_runs_its_own_backbone': [
        'python tools/analysis_tools/compare_checkouts.py ../before . --arch small --shape 800 1344',
        'python tools/analysis_tools/compare_checkouts.py . . --env THP_MEM_ALLOC_ENABLE=1 --arch small '
        '--shape 800 1344',
    ],
    'tests/cli/test_gpu_report.py::test_it_stops_at_the_budget_and_says_what_is_missing': [
        'python tools/analysis_tools/gpu_report.py --out work_dirs/gpu',
        'python tools/analysis_tools/gpu_report.py --out work_dirs/gpu --budget 540',
    ],
    'tests/cli/test_resuming.py::test_killed_trainings_end_as_those_that_were_not': ['python tests/kill_trainings.py'],
    'tests/webui/test_server.py::test_a_visit': [
        'python tools/webui.py CONFIG CHECKPOINT [--port 7860] [--host 127.0.0.1]'
    ],
    'tests/test_packaging.py::test_an_installed_wheel_works_from_another_folder': ['pip install -e .'],
    'tests/test_setup.py::test_second_set_up_does_nothing': ['make setup'],
    'tests/test_setup.py::test_wheel_of_the_user': ['MMCV_WHEEL=FILE make setup'],
    'tests/test_setup.py::test_what_works_is_not_compiled_or_replaced': ['ENV=DIR make setup'],
    'tests/ops/test_masa_kernel.py::test_build_failures_are_one_sentence': ['python -m rmt_mm.build_ops'],
    'tests/test_setup.py::test_the_page_of_a_demo_that_was_not_trained_is_refused': ['make webui'],
}

# Why it is not run. What it names is checked all the same.
NOT_RUN = {
    'needs the address of the reader': ['git clone ADDRESS_OF_THIS_REPOSITORY rmt-mm'],
    "is the shell's": ['cd rmt-mm', 'cd data/coco', 'cd data/ade', 'mkdir -p data/coco', 'mkdir -p data/ade'],
    'needs what `make setup` makes': ['source .venv/bin/activate'],
    'makes an environment of 10 GB': [
        'STACK=onedl make setup',
        'TORCH=2.5.1 make setup',
        'PYTHON=/path/to/python make setup',
        'RMT_MM_CACHE=DIR make setup',
        'MAX_JOBS=N make setup',
        'CUDA_VISIBLE_DEVICES= make setup',
        'MMCV_WHEEL=mmcv-2.1.0-cp311-cp311-manylinux1_x86_64.whl TORCH=2.5.1 make setup',
        'python tools/compat_matrix.py',
        'python tools/compat_matrix.py --only torch2.1',
        'python tools/compat_matrix.py --resume',
        'make compatibility',
    ],
    'trains for minutes to hours': [
        'make demo',
        'make demo-full',
        'make demo-resnet18',
        'make demo-segmentation',
        'make demo-classification',
        'make demo-transfer',
        'make ablation',
    ],
    'runs tests, linters or the site, this one among them': [
        'make test',
        'make test-slow',
        'make test-zoo',
        'make test-strangers',
        'make test-kills',
        'make mutants',
        'make fuzz',
        'make fuzz SEED=1',
        'make lint',
        'make docs',
        'ENV=DIR make test',
        '.ci/run',
    ],
    'downloads': [
        'curl -LO http://images.cocodataset.org/zips/train2017.zip',
        'curl -LO http://images.cocodataset.org/zips/val2017.zip',
        'curl -LO http://images.cocodataset.org/annotations/annotations_trainval2017.zip',
        'curl -LO http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
        'unzip -q train2017.zip',
        'unzip -q val2017.zip',
        'unzip -q annotations_trainval2017.zip',
        'unzip -q ADEChallengeData2016.zip',
        'pip download --no-deps --only-binary :all: mmcv==2.1.0 -f PAGE',
        'mim install mmcv==2.1.0',
        'mim download',
    ],
    'changes the environment of the tests': [
        'pip install',
        'pip install "rmt-mm[deploy]"',
        'pip install "rmt-mm[report]"',
        'pip install "rmt-mm[webui]"',
        'pip install rmt-mm[report]',
        'pip install "transformers<4.50"',
    ],
    'needs Docker': [
        'docker build -f docker/Dockerfile -t rmt-mm .',
        'docker build -f docker/Dockerfile -t rmt-mm --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu22.04 '
        '--build-arg FORCE_CUDA=1 --build-arg TORCH_CUDA_ARCH_LIST="8.0;9.0" .',
    ],
    'needs two machines': [
        f'NNODES=2 NODE_RANK={rank} MASTER_ADDR=10.0.0.1 PORT=29500 bash tools/dist_train.sh '
        'configs/detection/mask-rcnn_rmt-b_fpn_amp-ms-crop-3x_coco.py 8 --auto-scale-lr'
        for rank in (0, 1)
    ],
    'needs a GPU': [
        'python tools/analysis_tools/benchmark.py --device cuda --dtype bf16 --impl rmt_mm mmdet.SwinTransformer'
    ],
    'needs two environments with mmcv': ['python tools/analysis_tools/compare_ops.py OLD/bin/python NEW/bin/python'],
    'measures for minutes': [
        'python tools/analysis_tools/compare_kernels.py',
        "python tools/analysis_tools/ablation.py work_dirs/ablation --data digit --forms full 'no rotation' --seeds 0 "
        '--size 160 --sizes 96 128 224 320',
    ],
    'needs a trained model and its pictures': [
        'python tools/deployment/quantize.py MODEL.onnx TRAINING_PICTURES --val PICTURES'
    ],
    'is named without its arguments': ['python tools/demo.py', 'python tools/deployment/benchmark.py'],
    'starts a server': ['tensorboard --logdir WORK_DIR'],
}

# Blocks of Python, by their page and the beginning of their first line.


class Program(NamedTuple):
    """A program: run in tests/docs."""

    values: Dict[str, str] = {}
    slow: bool = False


class Lines(NamedTuple):
    """Lines of a config: read by the tools over a base, and what they change is built."""

    builds: str  # model, optimizer or data
    base: str = ''


DETECTOR = {
    'mask-rcnn_rmt-t_fpn_amp-1x_coco': 'mask-rcnn_rmt-mini_fpn_4e_digits',
    'mask-rcnn_rmt-s_fpn_amp-1x_coco': 'mask-rcnn_rmt-mini_fpn_4e_digits',
    'epoch_12.pth': 'work_dirs/demo/epoch_4.pth',
    'scene.jpg': 'photos/scene.jpg',
}
RUN_BLOCKS = {
    'README.md: custom_imports': Lines('model', 'mmdet/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    'classification.md: from mmpretrain.apis': Program(
        {
            'work_dirs/demo-classification/epoch_16.pth': 'classifier.pth',
            'data/digits/imagenet/val/3/0023.png': 'photos/scene.jpg',
        }
    ),
    'datasets.md: _base_': Lines('data'),
    'inference.md: import rmt_mm': Program(DETECTOR, slow=True),
    'model_zoo.md: import rmt_mm': Program(),
    'swap_backbone.md: import rmt_mm.classification': Program({"pretrained='rmt-s.pth'": 'pretrained=False'}),
    'swap_backbone.md: import rmt_mm\n': Program(DETECTOR, slow=True),
    'training.md: optim_wrapper': Lines('optimizer', 'mask-rcnn_rmt-s_fpn_amp-1x_coco'),
}
BLOCKS_ELSEWHERE = {
    'README.md: import torch': 'tests/test_docs.py::test_python_of_the_readme',
    'checkpoints.md: model = dict(': 'tests/checkpoints/test_documented_output.py::test_log_of_a_detector',
    'checkpoints.md: >>> torch.load': 'tests/checkpoints/test_documented_output.py::test_origin_of_a_converted_file',
    'checkpoints.md: from rmt_mm.checkpoints': 'tests/checkpoints/test_converter.py::test_force_safe_loading',
    'relatives.md: model.backbone': 'tests/backbone/test_relatives_page.py::test_config_lines',
    'relatives.md: import torch': 'tests/backbone/test_relatives_page.py::test_programs',
    "swap_backbone.md: _base_ = 'mm": 'tests/configs/test_swap_backbone.py::test_lines_of_the_page',
    'swap_backbone.md: init_cfg': (
        'tests/classification/test_classification_usage.py::test_a_checkpoint_starts_backbones_of_other_tasks'
    ),
    'swap_backbone.md: optim_wrapper': (
        'tests/configs/test_swap_backbone.py::test_optimizer_of_the_page_is_the_published_one'
    ),
}
BLOCKS_NOT_RUN = {'training.md: _base_': 'needs GPUs'}


def summary(passed: List[str], commands: int, blocks: int) -> str:
    """Say how much of the pages was run, given the ids of the tests that passed and how much there is."""
    ran = sum('test_commands.py::test_runs[' in test for test in passed)
    ran_blocks = sum('test_python_blocks.py::test_runs[' in test for test in passed)
    return (
        f'commands of README and docs: {commands}, run here {ran} of {len(RUN)}, by other tests '
        f'{sum(map(len, ELSEWHERE.values()))}, not run, with a reason {sum(map(len, NOT_RUN.values()))}; '
        f'blocks of Python: {blocks}, run here {ran_blocks} of {len(RUN_BLOCKS)}, not run, with a reason '
        f'{len(BLOCKS_NOT_RUN)}, the others by other tests'
    )
