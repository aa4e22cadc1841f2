import os
import signal
import threading

import pytest

from ludus.learning.interruption import Interrupted, listening


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_second_leaves_at_once(number):
    with listening() as asked:
        assert asked.number is None
        os.kill(os.getpid(), number)
        assert asked.number == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_whatever_happens():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with listening():
        assert signal.getsignal(signal.SIGTERM) not in before
    with pytest.raises(ZeroDivisionError), listening():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_caught_and_nothing_fails():
    found: list[int | None] = []

    def work() -> None:
        with listening() as asked:
            found.append(asked.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_that_of_the_signal(number, code):
    assert Interrupted(number, 3, 3).code == code
    assert str(Interrupted(number, 3, 0)).endswith("after step 3; what is saved ends with step 0")
