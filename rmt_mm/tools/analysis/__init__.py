"""What a trained RMT does with an image: attention of a token, receptive fields, and its features as colours."""

from .attention_maps import AttentionMaps, Recorded, attend_by_map, attention_maps, find_backbone, record
from .features import features_as_colours
from .receptive_field import receptive_fields
from .view import View

__all__ = [
    'AttentionMaps',
    'Recorded',
    'View',
    'attend_by_map',
    'attention_maps',
    'features_as_colours',
    'find_backbone',
    'receptive_fields',
    'record',
]
