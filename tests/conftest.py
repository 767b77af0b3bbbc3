"""What tests of more than one room need."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes is no matter of a test.
settings.register_profile("segdistill", deadline=None)
settings.load_profile("segdistill")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs that the test starts take SIGINT, also where the shell ignores it (``make test &``)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
