"""Our classifiers by name in mmpretrain: ``get_model``, ``list_models`` and the inferencers."""

from mmpretrain.apis.model import ModelHub

from ..config_path import CONFIG_DIR


def register_model_names() -> None:
    """Add the classifiers of ``configs/classification/metafile.yml`` to mmpretrain's list of models.

    ``mmpretrain.get_model('rmt-tiny_8xb128_in1k')`` then builds one. It has random weights, since no weights are
    shipped; ``pretrained=PATH`` loads a checkpoint. Names that exist already are not replaced.
    """
    if not ModelHub.has('rmt-tiny_8xb128_in1k'):
        ModelHub.register_model_index(CONFIG_DIR / 'classification/metafile.yml', config_prefix=CONFIG_DIR.parent)
