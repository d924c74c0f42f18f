"""SIGTERM and Ctrl-C ask training to stop; the handlers of before come back."""

import os
import signal
import threading

import pytest

from cellseg_jax.train.interrupt import interruptible


@pytest.fixture(autouse=True)
def terminal():
    """Ctrl-C as a terminal has it: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before = handlers()
    with interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), number)
        assert interrupted() and interrupted()
    assert handlers() == before
    with interruptible() as interrupted:
        assert not interrupted()


def test_a_scheduler_may_send_sigterm_again_and_a_second_ctrl_c_ends():
    with interruptible() as interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()


def test_handlers_come_back_after_an_error():
    before = handlers()
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
    assert handlers() == before


def test_outside_the_main_thread_nothing_is_installed():
    seen = []

    def work():
        with interruptible() as interrupted:
            seen.append((handlers(), interrupted()))

    before = handlers()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
