"""Measures line coverage in every Python process of a test run: put this directory on PYTHONPATH and set COVERAGE_RCFILE.

Most of clinvk's processes do not end as coverage expects: workers die of SIGTERM or leave by os._exit, the program leaves by
os._exit or of a signal.  So what was measured is saved right before; a worker that was forked measures anew.
"""
import os
import signal

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


def _start_anew():
    for measurement in _measured:
        measurement.stop()
    _start()


def _with_saving(leave):
    def save_and_leave(status):
        _save()
        leave(status)
    return save_and_leave


def _saved_before(set_handler):
    def set_and_save(number, handler):
        if handler is not signal.SIG_DFL:
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
    os.register_at_fork(after_in_child=_start_anew)
    os._exit = _with_saving(os._exit)
    signal.signal = _saved_before(signal.signal)
