"""Programs that torch.export records for any size take small maps and large ones, whose kernels differ otherwise."""

import pytest
import torch

from rmt_mm import MaSA

if not hasattr(torch.compiler, 'is_exporting'):
    pytest.skip('this torch does not tell an export from a compilation', allow_module_level=True)


@pytest.mark.parametrize('strict', [False, True])
def test_a_program_for_any_size_takes_small_maps_and_large_ones(strict):
    masa = MaSA(16, 2, init_value=2, heads_range=4, decomposed=False).eval()
    height, width = (torch.export.Dim(name, min=2, max=100) for name in ('height', 'width'))
    program = torch.export.export(
        masa, (torch.rand(1, 6, 10, 16),), dynamic_shapes=({1: height, 2: width},), strict=strict
    ).module()
    for size in ((5, 7), (64, 66)):
        x = torch.rand(1, *size, 16)
        with torch.no_grad():
            torch.testing.assert_close(program(x), masa(x))
