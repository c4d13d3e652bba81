"""Note which lines of clinvk.py run, in every Python process of a test run.

Put this directory on PYTHONPATH, and set MEASURED_FILE (the path of clinvk.py) and MEASURED_LINES
(a file with as many zero bytes as there are lines).  From Python 3.13 on; others are not measured.

Most processes of clinvk do not end in order: the program leaves by os._exit, a worker by a signal.
So nothing is kept to be saved later.  All processes map the file into their memory, and set the
byte of a line when the line runs for the first time.  After that the interpreter does not look at
the line again, so that the tests are not slower.
"""
import os
import sys

if sys.version_info >= (3, 13) and "MEASURED_LINES" in os.environ:
    import mmap

    _monitoring = sys.monitoring
    _source = os.environ["MEASURED_FILE"]
    _file = os.open(os.environ["MEASURED_LINES"], os.O_RDWR)
    _lines = mmap.mmap(_file, 0, trackfd=False)  # no descriptor stays open, as the tests count them
    os.close(_file)

    def _started(code, offset):
        if code.co_filename == _source:
            _monitoring.set_local_events(_monitoring.COVERAGE_ID, code, _monitoring.events.LINE)
        return _monitoring.DISABLE

    def _ran(code, line):
        _lines[line - 1] = 1
        return _monitoring.DISABLE

    _monitoring.use_tool_id(_monitoring.COVERAGE_ID, "lines of clinvk.py")
    _monitoring.register_callback(_monitoring.COVERAGE_ID, _monitoring.events.PY_START, _started)
    _monitoring.register_callback(_monitoring.COVERAGE_ID, _monitoring.events.LINE, _ran)
    _monitoring.set_events(_monitoring.COVERAGE_ID, _monitoring.events.PY_START)
