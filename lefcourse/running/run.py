"""One run of one chapter: its parameters, seeds, device and budget, and the record of what came out."""

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.errors import UsageError, choice
from lefcourse.files import numbers, plain, writable, write_json
from lefcourse.ledger import results, tuning
from lefcourse.page import plot
from lefcourse.paths import runs_root
from lefcourse.progress import batch, progress
from lefcourse.running import needs
from lefcourse.running.record import new_record
from lefcourse.science.seeds import resolve_device, seed_everything, stream_seed
from lefcourse.settings import budget_name

ROLES = ("floor", "baseline", "alternative", "method", "oracle", "ablation")


def processor(device: torch.device) -> str:
    """Name what computes: another processor gives other last digits, and in time another number."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_model()}, {capability}"


def cpu_model() -> str:
    """Return the processor's name as its system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_mb() -> float:
    """Return the largest memory this process has held, in MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _not_finite(arm: Mapping) -> bool:
    """Is the first number of an arm, or its loss, not finite?"""
    scalars = {key: value for key, value in arm.items() if results.is_number(value)}
    decisive = [*scalars][:1] + [key for key in scalars if "loss" in key]
    return not all(math.isfinite(scalars[key]) for key in decisive)


class Run:
    """What a chapter's setup cell makes: checked parameters, seeds, a device, and the record.

    `namespace` is the notebook's `globals()`. At the budgets `smoke` and `full` the parameters named
    in `smoke` and `full` are replaced there, except those that the reader gave on the command line
    (`LEFCOURSE_GIVEN`) or set to something of their own.
    """

    def __init__(self, chapter: str, namespace: dict, *, smoke: Mapping, full: Mapping):
        self.chapter = catalogue.get(chapter)
        self.budget = budget_name()
        spec = params.read(self.chapter.path)
        preset = {"smoke": smoke, "standard": {}, "full": full}[self.budget]
        for name in preset:
            choice("parameter", name, spec)
        if missing := [name for name in spec if name not in namespace]:
            raise UsageError(
                f"run the parameters cell first, the one above this: {', '.join(missing)} "
                "have no value yet"
            )
        given = os.environ.get("LEFCOURSE_GIVEN", "").split(",")
        for name, value in preset.items():
            if name not in given and namespace[name] == spec[name].default:
                namespace[name] = value
        self.parameters = {name: namespace[name] for name in spec}
        params.check(spec, self.parameters)
        self._find_data(namespace, spec, given, preset)
        self.seed = int(self.parameters.get("seed", 0))
        self.device = resolve_device(self.parameters.get("device", "auto"))
        seed_everything(self.seed)
        plot.use_style()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.started = time.time()
        self.folder = writable(
            Path(os.environ.get("LEFCOURSE_RUN_DIR") or runs_root() / chapter / "live")
        )
        self.record = new_record(chapter, self.parameters, self.device.type, self.budget)
        # On a CPU the order of a sum, and so its last digits, depends on the number of threads.
        self.record["threads"] = torch.get_num_threads()
        self.record["processor"] = processor(self.device)
        self.save()

    def _find_data(self, namespace: dict, spec: Mapping, given: Sequence, preset: Mapping) -> None:
        """Look for what the parameters name, before anything is trained; fit the counts to a reader's own pictures."""
        usual = params.resolved(spec, preset, {})
        own = [n for n, v in self.parameters.items() if n in given or v != usual[n]]
        counts = needs.look(self.parameters, own, load=True)
        params.check(spec, counts)
        changed = {n: v for n, v in counts.items() if v != self.parameters[n]}
        if changed:
            told = ", ".join(f"{name} = {n}" for name, n in counts.items())
            print(f"The folder has fewer pictures than the chapter's own data; so: {told}")
        namespace |= changed
        self.parameters |= changed

    def save(self) -> None:
        """Write the record as it stands."""
        write_json(self.folder / "record.json", self.record)

    def generator(
        self, stream: str = "", device: str | torch.device | None = None
    ) -> torch.Generator:
        """Return a generator of its own for one stream of draws, seeded by the run's seed and the name.

        Streams do not disturb each other: an arm that draws more leaves the next one unchanged.
        """
        seed = stream_seed(self.seed, stream)
        return torch.Generator(device=device or self.device).manual_seed(seed)

    def fresh(self, stream: str = "init") -> None:
        """Reset the global generators, so that every arm starts from the same initial weights."""
        torch.manual_seed(stream_seed(self.seed, stream))

    def arm(self, name: str, role: str, *, diverged: bool = False, **metrics: float) -> None:
        """Record what one arm measured. `role` is one of ROLES; metrics are plain numbers or lists.

        A second call for the same arm adds to its metrics. An arm has diverged if the caller says so (see
        `lc.diverged`), or if its first metric, by which arms are compared, or its loss is not finite. None of
        its numbers counts then: they are NaN, so that neither a gap nor a claim is computed from them.
        """
        known = self.record["arms"].get(name, {})
        arm = known | {"role": choice("role", role, ROLES), **numbers(metrics)}
        if diverged or known.get("diverged") or _not_finite(arm):
            scalars = [key for key, value in arm.items() if results.is_number(value)]
            arm |= dict.fromkeys(scalars, math.nan) | {"diverged": True}
            if not known.get("diverged"):
                print(
                    f"{name} has diverged: what it puts out is not finite, so nothing is concluded from it"
                )
        self.record["arms"][name] = arm
        self.save()

    @contextmanager
    def clock(self, *arms: str, part: str = "training") -> Iterator[None]:
        """Record what the block costs as `part` of these arms: CPU seconds, on a GPU seconds by the clock.

        Costs stand beside the arms, not among their metrics, since they repeat roughly at best. Two arms that share
        a part (one pre-training for both) are both charged with it. The same block again replaces its cost.
        """
        on_gpu = self.device.type == "cuda"

        def now() -> float:
            if on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() if on_gpu else time.process_time()

        start = now()
        yield
        spent = now() - start
        for arm in arms:
            self.record["seconds"].setdefault(arm, {})[part] = spent
        self.save()

    def diverged(self, roles: Sequence[str] = ROLES) -> list[str]:
        """Return the names of the arms of these roles that have diverged."""
        arms = self.record["arms"].items()
        return [name for name, arm in arms if arm.get("diverged") and arm["role"] in roles]

    def of_role(self, role: str) -> str:
        """Return the name of the only arm that plays `role`."""
        names = [name for name, arm in self.record["arms"].items() if arm["role"] == role]
        if len(names) != 1:
            raise UsageError(
                f"exactly one arm must have the role {role!r}; recorded: {names or 'none'}"
            )
        return names[0]

    def gap_closed(self, metric: str, higher_is_better: bool = True) -> float | None:
        """Record and return (method - baseline) / (oracle - baseline) in `metric`.

        0: no better than the labels given; 1: as good as all clean labels. None where the oracle does
        not beat the baseline, because then there is no gap to close, where the baseline does not beat the arm of
        the role "floor" (if there is one) or leaves less than a tenth of the way from there to the oracle, and
        where one of the three diverged.
        """
        baseline, method, oracle = (
            self.record["arms"][self.of_role(role)][metric]
            for role in ("baseline", "method", "oracle")
        )
        sign = 1 if higher_is_better else -1
        gap = sign * (oracle - baseline)
        # Of an arm that has diverged the metric is NaN, which is not above 0.
        closed = sign * (method - baseline) / gap if gap > 0 else None
        floors = [arm[metric] for arm in self.record["arms"].values() if arm["role"] == "floor"]
        if any(sign * (baseline - floor) <= 0 for floor in floors):
            closed = None  # from below what costs nothing, there is no way to measure
        if any(gap < 0.1 * sign * (oracle - floor) for floor in floors):
            closed = None  # saturated: a share of next to nothing says nothing
        self.record["gap_closed"] = plain(closed)
        self.record["gap_metric"] = metric
        self.save()
        return self.record["gap_closed"]

    def claim(
        self, name: str, measured: float, relation: str, threshold: float, paper: str
    ) -> None:
        """Check `measured relation threshold` (`>=` or `<=`) and record whether it holds; `verdict` shows all.

        At the smoke budget nothing is judged (None): a few steps prove that the code runs, no more. Nor is
        anything where baseline, method or oracle has diverged, or where `measured` is not finite: NaN stands for
        what these arms have not measured. `paper` says what the paper reports, and in which table.
        """
        choice("relation", relation, (">=", "<="))
        measured = plain(measured)
        lost = self._lost(measured)
        judged = self.budget != "smoke" and not lost
        holds = judged and (measured >= threshold if relation == ">=" else measured <= threshold)
        entry = {
            "name": name,
            "measured": None if lost else measured,
            "relation": relation,
            "threshold": threshold,
            "holds": bool(holds) if judged else None,
            "paper": paper,
        }
        if lost:
            entry["not_judged"] = lost
        self.record["claims"] = [c for c in self.record["claims"] if c["name"] != name] + [entry]
        self.save()

    def _lost(self, measured: float | None) -> str:
        """Say why a claim cannot be judged at any budget; "" if it can."""
        diverged = self.diverged(("baseline", "method", "oracle"))
        if measured is None:
            diverged = diverged or self.diverged()
        if diverged:
            return f"{', '.join(diverged)} diverged"
        return "not measured in this run" if measured is None else ""

    def tune(
        self,
        arm: str,
        score: Callable[..., float],
        chapter: Mapping[str, object],
        *,
        val: int,
        metric: str = "validation accuracy",
        why: str = "",
        **grid: Sequence,
    ) -> None:
        """Declare what is tried for `arm`: at most 12 settings, the product of `grid` (name=[values]).

        Under `lefcourse tune` each is measured by `score(**setting)`, higher is better, on `val` validation
        samples, and recorded. Any other run shows, folded, what was recorded. `chapter` is the setting that the
        chapter takes; where this is not the best one, `why` says the reason.
        Raises UsageError for an empty grid, or one that is too large.
        """
        every = tuning.settings(arm, grid)
        entry = {"metric": metric, "val": int(val), "chapter": dict(chapter), "why": why}
        if "LEFCOURSE_TUNE" in os.environ:
            tried = []
            for setting in progress(every, f"settings of {arm}"):
                tried.append({"setting": setting, "score": plain(float(score(**setting)))})
            entry["tried"] = tried
        else:
            plot.say(tuning.told(tuning.load(self.chapter.slug), arm, dict(chapter), why))
        self.record.setdefault("tuning", {})[arm] = plain(entry)
        self.save()

    def card(self) -> None:
        """Display what the catalogue knows of the chapter, and how long a run was measured to take."""
        chapter, recorded = self.chapter, results.load(self.chapter.slug)
        arxiv = (
            f", [arXiv:{chapter.arxiv}](https://arxiv.org/abs/{chapter.arxiv})"
            if chapter.arxiv
            else ""
        )
        labels = "; ".join(catalogue.LABEL_KINDS[kind].rstrip(".") for kind in chapter.labels)
        plot.say(
            f"**{chapter.short}** · {chapter.venue} {chapter.year}{arxiv}  \n"
            f"Labels: {labels}. Task: {chapter.task}.  \n"
            f"This run: {self.budget} budget, seed {self.seed}, {self.device.type}. {results.cpu_time(chapter.slug)}{results.run_time(recorded)}"
        )

    def verdict(self) -> None:
        """Display the claims as a table: what was asked, what this run measured, the verdict over the recorded seeds.

        One run is one draw: it shows its value, and leaves the verdict to the seeds.
        """
        recorded = results.load(self.chapter.slug)
        rows = ["| claim | asked | this run | recorded | the paper |", "|---|---|---|---|---|"]
        for c in self.record["claims"]:
            here = c.get("not_judged") or f"{c['measured']:.3f}"
            seeds = results.recorded_claim(recorded, c["name"])
            told = (
                results.told(seeds).replace(seeds["verdict"], f"**{seeds['verdict']}**", 1)
                if seeds
                else "not yet"
            )
            asked = f"{results.SIGNS[c['relation']]} {c['threshold']:g}"
            rows.append(f"| {c['name']} | {asked} | {here} | {told} | {c['paper']} |")
        plot.say("\n".join([*rows, "", self._draw()]))

    def _draw(self) -> str:
        """Say how this run's values are to be read beside the recorded ones."""
        defaults = {n: p.default for n, p in params.read(self.chapter.path).items()}
        free = {"seed", "device", "arms"}
        other = [n for n, v in self.parameters.items() if n not in free and v != defaults[n]]
        if self.budget == "smoke":
            return "At the smoke budget a few steps prove that every line runs; nothing is judged."
        if other or self.budget != "standard":
            what = (
                f"{', '.join(other)} differ{'s' if len(other) == 1 else ''}"
                if other
                else f"the budget is {self.budget}"
            )
            return f"This run is another experiment than the recorded one: {what}."
        return f"This run is one draw (seed {self.seed}): near a threshold it says little, and the verdict rests on the recorded seeds."

    def finish(self) -> None:
        """Close the record: status `done`, wall time, peak memory. The last call of every chapter."""
        import psutil

        begun = psutil.Process().create_time() if batch() else self.started
        self.record |= {
            "status": "done",
            "wall_s": round(time.time() - begun, 2),
            "cpu_s": round(time.process_time(), 2),
            "peak_mb": round(peak_mb(), 1),
        }
        if self.device.type == "cuda":
            self.record["cuda_peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        self.save()
        cuda = (
            f", {self.record['cuda_peak_mb']:.0f} MiB on the GPU"
            if "cuda_peak_mb" in self.record
            else ""
        )
        print(
            f"{self.chapter.slug}: {self.budget} budget, seed {self.seed}, {self.device.type}; "
            f"{self.record['wall_s']:.0f} s, {self.record['peak_mb']:.0f} MiB{cuda}"
        )
