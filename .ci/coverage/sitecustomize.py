"""Measures line coverage in every Python process of a test run: put this directory on PYTHONPATH and set COVERAGE_RCFILE.

Most of clinvk's processes do not end as coverage expects.  The program leaves by os._exit or of a signal: what was measured is
saved right before.  A worker dies of SIGTERM in the middle of whatever it does: it saves ten times a second.
"""
import os
import signal
import sys
import threading
import time

try:
    import coverage
except ImportError:  # another Python than that of the measurement
    coverage = None

_measured = []


def _start():
    del _measured[:]
    _measured.append(coverage.Coverage(config_file=os.environ["COVERAGE_RCFILE"], data_suffix=True))
    _measured[0].start()


def _save():
    for measurement in _measured:
        measurement.stop()
        measurement.save()
    del _measured[:]


def _keep_saving():
    while _measured:
        time.sleep(0.1)
        for measurement in _measured:
            measurement.save()


def _be_worker():
    """In a forked child, or a spawned one."""
    for measurement in _measured:
        measurement.stop()
    _start()
    signal.signal = _signal
    threading.Thread(target=_keep_saving, daemon=True).start()


def _with_saving(leave):
    def save_and_leave(status):
        _save()
        leave(status)
    return save_and_leave


def _saved_before(set_handler):
    def set_and_save(number, handler):
        if handler is not signal.SIG_DFL or number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            return set_handler(number, handler)

        def save_and_die(number, frame):
            _save()
            set_handler(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return set_handler(number, save_and_die)
    return set_and_save


if coverage and os.environ.get("COVERAGE_RCFILE"):
    import atexit
    _start()
    atexit.register(_save)
    os._exit = _with_saving(os._exit)
    _signal, signal.signal = signal.signal, _saved_before(signal.signal)
    os.register_at_fork(after_in_child=_be_worker)
    if "--multiprocessing-fork" in getattr(sys, "orig_argv", ()):
        _be_worker()
