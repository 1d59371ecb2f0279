"""Presets and the check of a size of one's own."""
import pytest

from rmt_mm.arch import ARCHS, resolve_arch

OWN = dict(
    embed_dims=(16, 24, 32, 48),
    depths=(1, 1, 2, 1),
    num_heads=(2, 2, 4, 4),
    init_values=(2, 2, 2, 2),
    heads_ranges=(4, 4, 6, 6),
    mlp_ratios=(3, 3, 3, 3),
    decomposed=(True, True, True, False),
    layer_scales=(False, False, False, True))


@pytest.mark.parametrize('name', ARCHS)
def test_presets_by_name_and_letter(name):
    assert resolve_arch(name) == resolve_arch(name[0]) == resolve_arch(name.upper()) == ARCHS[name]


def test_tiny_decomposes_two_stages_and_the_others_three():
    assert {name: sum(arch.decomposed) for name, arch in ARCHS.items()} == dict(tiny=2, small=3, base=3, large=3)


def test_own_size():
    assert resolve_arch(OWN).depths == (1, 1, 2, 1)


@pytest.mark.parametrize('change, words', [
    (dict(embed_dim=3), ['unknown', 'embed_dim', 'embed_dims']),
    (dict(depths=(1, 2)), ['depths', '4 values', '(1, 2)']),
    (dict(depths=(1, 0, 1, 1)), ['depths', 'positive', '0']),
    (dict(num_heads=(3, 2, 4, 4)), ['3 heads', '16 channels', 'stage 0']),
    (dict(embed_dims=(16, 22, 32, 48)), ['22 / 2 = 11', 'even', 'stage 1']),
    (dict(embed_dims=(15, 24, 32, 48), num_heads=(5, 2, 4, 4)), ['15 / 5 = 3', 'even']),
    (dict(init_values=(0, 2, 2, 2)), ['init_values', '> 0']),
])
def test_wrong_sizes_are_named(change, words):
    with pytest.raises(ValueError) as error:
        resolve_arch({**OWN, **change})
    assert all(word in str(error.value) for word in words), error.value


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match='missing: mlp_ratios'):
        resolve_arch({key: value for key, value in OWN.items() if key != 'mlp_ratios'})


def test_unknown_name_lists_the_presets():
    with pytest.raises(ValueError, match="'huge'.*tiny, small, base, large"):
        resolve_arch('huge')


def test_wrong_type():
    with pytest.raises(TypeError, match='str or a dict, got int'):
        resolve_arch(3)
