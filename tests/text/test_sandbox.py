"""A hostile template fails in bounded time and memory, from any thread, and the next one is rendered all the same."""

import os
import resource
import subprocess
import threading
import time

import pytest

from ludus.base.errors import DataError
from ludus.text import sandbox
from ludus.text.template import render_text

HARMLESS = "{% for m in messages %}{{ m.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "Hi."}]


def rendered(template: str) -> str:
    return render_text(template, MESSAGES, generation_prompt=False, tokens={})


@pytest.fixture
def quick(monkeypatch) -> None:
    """Let the process apart have a second only."""
    start = (
        "import sys; sys.path[:] = sys.argv[1:]; from ludus.text import sandbox; sandbox.SECONDS = 1; sandbox.serve()"
    )
    monkeypatch.setattr(sandbox, "_START", start)
    sandbox._end()
    yield
    sandbox._end()


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ 'a' | center(10**10) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}",
        "{{ 'x' * 5000000 }}",
        "{% set x = [1] * 10**9 %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ [1] | batch(10**10, 'x') | list | length }}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "(" * 50 + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if 1 %}" * 300 + "{% endif %}" * 300,
    ],
)
def test_what_wants_too_much_memory_or_output_is_refused(template):
    start = time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(DataError, match="chat template") as caught:
        rendered(template)
    assert "\n" not in str(caught.value)
    assert time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 8
    assert rendered(HARMLESS) == "Hi."


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(90000) %}" * 3 + "{% endfor %}" * 3,
        "{{ 10 ** (10 ** 9) }}",
        "{{ lipsum(n=10**5) }}",
        "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    ],
)
def test_what_never_ends_is_ended(quick, template):
    with pytest.raises(DataError, match=r"was stopped: it takes more than|more memory|fails on"):
        rendered(template)
    assert rendered(HARMLESS) == "Hi."


def test_threads_share_one_process_and_get_their_own_answers():
    found: dict[int, str] = {}

    def work(number: int) -> None:
        template = f"{number}:" + HARMLESS
        found[number] = rendered(template)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}:Hi." for number in range(8)}


def test_a_forked_child_starts_its_own():
    assert rendered(HARMLESS) == "Hi."
    worker = sandbox._worker
    child = os.fork()
    if not child:
        try:
            fine = rendered("child " + HARMLESS) == "child Hi." and sandbox._worker is not worker
            sandbox._end()
        finally:
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sandbox._worker is worker
    assert rendered(HARMLESS) == "Hi."


def test_a_process_that_was_killed_is_replaced():
    assert rendered(HARMLESS) == "Hi."
    assert isinstance(sandbox._worker, subprocess.Popen)
    sandbox._worker.kill()
    sandbox._worker.wait()
    assert rendered(HARMLESS) == "Hi."


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_objects_are_out_of_reach(template):
    with pytest.raises(DataError):
        rendered(template + "{{ raise_exception('was rendered') if false }}{{ (1).x.y }}")
