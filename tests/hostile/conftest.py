"""Nothing may hang: each hostile test ends within its limit, `@pytest.mark.limit(seconds)` or 60 s (slow tests: 600 s)."""

import signal

import pytest


@pytest.fixture(autouse=True)
def _time_limit(request):
    marker = request.node.get_closest_marker("limit")
    seconds = marker.args[0] if marker else 600 if request.node.get_closest_marker("slow") else 60

    def too_long(*_):
        raise TimeoutError(f"this test takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
