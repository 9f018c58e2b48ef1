"""What holds for all tests: a thread a process, and signals that are heard."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share the cores (-n auto), before torch
import torch  # which reads it


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard():
    """nohup, under which a test run may have been started, lets processes ignore SIGHUP."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, signal.SIGINT)  # Windows lacks one
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def float64():
    """So exact that two networks trained in the same way end with the same weights."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def descend(net, loss, rate=0.1):
    """A step against the gradient."""
    parameters = list(net.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
        p.data -= rate * gradient
