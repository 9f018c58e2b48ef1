"""What holds for all tests."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard():
    """nohup, under which a test run may have been started, lets processes ignore SIGHUP."""
    for name in {"SIGINT", "SIGHUP"} & {*dir(signal)}:
        if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            default = {"SIGINT": signal.default_int_handler}.get(name, signal.SIG_DFL)
            signal.signal(getattr(signal, name), default)
