"""Our classifiers by name in mmpretrain: ``get_model``, ``list_models`` and the inferencers."""

from mmpretrain.apis.model import ModelHub

from ..config_path import CONFIG_DIR


def register_model_names() -> None:
    """Add the classifiers of ``configs/classification/metafile.yml`` to mmpretrain's list of models.

    ``mmpretrain.get_model('rmt-tiny_8xb128_in1k')`` then builds one. It has random weights: no weights are shipped, and
    a checkpoint is given as ``pretrained=PATH``. Names that are there already stay.
    """
    if not ModelHub.has('rmt-tiny_8xb128_in1k'):
        ModelHub.register_model_index(CONFIG_DIR / 'classification/metafile.yml', config_prefix=CONFIG_DIR.parent)
