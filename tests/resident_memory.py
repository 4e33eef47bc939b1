"""Peak resident memory of steps in a fresh process, which counts torch's too."""

import subprocess
import sys

RESIDENT = """
def resident(key, reset=False):
    if reset:
        open("/proc/self/clear_refs", "w").write("5")
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(lines[key].split()[0]) / 1024

for step in steps:
    before = resident("VmRSS", reset=True)
    step()
    print(resident("VmHWM") - before)
"""


def peaks(code, *arguments):
    """MB that each of the ``steps``, functions that the code defines, needs at most."""
    command = [sys.executable, "-c", code + RESIDENT, *map(str, arguments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(line) for line in run.stdout.split()]
