#!/usr/bin/env python3
"""Line coverage from what sitecustomize.py recorded: `report.py SOURCE LINES FLOOR`.  `report.py SOURCE LINES` makes the file.

Which lines count is coverage's judgement.  Fails below FLOOR per cent, and for a line that is left out of the count without a reason:
`# pragma: no cover (the reason)`.
"""
import os
import re
import sys
import tempfile


def report(source, lines, floor):
    import coverage
    with open(lines, "rb") as file:
        ran = [number for number, seen in enumerate(file.read()) if seen]
    with tempfile.TemporaryDirectory() as directory:
        data = coverage.CoverageData(os.path.join(directory, "data"))
        data.add_lines({source: ran})
        data.write()
        measured = coverage.Coverage(os.path.join(directory, "data"), config_file=False, messages=False)
        measured.exclude(r"^\s*if TYPE_CHECKING:")
        measured.load()
        percent = measured.report([source], show_missing=True, skip_empty=True)
    with open(source, encoding="utf-8") as file:
        bare = [number for number, line in enumerate(file, 1) if re.search(r"pragma: no cover(?! \(.+\))", line)]
    for number in bare:
        print("%s:%d: left out of the count without a reason" % (source, number))
    if percent < floor:
        print("%.2f %% is below the floor of %g %%" % (percent, floor))
    return 1 if bare or percent < floor else 0


def main():
    source, lines, *floor = sys.argv[1:]
    if floor:
        return report(source, lines, float(floor[0]))
    with open(source, "rb") as file:
        count = file.read().count(b"\n")
    with open(lines, "wb") as file:
        file.write(bytes(count + 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
