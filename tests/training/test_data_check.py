"""Data that cannot be trained on are named before the first iteration."""
from types import SimpleNamespace

import pytest
from torch import nn

from rmt_mm import DataCheckHook
from rmt_mm.errors import UsageError
from rmt_mm.training.data_check import build_data


class DataSet(list):

    def __init__(self, length, classes=None):
        super().__init__(range(length))
        self.metainfo = {} if classes is None else dict(classes=classes)


def check(dataset, model):
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=dataset), model=model)
    DataCheckHook().before_train(runner)


def head(num_classes):
    module = nn.Identity()
    module.num_classes = num_classes
    return module


@pytest.fixture
def model():
    return nn.ModuleDict(dict(bbox_head=head(3), rpn_head=head(1), neck=nn.Identity()))


def test_what_fits_passes(model):
    check(DataSet(1, ('cat', 'dog', 'fish')), model)
    check(DataSet(1), model)  # a data set that does not say its classes


def test_class_count(model):
    with pytest.raises(UsageError, match=r'model\.bbox_head\.num_classes is 3.*has 2 classes \(cat, dog'):
        check(DataSet(1, ('cat', 'dog')), model)


def test_class_count_in_a_wrapped_model(model):
    with pytest.raises(UsageError, match=r'model\.bbox_head\.num_classes is 3'):
        check(DataSet(1, ('cat', 'dog')), nn.ModuleDict(dict(module=model)))


def test_empty(model):
    with pytest.raises(UsageError, match='train_dataloader: the data set is empty'):
        check(DataSet(0, ('cat', 'dog', 'fish')), model)


def test_empty_while_it_is_built():

    class Runner:

        def __init__(self, text):
            self.text = text

        @property
        def val_loop(self):
            raise ValueError(self.text)

    with pytest.raises(UsageError, match='val_dataloader: the data set is empty'):
        build_data(Runner('need at least one array to concatenate'), 'val')
    with pytest.raises(ValueError, match='something else'):
        build_data(Runner('something else'), 'val')
