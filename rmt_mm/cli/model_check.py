"""Check that the parts around an RMT backbone take its outputs, before a model is built."""
from mmengine.config import Config

from ..arch import resolve_arch
from ..errors import UsageError
from .search import find_dicts

IMPORT_LINE = "custom_imports = dict(imports=['rmt_mm'], allow_failed_imports=False)"


def check_backbones(cfg: Config, path: str) -> None:
    ours = list(find_dicts(cfg.get('model', {}), lambda d: d.get('type') in ('RMT', 'mmengine.RMT')))
    imports = (cfg.get('custom_imports') or {}).get('imports', [])
    imports = [imports] if isinstance(imports, str) else imports
    if ours and not any(name.split('.')[0] == 'rmt_mm' for name in imports):
        raise UsageError(f"config {path} uses type='RMT' but does not import it: add the line {IMPORT_LINE}")
    for model in find_dicts(cfg.get('model', {}), lambda d: d.get('backbone') in ours):
        backbone = model['backbone']
        try:
            dims = resolve_arch(backbone.get('arch', 'tiny')).embed_dims
        except (ValueError, TypeError) as error:
            raise UsageError(f'model.backbone: {error}') from error
        indices = backbone.get('out_indices', range(len(dims)))
        given = [dims[i] for i in indices if -len(dims) <= i < len(dims)]
        # Who takes the outputs: the neck, or the heads (of mmseg, with in_index) where there is none.
        for name in ['neck'] if model.get('neck') else [key for key in model if key.endswith('_head')]:
            parts = model[name] if isinstance(model[name], (list, tuple)) else [model[name]]
            for part in (part for part in parts if isinstance(part, dict)):
                wanted, index = part.get('in_channels'), part.get('in_index', range(len(given)))
                if isinstance(wanted, int) and isinstance(index, int):
                    wanted, index = [wanted], [index]
                if isinstance(wanted, (list, tuple)) and max(index, default=0) < len(given) and \
                        list(wanted) != [given[i] for i in index]:
                    raise UsageError(f'model.{name}.in_channels is {part["in_channels"]}, but the outputs '
                                     f'{list(indices)} of RMT {backbone.get("arch", "tiny")!r} have {given} channels.')
