"""Settings of data loaders that torch refuses without worker processes."""

from mmengine.config import Config

from ...training.config_search import walk
from .notes import note

# Arguments of torch's DataLoader that need num_workers > 0, and the values that mean the same as leaving them out.
NEED_WORKERS = {
    'persistent_workers': (False, None),
    'prefetch_factor': (None,),
    'timeout': (0, None),
    'multiprocessing_context': (None,),
}


def drop_worker_settings(cfg: Config) -> None:
    """Drop the settings of workers from the data loaders of ``cfg`` that have ``num_workers=0``, with a note.

    Loaders are the top-level ``*_dataloader`` and those in lists and dicts below them.
    """
    loaders = {key: value for key, value in cfg._cfg_dict.items() if str(key).endswith('_dataloader')}
    for path, _, loader in list(walk(loaders)):
        if not isinstance(loader, dict) or 'dataset' not in loader or 'type' in loader or loader.get('num_workers'):
            continue
        dropped = [key for key, unset in NEED_WORKERS.items() if loader.get(key) not in unset]
        if not dropped:
            continue
        settings = ' and '.join(f'{key}={loader.pop(key)!r}' for key in dropped)
        note(f'{path} has num_workers=0, with which torch refuses {settings}: left out.')
