"""report.py LINES: gives what sitecustomize noted to coverage, for `coverage report` to read."""
import os
import sys

import coverage

with open(sys.argv[1], "rb") as file:
    ran = [number for number, byte in enumerate(file.read(), 1) if byte]
data = coverage.CoverageData(os.environ["COVERAGE_DATA"])
data.add_lines({os.path.abspath("clinvk.py"): ran})
data.write()
