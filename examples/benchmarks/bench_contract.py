"""Which checks of `skbilevel.testing.check_imputer` do imputers pass? Prints a Markdown table.

Only checks that some imputer fails have a row of their own.
"""

from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from skbilevel import GaussianImputer
from skbilevel.testing import check_imputer

IMPUTERS = {
    "SimpleImputer": SimpleImputer(),
    "KNNImputer": KNNImputer(),
    "IterativeImputer": IterativeImputer(),
    "IterativeImputer, sample_posterior": IterativeImputer(sample_posterior=True),
    "GaussianImputer": GaussianImputer(),
}


def main() -> None:
    statuses = {
        name: {r["check_name"]: r["status"] for r in check_imputer(imputer, on_fail=None)}
        for name, imputer in IMPUTERS.items()
    }
    checks = list(next(iter(statuses.values())))
    print("| check | " + " | ".join(IMPUTERS) + " |")
    print("|---|" + "---|" * len(IMPUTERS))
    for check in checks:
        row = [statuses[name][check] for name in IMPUTERS]
        if set(row) != {"passed"}:
            print(f"| {check} | " + " | ".join(row) + " |")
    totals = [list(of.values()).count("passed") for of in statuses.values()]
    print(f"| passed of {len(checks)} | " + " | ".join(map(str, totals)) + " |")


if __name__ == "__main__":
    main()
