"""`python -m rmt_mm`: see :mod:`rmt_mm.commands.doctor`."""

import sys

from .commands.doctor import main

sys.exit(main())
