"""Names of the authors' checkpoints, mapped to ours."""
import re
from typing import Dict

import torch
from torch import Tensor

# The patterns are tried in order on names of the official dense or classification layout; the first match counts.
# None stands for what we compute ourselves.
_RENAMES = [
    (r'layers\.\d+\.Relpos\..*', None),
    (r'patch_embed\.proj\.(.*)', r'stem.\1'),
    (r'layers\.(\d+)\.downsample\.reduction\.(.*)', r'downsamples.\1.conv.\2'),
    (r'layers\.(\d+)\.downsample\.norm\.(.*)', r'downsamples.\1.norm.\2'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.pos\.conv\.(.*)', r'stages.\1.\2.cpe.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.retention_layer_norm\.(.*)', r'stages.\1.\2.norm1.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.retention\.lepe\.conv\.(.*)', r'stages.\1.\2.attn.lce.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.retention\.out_proj\.(.*)', r'stages.\1.\2.attn.proj.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.final_layer_norm\.(.*)', r'stages.\1.\2.norm2.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.ffn\.dwconv\.conv\.(.*)', r'stages.\1.\2.ffn.dwconv.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.ffn\.(fc[12]\..*)', r'stages.\1.\2.ffn.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.gamma_([12])', r'stages.\1.\2.gamma\3'),
    (r'extra_norms\.(\d+)\.(.*)', r'norm\1.\2'),
]
_QKV = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.retention\.([qkv])_proj\.(weight|bias)')
_HEAD = {'proj': 'head.proj', 'norm': 'head.norm', 'head': 'head.fc', 'aux_head': 'head.aux_fc'}


def convert_official_state_dict(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Convert an official RMT state dict to the names and shapes of this package.

    Args:
        state_dict (dict[str, Tensor]): the state dict of an official backbone (dense layout), classifier or
            token-label classifier, without prefix: the contents of ``model`` in the released files.

    Returns:
        dict[str, Tensor]: backbone tensors under the names of :class:`rmt_mm.RMT`; a classifier's, under those of an
        mmpretrain ``ImageClassifier``, so with ``backbone.`` and ``head.`` in front. Query, key and value projections
        become one; position buffers are left out, since they are computed.

    Raises:
        ValueError: names that no official RMT has, or a block without one of its three projections.
    """
    converted, qkv, unknown = {}, {}, []
    for name, tensor in state_dict.items():
        match = _QKV.fullmatch(name)
        if match:
            stage, block, which, kind = match.groups()
            qkv.setdefault(f'stages.{stage}.{block}.attn.qkv.{kind}', {})[which] = tensor
            continue
        top, _, rest = name.partition('.')
        if top in _HEAD:
            converted[f'{_HEAD[top]}.{rest}'] = tensor
            continue
        for pattern, new in _RENAMES:
            match = re.fullmatch(pattern, name)
            if match:
                if new is not None:
                    converted[match.expand(new)] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f'{len(unknown)} names are not those of an official RMT checkpoint, '
                         f'such as {", ".join(unknown[:3])}.')
    for name, parts in qkv.items():
        missing = [which for which in 'qkv' if which not in parts]
        if missing:
            raise ValueError(f'{name}: the checkpoint has no {", ".join(f"{which}_proj" for which in missing)}.')
        converted[name] = torch.cat([parts[which] for which in 'qkv'])
    if any(name.startswith('head.') for name in converted):
        converted = {name if name.startswith('head.') else f'backbone.{name}': t for name, t in converted.items()}
    return converted
