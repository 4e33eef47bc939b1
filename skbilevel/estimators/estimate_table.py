"""Estimates as a table of plain text."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm


def estimate_table(
    names: Sequence[str], coef: np.ndarray, stderr: np.ndarray, level: float
) -> list[str]:
    """Lines of a table: each estimate with its standard error, z, the p-value of 0, and the bounds
    of its Wald interval."""
    z = np.divide(coef, stderr, out=np.full(len(coef), np.nan), where=stderr > 0)
    width = norm.ppf((1 + level) / 2) * stderr
    ends = (f"[{(1 - level) / 2:.3g}", f"{(1 + level) / 2:.3g}]")
    cells = [["", "coef", "std err", "z", "P>|z|", *ends]]
    rows = zip(names, coef, stderr, z, 2 * norm.sf(np.abs(z)), strict=True)
    for (name, *numbers), half in zip(rows, width, strict=True):
        value, se, ratio, pvalue = numbers
        bounds = (f"{value + sign * half:.4g}" for sign in (-1, 1))
        told = (f"{value:.4g}", f"{se:.3g}", f"{ratio:.2f}", f"{pvalue:.3f}")
        cells.append([str(name), *told, *bounds])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]
