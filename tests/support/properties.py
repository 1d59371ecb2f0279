"""Settings of tests that draw their cases: the same ones each time, as many as RMT_MM_EXAMPLES says."""

import os

from hypothesis import HealthCheck, Phase, settings

bounded = settings(
    max_examples=int(os.environ.get('RMT_MM_EXAMPLES', '20')),
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # a failure is shown as it was drawn: to shrink it takes minutes
    suppress_health_check=list(HealthCheck),
)
