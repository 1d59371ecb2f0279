"""Read the ``type`` of a config's dicts: a name, a name with its scope or module, or a class (pure-Python configs)."""

import inspect
from types import FunctionType
from typing import Dict, Iterable, List, Union

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import MODELS, Registry

# All registries of mmengine, such as MODELS and HOOKS.
REGISTRIES = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
LIBRARIES = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'rmt_mm')


def type_name(kind: Union[str, type, None]) -> str:
    """Return the bare name, such as ``'FPN'`` for 'FPN', 'mmdet.FPN', 'mmdet.models.necks.fpn.FPN' and the class."""
    name = kind.__name__ if isinstance(kind, (type, FunctionType)) else str(kind or '')
    return name.rsplit('.', 1)[-1]


def library(cfg: Config) -> str:
    """Return the library of a config: its ``default_scope``, or its model's (pure-Python configs have no scope)."""
    kind = (cfg.get('model') or {}).get('type')
    module = kind if isinstance(kind, str) and '.' in kind else getattr(kind, '__module__', 'mmengine')
    return cfg.get('default_scope') or module.split('.')[0]


def find_classes(kind: Union[str, type, None], scope: str, registries: Iterable[Registry] = (MODELS,)) -> List[type]:
    """Return the classes that ``type=kind`` may mean in the library ``scope``; empty for an unknown name."""
    if not isinstance(kind, str):
        return [kind] if isinstance(kind, type) else []
    with MODELS.switch_scope_and_registry(scope):  # imports the library's registries
        found = [registry.children.get(scope, registry).get(kind) for registry in registries]
    return [cls for cls in found if isinstance(cls, type)]


def find_parameters(cls: type) -> dict:
    """Return the parameters of a class by name, including those of its bases that ``**kwargs`` are passed to."""
    found: Dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(cls):
        if '__init__' in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)['__init__']).parameters
            found = {**parameters, **found}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return {name: parameter for name, parameter in found.items() if name not in ('self', 'args', 'kwargs')}


def is_of_library(kind: Union[str, type, None], scope: str) -> bool:
    """Tell whether ``type=kind`` is a class of OpenMMLab or ours, whose conventions the checks know."""
    classes = find_classes(kind, scope)
    return bool(classes) and all(cls.__module__.split('.')[0] in LIBRARIES for cls in classes)
