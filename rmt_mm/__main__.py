"""`python -m rmt_mm`: see :mod:`rmt_mm.tools.commands.doctor`."""

import sys

from .tools.commands.doctor import main

sys.exit(main())
