# make setup | demo | test | lint         STACK=openmmlab (default) or STACK=onedl picks the stack.
STACK ?= openmmlab
ENV := $(if $(filter onedl,$(STACK)),.venv-onedl,.venv)
PYTHON_ENV := $(ENV)/bin/python
DIGITS := data/digits
DEMO := work_dirs/demo
DEMO_CONFIG := configs/detection/mask-rcnn_rmt-mini_fpn_digits.py
SEG_CONFIG := configs/segmentation/rmt-mini_fpn_digits.py
CLS := configs/classification/rmt-digits
FROM_CLASSIFIER = --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone. \
	model.backbone.init_cfg.checkpoint="$$(cat $(DEMO)-classification/last_checkpoint)"

.PHONY: help setup test test-torch2.1 test-slow test-zoo test-strangers compatibility mutants lint \
	demo demo-resnet18 demo-segmentation demo-classifier demo-classification demo-transfer clean

help:
	@echo 'make setup      the environment in $(ENV): minutes the first time, seconds later'
	@echo 'make demo       digit scenes, a trained and evaluated Mask R-CNN, pictures and curves: 12 minutes on 2 cores'
	@echo 'make demo-resnet18   the same schedule with ResNet-18'
	@echo 'make demo-segmentation, make demo-classification   the other tasks, up to 50 minutes each'
	@echo 'make demo-transfer  detection and segmentation again, from the classifier instead of from nothing'
	@echo 'make test       the fast tests       make lint   the linter'
	@echo 'make test-slow, make test-zoo, make test-strangers   the long ones'
	@echo 'make test-torch2.1   the fast tests of backbone and safe reading on the oldest torch and Python'
	@echo 'make compatibility   the tests on torch 2.1 to 2.13, an environment of 5 to 8 GB each'
	@echo 'make mutants    break the code on purpose, an edit at a time, and see whether the tests notice: an hour'
	@echo 'STACK=onedl runs any of them on the maintained continuation of the OpenMMLab packages'

setup:
	@tools/setup_env.sh $(STACK)

test: setup
	$(PYTHON_ENV) -m pytest

test-slow: setup
	$(PYTHON_ENV) -m pytest -m slow --ignore tests/configs/test_zoo.py --ignore tests/configs/test_strangers.py

test-zoo: setup
	$(PYTHON_ENV) -m pytest -m slow tests/configs/test_zoo.py --durations 0

# The libraries' own configs with an RMT in them: trained and tested by their tools and by ours.
test-strangers: setup
	$(PYTHON_ENV) -m pytest -m slow tests/configs/test_strangers.py --durations 0

# The oldest torch and Python, in an environment of its own; `make compatibility` runs more of them, and all their tests.
test-torch2.1: setup
	$(PYTHON_ENV) tools/compat_matrix.py --only torch2.1 --keep \
		tests/backbone tests/checkpoints/test_compat.py tests/checkpoints/test_safety.py

compatibility: setup
	$(PYTHON_ENV) tools/compat_matrix.py --resume

mutants: setup
	$(PYTHON_ENV) tests/mutants/run.py --resume

lint: setup
	$(PYTHON_ENV) -m ruff check . && $(PYTHON_ENV) -m ruff format --check .

$(DIGITS): setup
	$(PYTHON_ENV) tools/dataset_converters/make_digits.py $(DIGITS)

# Trains from the start or, if it was interrupted, from the last epoch; `make clean` forgets it.
demo: setup $(DIGITS)
	$(PYTHON_ENV) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO) --resume
	$(PYTHON_ENV) tools/test.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --work-dir $(DEMO) --show-dir $(DEMO)/predictions
	$(PYTHON_ENV) tools/analysis_tools/plot_curves.py $(DEMO) $(DEMO)/curves.png
	@echo 'Predictions on validation scenes, truth on the left: $(DEMO)/predictions; loss and AP: $(DEMO)/curves.png'

demo-resnet18: setup $(DIGITS)
	$(PYTHON_ENV) tools/train.py configs/detection/mask-rcnn_r18_fpn_digits.py --work-dir $(DEMO)-resnet18 --resume

demo-segmentation: setup $(DIGITS)
	$(PYTHON_ENV) tools/train.py $(SEG_CONFIG) --work-dir $(DEMO)-segmentation --resume
	$(PYTHON_ENV) tools/test.py $(SEG_CONFIG) "$$(cat $(DEMO)-segmentation/last_checkpoint)" \
		--work-dir $(DEMO)-segmentation --show-dir $(DEMO)-segmentation/predictions

demo-classifier: setup $(DIGITS)
	$(PYTHON_ENV) tools/train.py $(CLS).py --work-dir $(DEMO)-classification --resume

# Label maps made by that classifier, and a classifier trained on those. A classifier trained anew makes other maps:
# `make clean` first, or name another folder.
demo-classification: demo-classifier
	$(PYTHON_ENV) tools/dataset_converters/make_token_labels.py $(CLS).py "$$(cat $(DEMO)-classification/last_checkpoint)" \
		$(DIGITS)/imagenet/train $(DIGITS)/imagenet/token_labels/train --size 64
	$(PYTHON_ENV) tools/train.py $(CLS)_tl.py --work-dir $(DEMO)-token-labels --resume

# The schedules of `make demo` and `make demo-segmentation`; only the backbone's first weights differ.
demo-transfer: demo-classifier
	$(PYTHON_ENV) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO)-transfer/detection --resume $(FROM_CLASSIFIER)
	$(PYTHON_ENV) tools/train.py $(SEG_CONFIG) --work-dir $(DEMO)-transfer/segmentation --resume $(FROM_CLASSIFIER)

clean:
	rm -rf $(DEMO) $(DEMO)-* $(DIGITS)
