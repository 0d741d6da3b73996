"""What all tests share: how hypothesis searches."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Tests run side by side on small machines: how long one example takes says nothing there.
settings.register_profile(
    "zbroker", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("zbroker")
