"""How fast training and sampling are, beside what the machine can do: cases that take turns, and their medians."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler would tell on stderr that a CPU is no GPU
