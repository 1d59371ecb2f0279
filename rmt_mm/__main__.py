"""`python -m rmt_mm`: see :mod:`rmt_doctor`."""

import sys

from rmt_doctor import main

sys.exit(main())
