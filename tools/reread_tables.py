"""Reads finished tables again with pandas and scipy alone: python tools/reread_tables.py [FOLDER ...]

Means, intervals, differences, effect sizes and p-values of ``summary.csv`` are computed from ``results.csv`` (one line
per image), ``runs.csv`` (one line per run) and ``protocol.json``, by code that shares nothing with the package, and
compared:

- means and differences to the best row to four digits, effect sizes and p-values to three;
- bootstrap intervals within what two bootstraps with other random numbers may differ by;
- Holm's correction over all comparisons of the table.

A FOLDER is what ``partcraft table`` wrote; all of experiments/ by default. What cannot be compared is named: values of
whole runs of tables from before ``runs.csv``, and the tests of tables from before there were paired t-tests. The exit
code is 1 where a number differs, and where nothing could be compared.
"""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

RELATIVE, ABSOLUTE = 1e-4, 2e-6  # summary.csv has six digits, results.csv too
TESTS = 1e-3  # relative, of what is a ratio of small differences: effect sizes and p-values
RESAMPLES = 20_000


def values_of_images(results: pd.DataFrame, column: dict, metric: str) -> pd.DataFrame:
    """Row and seed by image, without rows that have no value in some run, and images for which another has none."""
    chosen = results[results["protocol"].isin(column["protocols"])].copy()
    chosen["image_of"] = chosen["protocol"] + "/" + chosen["index"].astype(str)
    order = {protocol: place for place, protocol in enumerate(column["protocols"])}
    chosen = chosen.sort_values(by=["index"]).sort_values(by=["protocol"], key=lambda s: s.map(order), kind="stable")
    wide = chosen.pivot_table(index=["row", "seed"], columns="image_of", values=metric, aggfunc="first", dropna=False)
    present = chosen.groupby(["row", "seed"]).size().index
    wide = wide.loc[wide.index.intersection(present)]
    wide = wide.drop(index=wide.index.get_level_values("row")[wide.isna().all(axis="columns")], level="row")
    return column.get("times", 1.0) * wide.dropna(axis="columns", how="any")


def values_of_runs(runs: pd.DataFrame, title: str) -> pd.DataFrame:
    """Row and seed by one value."""
    chosen = runs[runs["column"] == title]
    return chosen.set_index(["row", "seed"])[["value"]].astype(float)


def bootstrap(values: np.ndarray, level: float, resamples: int) -> list[tuple[float, float]] | None:
    """Between which numbers the bounds of a mean over (seeds, images) lie in all but a few bootstraps.

    Images are drawn once for all seeds. A bound is a quantile of resampled means, here and there with other random
    numbers, so the share of means below it is uncertain by a binomial error; five of them are allowed, as all tables
    together have thousands of bounds.
    """
    if values.size == 1:
        return None
    generator = np.random.default_rng(12345)
    seeds, images = values.shape
    # How often each seed, and each image, is drawn.
    times_seed, times_image = (
        generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) for count in (seeds, images)
    )
    means = np.einsum("ri,ri->r", times_seed @ values, times_image) / values.size
    tail = (1 - level) / 2
    error = 5 * np.sqrt(tail * (1 - tail) * (1 / resamples + 1 / RESAMPLES))
    ranges = [np.clip([share - error, share + error], 0, 1) for share in (tail, 1 - tail)]
    return [tuple(np.quantile(means, shares)) for shares in ranges]


def paired(ours: pd.DataFrame, best: pd.DataFrame, level: float) -> dict[str, float]:
    """Student's paired t-test over seeds, with Cohen's d_z after Hedges."""
    common = ours.index.intersection(best.index)
    differences = (ours.loc[common].to_numpy() - best.loc[common].to_numpy()).mean(axis=1)
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return {"difference": mean}
    spread = float(np.std(differences, ddof=1))
    if spread <= 1e-12 * max(1.0, abs(mean)):  # the signs alone
        p_value = 1.0 if abs(mean) <= 1e-12 else 2.0 ** (1 - count)
        return {"difference": mean, "difference_low": mean, "difference_high": mean, "p_value": p_value}
    test = stats.ttest_rel(ours.loc[common].mean(axis=1), best.loc[common].mean(axis=1))
    bounds = test.confidence_interval(level)
    effect = (1 - 3 / (4 * count - 5)) * mean / spread
    return {
        "difference": mean,
        "difference_low": bounds.low,
        "difference_high": bounds.high,
        "effect": effect,
        "p_value": float(test.pvalue),
    }


def holm(p_values: pd.Series) -> pd.Series:
    """Step-down correction of all that are not missing."""
    ranked = p_values.dropna().sort_values(kind="stable")
    factors = np.arange(len(ranked), 0, -1)
    return (ranked * factors).cummax().clip(upper=1.0).reindex(p_values.index)


def columns_of(protocol: dict, titles: list[str]) -> dict[str, tuple[dict, str]]:
    """Title -> column of the protocol, and the pattern with its network: ``FID (fid@x)`` is column FID."""
    found = {}
    for title in titles:
        names = [name for name in protocol["columns"] if title == name or title.startswith(f"{name} (")]
        name = max(names, key=len)
        column = protocol["columns"][name]
        metric, key = column["metric"], title[len(name) + 2 : -1]
        prefix = "pictures/" if metric.startswith("pictures/") else ""
        found[title] = (column, f"{prefix}{key}" if key else metric)
        assert fnmatchcase(found[title][1], metric), f"{title}: {found[title][1]} is no {metric}"
    return found


class Comparison:
    """Counts what is the same and lists what is not."""

    def __init__(self) -> None:
        self.same = 0
        self.wrong: list[str] = []

    def number(
        self, where: str, stored: float, computed: float, relative: float = RELATIVE, absolute: float = ABSOLUTE
    ) -> None:
        if pd.isna(stored) and pd.isna(computed):
            return
        if np.isclose(stored, computed, rtol=relative, atol=absolute) or stored == computed:
            self.same += 1
        else:
            self.wrong.append(f"{where}: {stored:.6g} in summary.csv, {computed:.6g} computed again")

    def bounds(self, where: str, stored: pd.Series, ranges: list[tuple[float, float]] | None) -> None:
        for name, (least, most) in zip(("low", "high"), ranges or [(np.nan, np.nan)] * 2, strict=True):
            slack = ABSOLUTE + RELATIVE * abs(stored[name])
            if pd.isna(stored[name]) and ranges is None:
                continue
            if least - slack <= stored[name] <= most + slack:
                self.same += 1
            else:
                self.wrong.append(
                    f"{where}, {name}: {stored[name]:.6g} in summary.csv, {least:.6g} to {most:.6g} again"
                )


def reread(folder: Path) -> tuple[int, list[str], list[str]]:
    """Numbers that are the same, those that differ, and what could not be compared."""
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    summary = pd.read_csv(folder / "summary.csv", dtype={"row": str, "best": str})
    results = pd.read_csv(folder / "results.csv", dtype={"row": str, "protocol": str})
    runs = pd.read_csv(folder / "runs.csv", dtype={"row": str}) if (folder / "runs.csv").is_file() else None
    tested = "p_corrected" in summary.columns
    found, skipped = Comparison(), [] if tested else ["tests: the table is older than its paired t-tests"]
    p_values = summary["p_value"].copy() if tested else pd.Series(dtype=float)
    for title, (column, metric) in columns_of(protocol, list(dict.fromkeys(summary["column"]))).items():
        cells = summary[summary["column"] == title]
        cells = cells[cells["mean"].notna()]
        if cells.empty:
            continue
        if column["per"] == "run":
            if runs is None:
                skipped.append(f"{title}: one value for each run, and there is no runs.csv")
                continue
            values = values_of_runs(runs, title)
        else:
            values = values_of_images(results, column, metric)
        best = cells.loc[cells["best"] == "True", "row"].iloc[0]
        for index, cell in cells.iterrows():
            ours = values.loc[cell["row"]]
            where = f"{cell['row']}, {title}"
            found.number(f"{where}, mean", cell["mean"], ours.mean(axis=1).mean())
            found.number(f"{where}, seeds", cell["seeds"], len(ours))
            found.bounds(where, cell, bootstrap(ours.to_numpy(), protocol["level"], protocol["resamples"]))
            if not tested or cell["row"] == best:
                continue
            computed = paired(ours, values.loc[best], protocol["level"])
            # Each value of a run has six digits, and a bound near zero is a difference of many times larger numbers.
            rounding = 1e-5 * values.abs().to_numpy().max() if column["per"] == "run" else 0.0
            for key, value in computed.items():
                relative = TESTS if key in ("effect", "p_value") else RELATIVE
                found.number(f"{where}, {key}", cell[key], value, relative, max(ABSOLUTE, rounding))
            p_values[index] = computed.get("p_value", np.nan)
        sign = 1 if column["higher"] else -1
        top = max(cells["row"], key=lambda row: sign * values.loc[row].mean(axis=1).mean())
        if top != best and not np.isclose(values.loc[top].mean(axis=1).mean(), values.loc[best].mean(axis=1).mean()):
            found.wrong.append(f"{title}: the best row is {top}, not {best}")
    if tested:
        for index, value in holm(p_values).items():
            where = f"{summary.loc[index, 'row']}, {summary.loc[index, 'column']}, p_corrected"
            found.number(where, summary.loc[index, "p_corrected"], value, TESTS)
    return found.same, found.wrong, skipped


def main(arguments: list[str]) -> int:
    given = [Path(argument) for argument in arguments]
    folders = given or sorted(path.parent for path in Path("experiments").rglob("summary.csv"))
    failed = not folders
    for folder in folders:
        same, wrong, skipped = reread(folder)
        print(f"{folder}: {same} numbers are the same, {len(wrong)} differ")
        for line in [*wrong, *(f"not compared: {line}" for line in skipped)]:
            print(f"  {line}")
        failed = failed or bool(wrong) or not same
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
