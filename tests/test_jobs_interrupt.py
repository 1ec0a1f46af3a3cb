import contextlib
import os
import signal

import pytest

from jobs.interrupt import heed, listen


def test_an_interrupt_that_a_library_swallowed_is_heeded_later():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        listen()
        heed()
        with contextlib.suppress(BaseException):  # what some libraries do while they are imported
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            heed()
        heed()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
