"""The recorded results: what `lefcourse reproduce` measured over seeds, and how sure we can be."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lefcourse import catalogue
from lefcourse.chapter.sources import source_sha256
from lefcourse.ledger.statistics import FAILS, HOLDS, NOT_JUDGED, UNDECIDED, VERDICTS, verdict
from lefcourse.ledger.statistics import interval as interval
from lefcourse.ledger.statistics import paired as paired
from lefcourse.paths import ASSETS, RESULTS

SIGNS = {">=": "≥", "<=": "≤"}
COSTS = (
    ASSETS / "costs.json"
)  # CPU seconds of each chapter at the standard budget, written by `make bench`
# How metrics, and words in their names, are written.
MEASURES = {"point": "pointing accuracy", "real": "ReaL accuracy"}
WORDS = {"map": "mAP", "gm": "GM", "knn": "kNN", "top1": "top-1", "top3": "top-3"}
CAPITALS = ("cf1", "of1", "f1", "auc", "mae", "ap", "ap50", "ap75", "pq", "sq", "rq", "svm", "2d", "3d")  # fmt: skip
WORDS |= {word: word.upper() for word in CAPITALS}
BULKY = 32  # a list of more entries (a curve over the steps) stays in the run's own record


def load(chapter: str, variant: str = "") -> dict | None:
    """Return the recorded result of a chapter (or of one of its variants), None if there is none yet."""
    return read(path_of(catalogue.get(chapter).slug, variant))


def path_of(chapter: str, variant: str = "", folder: Path | None = None) -> Path:
    """Return where the result of a chapter (or of a variant of it) is kept."""
    return (folder or RESULTS) / f"{chapter}{'-' + variant if variant else ''}.json"


def read(path: Path) -> dict | None:
    """Return the recorded result in the file `path`, None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def run_time(recorded: dict | None) -> str:
    """Say how long the recorded runs took, in a sentence."""
    if not recorded:
        return "Run time: not recorded yet."
    runs = recorded["runs"]
    wall = interval([r["wall_s"] for r in runs])
    gpu = max(r.get("cuda_peak_mb", 0) for r in runs)
    memory = f", {gpu:.0f} MiB of GPU memory" if gpu else ""
    if runs[0]["device"] == "cpu" and all("cpu_s" in run for run in runs):
        cpu = interval([run["cpu_s"] for run in runs])
        return f"With all arms it takes {cpu['mean']:.0f} s (mean of {cpu['n']} runs)."
    return f"Measured run time with all arms: {wall['mean']:.0f} s on {runs[0]['device']} (mean of {wall['n']} runs){memory}."


def cpu_time(chapter: str) -> str:
    """Say what a run of the chapter as it stands costs, as `make bench` measured it; "" if it has not."""
    known = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    if chapter not in known:
        return ""
    cost = known[chapter]
    return f"As it stands it takes {cost['cpu_s']:.0f} s of CPU time on one thread ({cost['processor']}). "


def measure(metric: str) -> str:
    """Return a metric's name as it is written in the field: `cf1_chosen` is "CF1 chosen"."""
    return MEASURES.get(metric) or " ".join(WORDS.get(w, w) for w in metric.split("_"))


def span(summary: dict, digits: int = 3) -> str:
    """Write a mean with its 95 % interval: `0.951 (0.940 to 0.962)`."""
    if summary["mean"] is None:
        return "undefined"
    if summary["low"] is None:
        return f"{summary['mean']:.{digits}f}"
    return f"{summary['mean']:.{digits}f} ({summary['low']:.{digits}f} to {summary['high']:.{digits}f})"


def sentence(chapter: str, recorded: dict | None) -> str:
    """Say what the recorded seeds closed of the gap, or that nothing is recorded yet."""
    if not recorded:
        return f"Nothing is recorded for this chapter yet; `lefcourse reproduce {chapter}` measures it over five seeds."
    gap, n = recorded["summary"]["gap_closed"], len(recorded["runs"])
    meaning = ", mean with 95 % interval" if gap["mean"] is not None else ""
    where = f"{recorded['runs'][0]['device']}, {recorded['runs'][0]['budget']} budget"
    some = f" over the {gap['n']} that leave a gap" if 0 < gap["n"] < n else ""
    return f"Recorded over {n} seeds ({where}): gap closed {span(gap, 2)}{meaning}{some}."


def gap_sentence(run, recorded: dict | None) -> str:
    """Say what this run closed of the gap, beside what the recorded seeds closed."""
    gap = run.record["gap_closed"]
    here = (
        f"**Gap closed in this run: {gap:.2f}.**"
        if gap is not None
        else "In this run there is no gap to measure: the baseline is not above the floor, or nearly as good as the oracle."
    )
    return f"{here} {sentence(run.chapter.slug, recorded)}"


def recorded_arms(chapter: str, metric: str, names: Sequence[str]) -> str:
    """Say the recorded mean and 95 % interval of `metric` for the arms in `names`, or that there is none yet."""
    recorded = load(chapter)
    if not recorded:
        return sentence(chapter, None)
    arms = recorded["summary"]["arms"]
    # An older record may lack some.
    known = [name for name in names if metric in arms.get(name, {})]
    said = "; ".join(f"{name} {span(arms[name][metric])}" for name in known)
    n = len(recorded["runs"])
    return f"Recorded over {n} seeds, {measure(metric)}: {said}."


def differences(
    chapter: str, metric: str, name: str, others: Sequence[str], variant: str = ""
) -> str:
    """Return a Markdown table: `name` minus each of `others` in `metric`, paired by recorded seed, with 95 % intervals.

    `variant`: of another recorded experiment of the chapter (see `elsewhere`).
    """
    recorded = load(chapter, variant)
    if not recorded:
        return _absent(variant) if variant else sentence(chapter, None)
    rows = [
        f"| {variant or 'recorded'}, {measure(metric)} | mean | 95 % interval of the paired difference |",
        "|---|---|---|",
    ]
    for other in others:
        if found := apart(recorded, metric, name, other):
            low, high = found["difference_low"], found["difference_high"]
            reach = f"{low:+.3f} to {high:+.3f}" if low is not None else "one seed"
            rows.append(f"| {name} − {other} | {found['difference']:+.3f} | {reach} |")
    return "\n".join(rows)


def _of(run: Mapping, arm: str, metric: str) -> float | None:
    return run["arms"].get(arm, {}).get(metric)


def _absent(variant: str) -> str:
    return f"*The variant {variant} is not recorded yet.*"


def summary(run, recorded: Mapping | None, arm: str, metric: str) -> dict[str, float | None]:
    """Return mean, low and high of an arm's metric over the recorded seeds.

    Where there are none: this run's own number, without an interval; NaN if it has not measured the arm either.
    """
    kept = recorded["summary"]["arms"].get(arm, {}) if recorded else {}
    here = run.record["arms"].get(arm, {}).get(metric, math.nan)
    return kept.get(metric, {"mean": here, "low": None, "high": None})


def apart(recorded: Mapping, metric: str, name: str, other: str) -> dict[str, float | None] | None:
    """Return `name` minus `other` in `metric`, paired by recorded seed (see `paired`).

    None where no seed has both: an older record may lack an arm.
    """
    both = [(_of(run, name, metric), _of(run, other, metric)) for run in recorded["runs"]]
    pairs = [pair for pair in both if None not in pair]
    return paired(*zip(*pairs, strict=True)) if pairs else None


def side(recorded: Mapping, metric: str, name: str, other: str) -> str:
    """Say in words whether an arm's recorded number is higher than another's, lower, or the seeds do not tell."""
    found = apart(recorded, metric, name, other)
    if found is None:
        return "not measured"
    low, high = found["difference_low"], found["difference_high"]
    if low is None:
        return "measured once"
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart by these seeds"


def stands(recorded: Mapping, metric: str, name: str, other: str) -> str:
    """Say where an arm stands beside another over the recorded seeds, if a higher number is the better one."""
    where = {"higher": "ahead of", "lower": "behind"}.get(side(recorded, metric, name, other))
    return f"{where or 'not told apart from'} {other}"


def elsewhere(chapter: str, variant: str, metric: str, names: Sequence[str]) -> str:
    """Say what a variant (another data set) recorded for the arms in `names`: a Markdown table and its command."""
    recorded = load(chapter, variant)
    if not recorded:
        return _absent(variant)
    arms, runs = recorded["summary"]["arms"], recorded["runs"]
    known = [name for name in names if metric in arms.get(name, {})]
    cpu = max(run.get("cpu_s", run["wall_s"]) for run in runs)
    rows = [f"| {variant}, {measure(metric)} | mean | 95 % interval |", "|---|---|---|"]
    for name in known:
        found = arms[name][metric]
        reach = f"{found['low']:.3f} to {found['high']:.3f}" if found["low"] is not None else ""
        rows.append(f"| {name} | {found['mean']:.3f} | {reach} |")
    told = f"{len(runs)} seeds, at most {cpu:.0f} s of CPU time a run: `{recorded['command']}`."
    return "\n".join(rows) + f"\n\n{told}"


# --- the ledger: made from records, read by the book and by `lefcourse results` --------------------


def summarise(records: Sequence[Mapping]) -> dict:
    """Return what the records of one chapter, one for each seed, say together.

    `parameters` (those that all runs share), `runs` (the records without long lists), `summary` (arms, gap
    closed, claims: mean and 95 % interval), `source_sha256`.
    """
    first = records[0]
    shared = {n: v for n, v in first["parameters"].items() if n != "seed"}
    return {
        "parameters": shared,
        "runs": [_without_bulk(record) for record in records],
        "summary": {
            "arms": {name: _arm(name, records) for name in first["arms"]},
            "gap_closed": interval([record["gap_closed"] for record in records]),
            "gap_metric": first.get("gap_metric"),
            "claims": [_claim(claim["name"], records) for claim in first["claims"]],
        },
        "source_sha256": first["source_sha256"],
    }


def _without_bulk(record: Mapping) -> dict:
    arms = {
        name: {k: v for k, v in arm.items() if not isinstance(v, list) or len(v) <= BULKY}
        for name, arm in record["arms"].items()
    }
    return dict(record) | {"arms": arms}


def _arm(name: str, records: Sequence[Mapping]) -> dict:
    arms = [record["arms"][name] for record in records if name in record["arms"]]
    numbers = dict.fromkeys(k for arm in arms for k, value in arm.items() if is_number(value))
    measured = {k: interval([arm.get(k) for arm in arms]) for k in numbers}
    return {"role": arms[0]["role"], **measured}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _claim(name: str, records: Sequence[Mapping]) -> dict:
    """Judge a claim by its 95 % interval over the seeds; at the smoke budget nothing is judged."""
    claims = [claim for record in records for claim in record["claims"] if claim["name"] == name]
    claim = {key: claims[0][key] for key in ("name", "relation", "threshold", "paper")}
    holds = [c["holds"] for c in claims]
    known = [c["measured"] for c in claims if c["holds"] is not None]
    measured = interval(known)
    judged = verdict(measured, claim["relation"], claim["threshold"])
    if known and len(known) < len(claims):
        judged = UNDECIDED  # a seed whose network diverged cannot be left out as if it had not been
    return claim | {"measured": measured, "holds": holds, "verdict": judged}


def told(claim: Mapping) -> str:
    """Say the verdict on a recorded claim, and what it rests on: `holds: 0.053 (0.021 to 0.085), 5 seeds`."""
    n = claim["measured"]["n"]
    seeds = f"{n} seed{'s' if n != 1 else ''}"
    if claim["verdict"] == NOT_JUDGED:
        return NOT_JUDGED
    return f"{claim['verdict']}: {span(claim['measured'])}, {seeds}"


def count(claims: Sequence[Mapping]) -> str:
    """Count claims by verdict: `3 hold, 1 undecided, 1 fails`."""
    verdicts = [claim["verdict"] for claim in claims]
    words = {HOLDS: "hold", FAILS: "fail"}
    counted = [(v, verdicts.count(v)) for v in VERDICTS if v in verdicts]
    said = [f"{n} {words.get(v, v) if n > 1 else v}" for v, n in counted]
    return ", ".join(said) or "no claims"


def recorded_claim(recorded: Mapping | None, name: str) -> Mapping | None:
    """Return what is recorded of the claim `name`, None if nothing is."""
    claims = recorded["summary"]["claims"] if recorded else []
    return next((claim for claim in claims if claim["name"] == name), None)


def variants(chapter: str, folder: Path | None = None) -> list[str]:
    """Return the names of a chapter's recorded results, the main one ("") first if it is there."""
    # The slug of another chapter may begin alike, so the file's content decides.
    paths = (folder or RESULTS).glob(f"{chapter}*.json")
    own = [path.stem for path in paths if json.loads(path.read_text())["chapter"] == chapter]
    return [stem[len(chapter) + 1 :] for stem in sorted(own)]


def stale(chapter: str, recorded: Mapping) -> bool:
    """Has the chapter, or what its numbers depend on, changed since the result was recorded or last confirmed?"""
    now = source_sha256(chapter)
    return now not in (
        recorded["source_sha256"],
        recorded.get("confirmed", {}).get("source_sha256"),
    )


def ledger(chapters: Sequence[catalogue.Chapter] | None = None) -> list[dict]:
    """Return one entry for each recorded result, and one for each written chapter without a main one.

    An entry has `chapter`, `variant` and `state`: "recorded", "stale" or "none"; unless that is "none", also `claims`
    (as `summarise` makes them), `gap_closed`, `gap_metric`, `seeds`, `wall_s`, `device`, `budget`, `made`, `command`,
    `confirmed` (None, or what `lefcourse reproduce --confirm` found), `processor`, `cuda_peak_mb` (None on a CPU).
    """
    written = [c for c in chapters or catalogue.chapters() if c.exists]
    return [entry for chapter in written for entry in _entries(chapter.slug)]


def _entries(slug: str) -> Iterator[dict]:
    recorded_ones = variants(slug)
    if "" not in recorded_ones:
        yield {"chapter": slug, "variant": "", "state": "none"}
    for variant in recorded_ones:
        recorded = load(slug, variant)
        runs, summary = recorded["runs"], recorded["summary"]
        yield {
            "chapter": slug,
            "variant": variant,
            "state": "stale" if stale(slug, recorded) else "recorded",
            "claims": summary["claims"],
            "gap_closed": summary["gap_closed"],
            "gap_metric": summary["gap_metric"],
            "seeds": [run["seed"] for run in runs],
            "wall_s": interval([run["wall_s"] for run in runs]),
            "device": runs[0]["device"],
            "budget": runs[0]["budget"],
            "made": recorded["made"],
            "command": recorded["command"],
            "confirmed": recorded.get("confirmed"),
            "processor": sorted({run.get("processor", "not recorded") for run in runs}),
            "cuda_peak_mb": max((run.get("cuda_peak_mb", 0) for run in runs), default=0) or None,
        }
