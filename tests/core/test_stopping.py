"""Signals raise where a command is, wait in sections that ask for it, and end it at the third."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from partcraft_lit.core import slurm, stopping


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_raises_where_the_command_is(number):
    with pytest.raises(stopping.Stopped) as stop, stopping.caught():  # noqa: PT012
        send(number)
        time.sleep(1)
    assert stop.value.number == number and stop.value.code == 128 + number
    assert isinstance(stop.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_deferred_section_asks_and_the_end_of_it_raises():
    with pytest.raises(stopping.Stopped), stopping.caught():  # noqa: PT012
        with stopping.deferred():
            assert stopping.received() is None
            send(signal.SIGUSR1)
            assert stopping.received() == signal.SIGUSR1
        pytest.fail("it goes on behind the section")


def test_a_section_that_ends_by_itself_is_not_disturbed():
    with stopping.caught():
        with stopping.deferred():
            send()
            stopping.ending()
        stopping.check()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # until the process has exited


def test_two_close_signals_are_one_and_the_first_counts():
    with pytest.raises(stopping.Stopped) as stop, stopping.caught(), stopping.deferred():  # noqa: PT012
        send(signal.SIGINT)
        send(signal.SIGTERM)
    assert stop.value.number == signal.SIGINT


def test_a_signal_in_a_finalizer_comes_behind_it():
    reached = []

    class Finalized:
        def __del__(self):
            send()
            time.sleep(0.1)
            reached.append("end of the finalizer")

    with pytest.raises(stopping.Stopped), stopping.caught():  # noqa: PT012
        Finalized()
        time.sleep(1)
        pytest.fail("the signal was lost")
    assert reached


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_was_swallowed_comes_at_the_next_check():
    class Referred:
        pass

    def swallow(_reference):
        send()
        time.sleep(0.1)

    with pytest.raises(stopping.Stopped), stopping.caught():  # noqa: PT012
        referred = Referred()
        reference = weakref.ref(referred, swallow)
        del referred
        assert reference() is None
        stopping.check()


def test_other_threads_have_no_signals():
    seen = []

    def work():
        with stopping.caught(), stopping.deferred():
            seen.append(stopping.received())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


def ended(script, *numbers, gap=0.0):
    """Exit code and output of a script that prints a line when it is ready."""
    script = "import os, signal, sys, time\nfrom partcraft_lit.core import stopping\n" + textwrap.dedent(script)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # it is about to do something
    for number in numbers:
        process.send_signal(number)
        time.sleep(gap)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def test_the_third_signal_ends_at_once():
    script = """
        with stopping.caught(), stopping.deferred():
            print("ready", flush=True)
            while True:
                time.sleep(0.05)
    """
    assert ended(script, *[signal.SIGINT] * 3, gap=1.1)[0] == -signal.SIGINT


def test_a_main_thread_that_is_kept_busy_is_ended_by_another():
    script = """
        import hashlib
        def end(stop):
            print("ended by", stop.name, flush=True)
            return stop.code
        with stopping.caught(end):
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # an hour within one call
    """
    assert ended(script, signal.SIGTERM) == (143, "ended by SIGTERM\n")


def test_a_forked_child_leaves_signals_to_its_parent():
    script = """
        with stopping.caught(lambda stop: 99):
            parent = os.fork()
            if parent:
                os.kill(parent, signal.SIGTERM)
                _, status = os.waitpid(parent, 0)
                print("ready", flush=True)
                time.sleep(4)
                sys.exit(os.waitstatus_to_exitcode(status))
            time.sleep(0.5)
            os._exit(7)
    """
    assert ended(script)[0] == 7


def test_outside_of_slurm_nothing_is_queued_again(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm.requeue() is None
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("PATH", "")
    assert slurm.requeue().startswith("SLURM does not start job 5 again (")
