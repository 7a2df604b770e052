"""The pages that are made from the catalogue, the recorded results and the records of the executed copies."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from math import log

import yaml

from lefcourse import catalogue
from lefcourse.catalogue import Chapter, Part
from lefcourse.ledger import compare, results
from lefcourse.paths import REPOSITORY, ROOT
from lefcourse.science.worlds import WORLDS

from . import pictures, plots
from .copies import Copy
from .moving import knob

SMOKE = "Built at the smoke budget: the outputs show that every line runs, and measure nothing."
HERO = "elr"  # the chapter whose record moves on the landing page
WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n"  # no contents at the right
SLOT = re.compile(r"<!-- lef:(\w+) -->")


def docname(chapter: Chapter) -> str:
    """Return where a chapter stands in the book, without its suffix."""
    return f"{chapter.part}/{chapter.slug}"


def number(part: Part) -> int:
    return int(part.folder.split("-")[0])


def generated(made: Sequence[Copy]) -> dict[str, bytes]:
    """Return every generated page, by its name in the book."""
    texts = {f"{part.folder}/index.md": part_page(part, made) for part in catalogue.parts()}
    texts |= {"label-map.md": label_map(), "results.md": results_page()}
    texts |= {"bibliography.md": bibliography()}
    slots = {"hero": hero(made), "parts": part_list(), "counts": counts(), "cite": cite()}
    slots["worlds"] = "\n\n".join(f"**{name}.** {world.about}" for name, world in WORLDS.items())
    for path in sorted((ROOT / "book").glob("*.md")):
        texts[path.name] = SLOT.sub(lambda slot: slots[slot[1]], path.read_text())
    return {name: text.encode() for name, text in texts.items()}


def contents(made: Sequence[Copy]) -> dict:
    """Return the table of contents in the form of Jupyter Book: parts as pages, their chapters below."""
    staged = {copy.chapter.slug for copy in made}
    about = ["run", "results", "notation", "data", "bibliography", "cite"]
    return {
        "format": "jb-book",
        "root": "index",
        "parts": [
            {"caption": "Begin", "chapters": [_entry("00-start/start"), _entry("label-map")]},
            {"caption": "Chapters", "chapters": [_part(part, staged) for part in catalogue.parts()]},
            {"caption": "About", "chapters": [_entry(name) for name in about]},
        ],
    }  # fmt: skip


def _entry(name: str) -> dict:
    return {"file": name}


def _part(part: Part, staged: set[str]) -> dict:
    sections = [
        {"file": docname(c), "title": c.short[0].upper() + c.short[1:]}
        for c in part.chapters
        if c.slug in staged
    ]
    title = f"{number(part)}. {part.title}"
    entry = {"file": f"{part.folder}/index", "title": title}
    return entry | ({"sections": sections} if sections else {})


# --- parts ---------------------------------------------------------------------------------------


def raw(content: str) -> str:
    """Return HTML for a Markdown page."""
    return f"````{{raw}} html\n{content}\n````\n"


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Return a Markdown table that becomes a list on a phone."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]
    return "```{table}\n:class: lef-chapters\n\n" + "\n".join(lines) + "\n```"


def part_page(part: Part, made: Sequence[Copy]) -> str:
    """Say what a part asks, what its chapters share, which to read first, and list them."""
    failed = {copy.chapter.slug for copy in made if copy.error}
    first = catalogue.get(part.first)
    written = [chapter for chapter in part.chapters if chapter.exists]
    rows = [_row(chapter, failed) for chapter in part.chapters]
    lines = [
        f"# {number(part)}. {part.title}",
        f"*{part.question}*",
        raw(pictures.svg(part.folder)),
        part.shared,
        f"**Read first:** {_link(first)}. {_elsewhere(first, written)}",
        "## Chapters",
        table(["Chapter", "Paper and idea", "Labels"], rows),
        *comparison(part),
    ]
    return "\n\n".join(lines) + "\n"


# --- which one should I take? ----------------------------------------------------------------------


# What a comparison runs along, in words.
AXES = {
    "per_class": "labels of each class",
    "rate": "share of corrupted labels",
    "known": "share of the labels that is known",
    "rho": "labels of the most over the least frequent class",
}
# What a value held fixed means, where its name does not say it.
CONDITIONS = {
    ("lost", "random"): "labels lost at random",
    ("lost", "small"): "labels of small objects lost first",
    ("tail", 1.0): "no tail",
    ("tail", 20.0): "a tail of 20 to 1",
}


def comparison(part: Part) -> list[str]:
    """Draw the recorded comparisons of a part's methods, or say on which part's page they stand."""
    question = "## Which one should I take?"
    if records := [record for name in part.compare if (record := compare.kept(name))]:
        lines = [question, part.take]
        for record in records:
            lines += [_conditions(record, records)] if len(records) > 1 else []
            lines += _compared(record)
        return lines
    slugs = {chapter.slug for chapter in part.chapters}
    for other in catalogue.parts():
        records = filter(None, map(compare.kept, other.compare))
        if any(slugs & record["source_sha256"].keys() for record in records):
            link = f"[{other.title}](../{other.folder}/index.md)"
            return [question, f"Methods of this part stand in the comparison at the end of {link}."]
    return []


def compared(record: Mapping) -> list[str]:
    """The arms that a comparison shows: methods, those that were asked for by name, and the first oracle."""
    roles = compare.roles(record)
    oracles = [arm for arm, role in roles.items() if role == "oracle"]
    chosen = [arm for arm, role in roles.items() if role == "method" or arm in record["also"]]
    return [*chosen, *oracles[:1]]


def _conditions(record: Mapping, records: Sequence[Mapping]) -> str:
    """A heading that tells a comparison from its neighbours: what was held fixed in it, but not in all of them."""
    shared = [set(other["fixed"].items()) for other in records]
    own = [item for item in record["fixed"].items() if not all(item in other for other in shared)]
    number = lambda v: f"{v:g}" if isinstance(v, float) else v  # noqa: E731
    said = [CONDITIONS.get(item, f"{item[0].replace('_', ' ')} {number(item[1])}") for item in own]
    heading = ", ".join(said)
    return f"### {heading[:1].upper()}{heading[1:]}"


def arm_name(arm: str, shown: Sequence[str], role: str = "") -> str:
    """An arm's name without its chapter, unless two chapters have one of that name; a method's says whose it is."""
    slug, _, short = arm.partition(": ")
    if sum(other.endswith(f": {short}") for other in shown) > 1:
        return arm
    method = catalogue.get(slug).short
    alone = all(other.startswith(f"{slug}: ") for other in shown)
    told = role != "method" or alone or method.lower() in short.lower()
    return short if told else f"{short} ({method})"


def _compared(record: Mapping) -> list[str]:
    by, values = record["by"], compare.values(record)
    shown, roles = compared(record), compare.roles(record)
    names = {arm: arm_name(arm, shown, roles[arm]) for arm in shown}
    series = {names[arm]: [compare.mean(record, arm, v) for v in values] for arm in shown}
    words = AXES.get(by, by.replace("_", " "))
    metric = results.measure(record["metric"])
    seeds = sorted({row["seed"] for row in record["rows"]})
    first = shown[0]
    head = [words, *(f"{value:g}" for value in values)]
    rows, apart = [], []
    for arm in shown:
        cost = compare.mean(record, arm, values[-1], "seconds")["mean"]
        seconds = "" if cost is None else f"{cost:.1f}"
        rows.append(f"{_means(record, arm, names[arm])} {seconds} |")
        if arm != first:
            away = [results.span(compare.difference(record, arm, first, v)) for v in values]
            apart.append(f"| {names[arm]} | {' | '.join(away)} |")
    return [
        raw(plots.curves(values, series, words, f"{metric} on test data")),
        f"Mean {metric} and its 95 % interval over seeds {seeds[0]} to {seeds[-1]}; in the last column the seconds that one training costs.",
        table([*head, "seconds"], rows),
        f"The same seeds in pairs: the difference to {names[first]}, with its 95 % interval. Where the interval holds zero, nothing is decided.",
        table(head, apart),
        *_further(record, names, head),
        f"Recorded on {record['made']} by",
        f"```bash\n{record['command']}\n```",
    ]


def _further(record: Mapping, names: Mapping[str, str], head: Sequence[str]) -> list[str]:
    """What else was measured of each arm: a table for each metric."""
    lines = []
    for metric in record.get("further", ()):
        rows = [_means(record, arm, name, metric) for arm, name in names.items()]
        lines += [f"The same networks, judged by {results.measure(metric)}:", table(head, rows)]
    return lines


def _means(record: Mapping, arm: str, name: str, metric: str | None = None) -> str:
    """The row of an arm, under this name: its mean and interval at each value of the parameter."""
    found = [compare.mean(record, arm, v, metric) for v in compare.values(record)]
    return f"| {name} | {' | '.join(map(results.span, found))} |"


def _link(chapter: Chapter) -> str:
    return f"[{chapter.short}]({chapter.slug}.ipynb)" if chapter.exists else chapter.short


def _elsewhere(first: Chapter, written: Sequence[Chapter]) -> str:
    if first.exists:
        return first.idea
    if written:
        return f"It is planned; until it is written, begin with {_link(written[0])}."
    return "It is planned, like the other chapters of this part."


def _row(chapter: Chapter, failed: set[str]) -> str:
    state = "" if chapter.exists else " *(planned)*"
    state = " *(failed in this build)*" if chapter.slug in failed else state
    title = chapter.title.replace("|", "\\|")
    paper = f"{title} {{cite:p}}`{chapter.key}`<br>{chapter.idea}"
    labels = ", ".join(f"[{kind}](../label-map.md)" for kind in chapter.labels)
    return f"| **{_link(chapter)}**{state} | {paper} | {labels} |"


def part_list() -> str:
    """List the parts for the landing page: number, title, question, how much of it is written."""
    rows = []
    for part in catalogue.parts():
        there = sum(chapter.exists for chapter in part.chapters)
        state = f"{there} of {len(part.chapters)} written" if there else "planned"
        title = f"**[{part.title}]({part.folder}/index.md)**"
        rows.append(f"| {number(part)} | {title}<br>{part.question} | {state} |")
    return table(["", "Part", "Chapters"], rows)


def counts() -> str:
    """Say how many chapters there are, and how many are written."""
    chapters = catalogue.chapters()
    written = sum(chapter.exists for chapter in chapters)
    return (
        f"{len(chapters)} chapters in {len(catalogue.parts())} parts; {written} are written so far."
    )


# --- chapters ------------------------------------------------------------------------------------


def failed(copy: Copy) -> str:
    """Say that a chapter did not execute, and where it failed."""
    name = copy.chapter.title
    return (
        f"# {name}\n\n```{{warning}}\nThis chapter did not execute in this build, so it is not shown: "
        f"`{copy.error.replace('`', '')}`\n```\n"
    )


def colab(chapter: Chapter) -> str:
    """Return the address that opens a chapter's notebook in Google Colab."""
    owner = REPOSITORY.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{docname(chapter)}.ipynb"


def binder(chapter: Chapter) -> str:
    """Return the address that opens a chapter's notebook on Binder, in the image of the folder `.binder`."""
    owner = REPOSITORY.removeprefix("https://github.com/")
    path = f"lab/tree/notebooks/{docname(chapter)}.ipynb"
    return f"https://mybinder.org/v2/gh/{owner}/main?urlpath={path}"


def run_it(copy: Copy) -> str:
    """Say how to run a chapter that the reader has before them."""
    chapter = copy.chapter
    path = f"notebooks/{docname(chapter)}.ipynb"
    return (
        "```{admonition} Run it yourself\n:class: tip lef-run\n"
        "This page was executed beforehand; its knob was computed at every position. "
        f"[Open in Colab]({colab(chapter)}) installs the course there with the notebook's first cell; "
        f"[open on Binder]({binder(chapter)}) waits for an image that has it. In a checkout of the course, "
        f"`make lab` opens JupyterLab: this chapter is `{path}`. From a terminal, `lefcourse run {chapter.slug}` "
        "executes it with the values of its parameters cell, and `-p NAME VALUE` changes one of them.\n```"
    )


# --- the label map -------------------------------------------------------------------------------


def label_map() -> str:
    """Let the reader choose a kind of label, then a task, and see the chapters that fit."""
    chapters = catalogue.chapters()
    tasks = dict.fromkeys(sorted(chapter.task for chapter in chapters))
    first = [
        _choice("labels", kind, f"<b>{kind}</b> {html.escape(line)}")
        for kind, line in catalogue.LABEL_KINDS.items()
    ]
    second = [_choice("task", task, task.replace("-", " ")) for task in tasks]
    found = "".join(_found(chapter) for chapter in chapters)
    form = (
        '<form class="lef-map" id="lef-map" autocomplete="off">'
        f'<fieldset class="lef-kinds"><legend>1. Which labels do you have?</legend>{"".join(first)}</fieldset>'
        f'<fieldset class="lef-tasks"><legend>2. What should come out?</legend>'
        f'{_choice("task", "", "anything", True)}{"".join(second)}</fieldset>'
        '<fieldset class="lef-tasks"><legend>3. Which chapters?</legend>'
        f'{_choice("state", "", "written and planned", True)}{_choice("state", "written", "only what is written")}</fieldset>'
        '<p class="lef-count" role="status">All chapters are listed below; choose to narrow them down.</p>'
        f'<ul class="lef-found">{found}</ul></form>'
    )  # fmt: skip
    return (
        f"{WIDE}# The label map\n\n"
        "Two or three choices lead from the labels that you have to the chapters that make the most of them. "
        "Tab and the arrow keys work too.\n\n" + raw(form)
    )


def _choice(group: str, value: str, words: str, chosen: bool = False) -> str:
    at = " checked" if chosen else ""
    return f'<label><input type="radio" name="{group}" value="{value}"{at}><span>{words}</span></label>'


def _found(chapter: Chapter) -> str:
    name = html.escape(chapter.short)
    if chapter.exists:
        title, state = f'<a href="{docname(chapter)}.html">{name}</a>', "written"
    else:
        title, state = f"{name} <small>(planned)</small>", "planned"
    return (
        f'<li data-labels="{" ".join(chapter.labels)}" data-task="{chapter.task}" data-state="{state}">'
        f"<b>{title}</b> {html.escape(chapter.idea)}</li>"
    )


# --- results -------------------------------------------------------------------------------------


def results_page() -> str:
    """Show the ledger: pictures first, a row for each written chapter, then every claim of those that are recorded."""
    entries = results.ledger()
    recorded = [entry for entry in entries if entry["state"] != "none"]
    named = [(_plain_name(entry), entry) for entry in recorded]
    lines = [
        "# Results",
        "What the course measured of its papers' claims, on seeds that served for no choice: five unless a row says otherwise.",
        raw(plots.gaps([(name, entry["gap_closed"]) for name, entry in named])),
        raw(
            plots.verdicts(
                [(name, [c["verdict"] for c in entry["claims"]]) for name, entry in named]
            )
        ),
        "Thresholds were fixed beforehand. What does not hold in this miniature stays in the table, and so does what five seeds cannot decide. "
        "*Gap closed* is (method - baseline) / (oracle - baseline).",
        table(["Chapter", "Gap closed", "Claims"], [_overview(e) for e in entries])
        if entries
        else "No chapter is written yet.",
    ]
    for entry in recorded:
        lines += _ledger(entry)
    return "\n\n".join(lines) + "\n"


def _plain_name(entry: Mapping) -> str:
    variant = f", {entry['variant']}" if entry["variant"] else ""
    return f"{catalogue.get(entry['chapter']).short}{variant}"


def _name(entry: Mapping) -> str:
    chapter = catalogue.get(entry["chapter"])
    variant = f", {entry['variant']}" if entry["variant"] else ""
    return f"[{chapter.short}]({docname(chapter)}.ipynb){variant}"


def _overview(entry: Mapping) -> str:
    if entry["state"] == "none":
        return f"| {_name(entry)} | *not recorded yet* | |"
    stale = "; the chapter has changed since" if entry["state"] == "stale" else ""
    gap = results.span(entry["gap_closed"], 2)
    gap += f"; {len(entry['seeds'])} seed" if len(entry["seeds"]) == 1 else ""
    return f"| {_name(entry)} | {gap} | {results.count(entry['claims'])}{stale} |"


def _ledger(entry: Mapping) -> list[str]:
    seeds = entry["seeds"]
    stale = " **The chapter has changed since.**" if entry["state"] == "stale" else ""
    memory = f", {entry['cuda_peak_mb']:.0f} MiB of GPU memory" if entry.get("cuda_peak_mb") else ""
    where = ", ".join([entry["device"], *entry.get("processor", [])])
    facts = (
        f"Gap closed in {str(entry['gap_metric']).replace('_', ' ')}: {results.span(entry['gap_closed'], 2)}. "
        f"{_seeds(seeds)}, {where}, {entry['budget']} budget, "
        f"{entry['wall_s']['mean']:.0f} s a run{memory}, made on {entry['made']} by `{entry['command']}`.{_confirmed(entry)}{stale}"
    )
    head = ["Claim", "Measured", "Asked", "Verdict", "The paper"]
    return [f"## {_name(entry)}", facts, table(head, [_claim(claim) for claim in entry["claims"]])]


def _confirmed(entry: Mapping) -> str:
    """Say what was found when a seed was run again after a change."""
    stamp = entry.get("confirmed")
    if not stamp:
        return ""
    return (
        f" Confirmed on {stamp['date']}: {stamp['compared']} numbers of seed {stamp['seed']}, measured again on "
        f"{stamp['processor']}, are {stamp['how']}."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"Seeds {min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"One seed, {seeds[0]}"


def _claim(claim: Mapping) -> str:
    cells = (
        claim["name"],
        results.span(claim["measured"]),
        f"{results.SIGNS[claim['relation']]} {claim['threshold']:g}",
        f"**{claim['verdict']}**",
        claim["paper"],
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# --- the rest ------------------------------------------------------------------------------------


def bibliography() -> str:
    return (
        "# Bibliography\n\nThe papers of the chapters, written and planned.\n\n"
        "```{bibliography}\n:all:\n```\n"
    )


def cite() -> str:
    """Return the citation of the course as BibTeX, from CITATION.cff."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    names = (a.get("name") or f"{a['family-names']}, {a['given-names']}" for a in about["authors"])
    fields = {
        "title": f"{{{about['title']}}}",
        "author": " and ".join(f"{{{name}}}" for name in names),
        "year": str(about["date-released"])[:4],
        "version": about["version"],
        "url": about["repository-code"],
    }
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"```bibtex\n@software{{lefcourse,\n{lines},\n}}\n```"


def hero(made: Sequence[Copy]) -> str:
    """Return the moving result of the landing page, from an executed copy; without one, nothing.

    It moves through the epochs, if the record of the copy has the curves, else through the positions of the chapter's knob.
    """
    copy = next((c for c in made if c.chapter.slug == HERO and not c.error), None)
    if copy is None:
        return ""
    arms = {name: arm for name, arm in copy.record["arms"].items() if "wrong_true" in arm}
    filled = _curves(copy, arms) if arms else {"CONTENT": knob(copy.notebook), "TICK": "1500"}
    filled = {"SLIDER": "", "CAPTION": "", "LINK": f"{docname(copy.chapter)}.html"} | filled
    template = (ROOT / "book" / "templates" / "hero.html").read_text()
    return raw(re.sub(r"@([A-Z]+)@", lambda slot: filled[slot[1]], template).strip())


def _curves(copy: Copy, arms: Mapping) -> dict[str, str]:
    """Draw what the network says about mislabelled images over the epochs, one panel for each arm."""
    panels = [
        {"name": name, "said": arm["wrong_true"], "memorised": arm["wrong_given"]}
        for name, arm in arms.items()
    ]
    parameters, last = copy.record["parameters"], len(panels[0]["said"])
    caption = (
        f"{parameters['dataset'].capitalize()}, {parameters['rate']:.0%} of the labels redrawn at random, one run "
        f"(seed {parameters['seed']}). What the network says, epoch by epoch, about the images whose label is wrong."
    )
    data = json.dumps(panels).replace("<", "\\u003c")
    plots = "".join(map(_plot, panels))
    slider = (
        f'<label for="lef-epoch">epoch</label><input id="lef-epoch" type="range" min="1" max="{last}" value="{last}">'
        f'<output for="lef-epoch">{last}</output>'
    )
    content = (
        f'<div class="lef-panels">{plots}</div><script type="application/json">{data}</script>'
    )
    return {"CONTENT": content, "SLIDER": slider, "CAPTION": html.escape(caption), "TICK": "110"}


def _plot(panel: Mapping) -> str:
    """Draw both curves of one arm, whole: that is what a reader without scripts sees."""
    lines = "".join(
        f'<polyline class="{name}" points="{_points(panel[name])}"/>'
        for name in ("said", "memorised")
    )
    end = {name: f"{panel[name][-1]:.0%}" for name in ("said", "memorised")}
    told = (
        f"{panel['name']}: at the end {end['said']} named correctly, {end['memorised']} memorised"
    )
    return (
        f"<figure><figcaption>{html.escape(panel['name'])}</figcaption>"
        f'<svg viewBox="-4 -4 308 172" role="img" aria-label="{html.escape(told)}">'
        f'<path class="axis" d="M0 0 V150 H300"/>{lines}'
        '<text x="5" y="8">all of them</text><text x="300" y="164" text-anchor="end">epochs, log scale</text></svg>'
        f'<p><span class="said"><b>{end["said"]}</b> true class</span> '
        f'<span class="memorised"><b>{end["memorised"]}</b> memorised</span></p></figure>'
    )


def _points(shares: Sequence[float]) -> str:
    """Lay a curve over the epochs, on a log scale, into 300 x 150."""
    scale = 300 / log(max(len(shares), 2))
    return " ".join(
        f"{scale * log(epoch):.1f},{150 * (1 - share):.1f}" for epoch, share in enumerate(shares, 1)
    )
