# make setup | demo | test | lint         STACK=openmmlab (default) or STACK=onedl picks the stack.
STACK ?= openmmlab
# Where tools/setup_env.sh sets up, which reads ENV, TORCH, MMCV_WHEEL and PYTHON itself: docs/install.md.
VENV := $(or $(ENV),$(if $(filter onedl,$(STACK)),.venv-onedl,.venv)$(if $(TORCH),-torch$(TORCH)))
PYTHON_ENV := $(VENV)/bin/python
DIGITS := data/digits
DEMO := work_dirs/demo
DEMO_CONFIG := configs/detection/mask-rcnn_rmt-mini_fpn_4e_digits.py
DEMO_FULL_CONFIG := configs/detection/mask-rcnn_rmt-mini_fpn_digits.py
SEG_CONFIG := configs/segmentation/rmt-mini_fpn_digits.py
CLS := configs/classification/rmt-digits
FROM_CLASSIFIER = --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
	model.backbone.init_cfg.checkpoint="$$(cat $(DEMO)-classification/last_checkpoint)"

.PHONY: help setup test test-torch2.1 test-slow test-zoo test-strangers test-kills fuzz compatibility mutants ablation \
	docs lint demo webui demo-full demo-resnet18 demo-segmentation demo-classifier demo-classification demo-transfer clean

help:
	@echo 'make setup      the environment in $(VENV): minutes the first time, seconds later'
	@echo 'make demo       digit scenes, a trained and evaluated Mask R-CNN, pictures and a report, in minutes on 2 cores; make demo-full: all epochs'
	@echo 'make webui      a page in the browser to try what make demo trained, on pictures of your own'
	@echo 'make demo-resnet18   the same schedule with ResNet-18'
	@echo 'make demo-segmentation, make demo-classification   the other tasks, up to 50 minutes each'
	@echo 'make demo-transfer  detection and segmentation again, from the classifier instead of from nothing'
	@echo 'make test       the fast tests       make lint   the linters'
	@echo 'make test-slow, make test-zoo, make test-strangers   the long ones'
	@echo 'make test-kills   170 kills of trainings at random times and while files are written, each resumed'
	@echo 'make fuzz       a thousand damaged and odd files for all readers, backbones of drawn settings: 20 minutes on one core'
	@echo 'make test-torch2.1   the fast tests of backbone and safe reading on the oldest torch'
	@echo 'make compatibility   the tests on torch 2.1 to 2.13, an environment of 5 to 8 GB each'
	@echo 'make ablation   small models without one part of RMT at a time, on scenes of digits: about 6 hours of one core, resumable'
	@echo 'make docs       the site of these docs, in work_dirs/site'
	@echo 'make mutants    break the code on purpose, one edit at a time, and see whether the tests notice: an hour'
	@echo 'STACK=onedl runs any of them on the maintained continuation of the OpenMMLab packages;'
	@echo 'ENV=DIR, TORCH=VERSION and MMCV_WHEEL=FILE use what you have: docs/install.md'

setup:
	@tools/setup_env.sh $(STACK)

# Two processes of one thread each: many tests wait for processes that they start, and small models gain nothing from
# threads.
test: setup
	OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest -n 2 --dist loadfile

test-slow: setup
	$(PYTHON_ENV) -m pytest -m slow --ignore tests/configs/test_zoo.py --ignore-glob 'tests/configs/test_strangers*.py'

test-zoo: setup
	$(PYTHON_ENV) -m pytest -m slow tests/configs/test_zoo.py --durations 0

# Train and test the libraries' own configs, with RMT as backbone, by their tools and by ours; and data as users have it.
test-strangers: setup
	$(PYTHON_ENV) -m pytest -m slow tests/configs/test_strangers*.py --durations 0

# Kill trainings, resume them, and compare all losses with those of one that was not killed.
test-kills: setup
	OMP_NUM_THREADS=1 $(PYTHON_ENV) tests/kill_trainings.py
	OMP_NUM_THREADS=1 $(PYTHON_ENV) tests/kill_trainings.py --kills 50 --iterations
	OMP_NUM_THREADS=1 $(PYTHON_ENV) tests/kill_trainings.py --kills 20 --workers 2

# 1,000 damaged and odd files, and 300 drawn backbones and sizes for each property. SEED and CASES choose others.
SEED ?= 0
CASES ?= 1000
fuzz: setup
	OMP_NUM_THREADS=1 $(PYTHON_ENV) tests/fuzz.py --cases $(CASES) --seed $(SEED)
	OMP_NUM_THREADS=1 RMT_MM_EXAMPLES=300 $(PYTHON_ENV) -m pytest tests/backbone/test_properties.py

# The oldest torch, in an environment of its own; `make compatibility` runs more of them, and all their tests.
test-torch2.1: setup
	$(PYTHON_ENV) tools/compat_matrix.py --only torch2.1 --keep \
		tests/backbone tests/ops tests/checkpoints/test_compat.py tests/checkpoints/test_process.py tests/checkpoints/test_safety.py

compatibility: setup
	$(PYTHON_ENV) tools/compat_matrix.py --resume

mutants: setup
	$(PYTHON_ENV) tests/mutants.py --resume

docs: setup
	$(PYTHON_ENV) -m pip install -q -r requirements/docs.txt
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" NO_MKDOCS_2_WARNING=1 $(PYTHON_ENV) -m mkdocs build --strict

RELATIONS := data/relations
$(RELATIONS): setup
	$(PYTHON_ENV) tools/dataset_converters/make_relations.py $(RELATIONS)

ablation: setup $(RELATIONS)
	$(PYTHON_ENV) tools/analysis_tools/ablation.py work_dirs/ablation --data-root $(RELATIONS) --data side --epochs 16
	$(PYTHON_ENV) tools/analysis_tools/ablation.py work_dirs/ablation --data-root $(RELATIONS) --data digit

lint: setup
	$(PYTHON_ENV) -m ruff check . && $(PYTHON_ENV) -m ruff format --check . && $(PYTHON_ENV) -m mypy
	$(VENV)/bin/lint-imports --no-cache

$(DIGITS): setup
	$(PYTHON_ENV) tools/dataset_converters/make_digits.py $(DIGITS)

# $(1): config, $(2): work dir. Trains from the start or, after an interruption, from the last epoch;
# `make clean` deletes the training.
define train_detector
	$(PYTHON_ENV) tools/train.py $(1) --work-dir $(2) --resume --brief
	$(PYTHON_ENV) tools/test.py $(1) "$$(cat $(2)/last_checkpoint)" --work-dir $(2) --out $(2)/predictions.pkl
	$(PYTHON_ENV) tools/analysis_tools/plot_curves.py $(2) $(2)/curves.png
	$(PYTHON_ENV) tools/analysis_tools/report.py $(2) --show-dir $(2)/predictions
	@echo 'Open $(2)/report.html in a browser. Loss and AP: $(2)/curves.png'
endef

demo: setup $(DIGITS)
	$(call train_detector,$(DEMO_CONFIG),$(DEMO))

webui:
	@test -s $(DEMO)/last_checkpoint || { echo '$(DEMO) holds no trained model: run `make demo` first.' >&2; exit 1; }
	@tools/setup_env.sh $(STACK)
	$(PYTHON_ENV) tools/webui.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)"

demo-full: setup $(DIGITS)
	$(call train_detector,$(DEMO_FULL_CONFIG),$(DEMO)-full)

demo-resnet18: setup $(DIGITS)
	$(PYTHON_ENV) tools/train.py configs/detection/mask-rcnn_r18_fpn_digits.py --work-dir $(DEMO)-resnet18 --resume

demo-segmentation: setup $(DIGITS)
	$(PYTHON_ENV) tools/train.py $(SEG_CONFIG) --work-dir $(DEMO)-segmentation --resume
	$(PYTHON_ENV) tools/test.py $(SEG_CONFIG) "$$(cat $(DEMO)-segmentation/last_checkpoint)" \
		--work-dir $(DEMO)-segmentation --out $(DEMO)-segmentation/predictions.pkl
	$(PYTHON_ENV) tools/analysis_tools/report.py $(DEMO)-segmentation --show-dir $(DEMO)-segmentation/predictions

demo-classifier: setup $(DIGITS)
	$(PYTHON_ENV) tools/train.py $(CLS).py --work-dir $(DEMO)-classification --resume
	$(PYTHON_ENV) tools/analysis_tools/report.py $(DEMO)-classification

# Make label maps with that classifier, and train a classifier on them. A newly trained classifier makes other maps:
# run `make clean` first, or name another folder.
demo-classification: demo-classifier
	$(PYTHON_ENV) tools/dataset_converters/make_token_labels.py $(CLS).py "$$(cat $(DEMO)-classification/last_checkpoint)" \
		$(DIGITS)/imagenet/train $(DIGITS)/imagenet/token_labels/train --size 64
	$(PYTHON_ENV) tools/train.py $(CLS)_tl.py --work-dir $(DEMO)-token-labels --resume

# The schedules of `make demo-full` and `make demo-segmentation`; only the backbone's initial weights differ.
demo-transfer: demo-classifier
	$(PYTHON_ENV) tools/train.py $(DEMO_FULL_CONFIG) --work-dir $(DEMO)-transfer/detection --resume $(FROM_CLASSIFIER)
	$(PYTHON_ENV) tools/train.py $(SEG_CONFIG) --work-dir $(DEMO)-transfer/segmentation --resume $(FROM_CLASSIFIER)

clean:
	rm -rf $(DEMO) $(DEMO)-* $(DIGITS)
