"""`python -m rmt_mm.build_ops`: see :mod:`rmt_mm.ops.build`."""

from .ops.build import main

if __name__ == '__main__':
    main()
