"""Tasks of a GPU run that go well or wrong."""

import os
import signal
import time


def succeed(context):
    yield {"value": 1}


def fail(context):
    yield {"value": 0}
    raise ValueError("on purpose")


def hang(context):
    yield {"value": 0}
    time.sleep(600)


def die(context):
    yield {"value": 0}
    os.kill(os.getpid(), signal.SIGKILL)
