"""The README's code runs, and prints what its comments say."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NUMBER = r"-?\d+\.\d+"


def figures(code):
    """Numbers that comments promise of what is printed: those before a semicolon."""
    comments = re.findall(r"print\(.*\)  # ([^;\n]*)", code)
    return [number for comment in comments for number in re.findall(NUMBER, comment)]


def test_blocks_print_the_figures_of_their_comments():
    promised, names, printed = 0, {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in BLOCKS:
            exec(block, names)
    told = {f"{float(number):.2f}" for number in re.findall(NUMBER, printed.getvalue())}
    for block in BLOCKS:
        assert set(figures(block)) <= told
        promised += len(figures(block))
    assert promised >= 3
