"""Records which lines of a source file run, in every Python process that has this directory on its PYTHONPATH.

coverage keeps what it saw in the process and writes it when that ends.  The processes here end by os._exit, by SIGTERM with its
default action (a handler would change what is tested) and by SIGKILL.  So each line is noted as it runs, a byte a line, in a
file that all of them map.  RECORDED_SOURCE names the source file, RECORDED_LINES that file.  report.py reads it.
"""
import os
import sys


def record(source, lines):
    import mmap
    files = [os.open(lines, os.O_RDWR | os.O_CLOEXEC)]
    while files[-1] < 3:  # standard streams that are closed are to stay so; the mapping keeps a descriptor
        files.append(os.open(lines, os.O_RDWR | os.O_CLOEXEC))
    seen = mmap.mmap(files[-1], 0)
    for file in files:
        os.close(file)

    if not hasattr(sys, "monitoring"):  # before Python 3.12: slower
        import threading

        def trace(frame, event, argument):
            if frame.f_code.co_filename != source:
                return None
            seen[frame.f_lineno] = 1
            return trace

        threading.settrace(trace)
        sys.settrace(trace)
        return

    def ran(code, line):
        if code.co_filename == source:
            seen[line] = 1
        return sys.monitoring.DISABLE  # of this line, in this process

    tool = sys.monitoring.COVERAGE_ID
    sys.monitoring.use_tool_id(tool, "lines")
    sys.monitoring.register_callback(tool, sys.monitoring.events.LINE, ran)
    sys.monitoring.set_events(tool, sys.monitoring.events.LINE)


if os.environ.get("RECORDED_LINES"):
    record(os.environ["RECORDED_SOURCE"], os.environ["RECORDED_LINES"])
