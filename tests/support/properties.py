"""Settings of tests that draw their cases: the same ones each time, as many as RMT_MM_EXAMPLES says."""

import os

from hypothesis import HealthCheck, settings

bounded = settings(
    max_examples=int(os.environ.get('RMT_MM_EXAMPLES', '20')),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
