"""The world of graphs: nodes with words, edges between them, and one class for each node.

    graph = graphs.sbm(500, seed=0, homophily=0.8)      # drawn: a stochastic block model
    graph = graphs.load("cora", seed=0)                 # or by name: sbm, karate, cora, citeseer, pubmed
    graph.x, graph.edge_index, graph.y, graph.train     # features, edges, classes, mask of training nodes

In a stochastic block model every pair of nodes is joined independently, with one probability inside a
class and another across classes. They are set by two numbers that can be read off any graph: the mean
degree, and the homophily (the share of edges that join nodes of one class). The features are bags of
words: each class has words of its own, and the informativeness says how often a node uses them.

N nodes, F features, C classes, E directed edges (both directions of every edge are listed, no loops).
"""

import contextlib
import io
import math
import pickle
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lefcourse.errors import DataError, UsageError, choice
from lefcourse.paths import cache_root, data_root
from lefcourse.science.labels import random_ranks

NAMES = ("sbm", "karate", "cora", "citeseer", "pubmed")
SPLITS = ("random", "public")
# Up to this many nodes a dense N x N matrix is both small (9 MB) and faster than a sparse one.
DENSE_BELOW = 1_500
# The sizes of the published sets: a file with other numbers is not that set.
PLANETOID = {
    "cora": ("Cora", 2_708, 1_433),
    "citeseer": ("CiteSeer", 3_327, 3_703),
    "pubmed": ("PubMed", 19_717, 500),
}
# fmt: off
CLASSES = {
    "karate": ["Mr. Hi", "Officer"],
    "cora": ["theory", "reinforcement learning", "genetic algorithms", "neural networks", "probabilistic methods", "case based", "rule learning"],
    "citeseer": ["artificial intelligence", "machine learning", "information retrieval", "databases", "agents", "human-computer interaction"],
    "pubmed": ["experimental diabetes", "diabetes type 1", "diabetes type 2"],
}
# fmt: on
# Training nodes per class, validation nodes, test nodes (None: all others).
COUNTS = {
    "sbm": (20, 100, None),
    "karate": (4, 8, None),
    "cora": (20, 500, 1_000),
    "citeseer": (20, 500, 1_000),
    "pubmed": (20, 500, 1_000),
}


@dataclass(repr=False)
class Graph:
    """One graph with all its nodes visible: features, edges, classes, and which labels may be used for what.

    x: (N, F) float32, non-negative, rows that sum to one (all zero for a node without words).
    edge_index: (2, E) int64, sorted, both directions of every edge, no loops, no duplicates.
    y: (N,) int64. train, val, test: (N,) bool, disjoint. All on one device.
    """

    name: str
    x: Tensor
    edge_index: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    classes: list[str]

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.y)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def degree(self) -> Tensor:
        """Number of neighbours of each node: (N,) int64."""
        return torch.bincount(self.edge_index[0], minlength=self.n)

    @property
    def homophily(self) -> float:
        """Share of the edges that join two nodes of one class."""
        i, j = self.edge_index
        return (self.y[i] == self.y[j]).double().mean().item()

    def matrix(self, values: Tensor | None = None, dense: bool | None = None) -> Tensor:
        """Return the adjacency (N, N), entry i, j for the edge from i to j; `values` (E,) replace its ones.

        Dense for fewer than DENSE_BELOW nodes and sparse (CSR) otherwise, unless `dense` says which; both
        multiply a dense matrix by `@`.
        """
        values = (
            torch.ones_like(self.edge_index[0], dtype=torch.float32) if values is None else values
        )
        if self.n < DENSE_BELOW if dense is None else dense:
            full = torch.zeros(self.n, self.n, dtype=values.dtype, device=values.device)
            full[self.edge_index[0], self.edge_index[1]] = values
            return full
        return torch.sparse_coo_tensor(self.edge_index, values, (self.n, self.n)).to_sparse_csr()

    def to(self, device: str | torch.device) -> "Graph":
        """Return the same graph on `device`."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def describe(self) -> str:
        """Say in one line what there is, for a reader."""
        return (
            f"{self.name}: {self.n:,} nodes with {self.x.shape[1]:,} words in {self.n_classes} classes, "
            f"{self.edge_index.shape[1] // 2:,} edges (mean degree {self.degree.float().mean():.1f}, homophily "
            f"{self.homophily:.2f}); {int(self.train.sum())} nodes to train on, {int(self.val.sum())} to validate, "
            f"{int(self.test.sum())} to test"
        )

    def __repr__(self) -> str:
        return f"Graph({self.describe()}; {self.x.device})"


def load(
    name: str, *, seed: int = 0, device: str | torch.device = "cpu", split: str = "random", **model
) -> Graph:
    """Return the graph called `name` (one of NAMES), with a split drawn by `seed`.

    `model` are the parameters of `sbm`, whose edges and features each seed draws anew; the other graphs
    are what they are. `split="public"` keeps the published split of the citation graphs.
    Raises UsageError for an unknown name or split, DataError where a real set is absent or broken.
    """
    choice("graph", name, NAMES)
    choice("split", split, SPLITS)
    if name == "sbm":
        return sbm(seed=seed, device=device, **model)
    if split == "public" and name not in PLANETOID:
        raise UsageError(f"graph {name!r} has no public split; choices: {', '.join(PLANETOID)}")
    graph = karate() if name == "karate" else planetoid(name)
    return (graph if split == "public" else resplit(graph, seed)).to(device)


def resplit(graph: Graph, seed: int, per_class: int | None = None, val: int | None = None) -> Graph:
    """Draw another split: `per_class` training nodes of every class, `val` nodes to validate, others to test.

    The counts default to those usual for the graph (COUNTS); at most as many nodes as usual are tested.
    Nodes without any words (15 in CiteSeer, whose class nobody knows) are in no part.
    Raises UsageError if a class has too few nodes.
    """
    usual_per_class, usual_val, test = COUNTS[graph.name]
    per_class = usual_per_class if per_class is None else per_class
    val = usual_val if val is None else val
    known = graph.x.any(1).cpu().nonzero()[:, 0]
    y = graph.y.cpu()[known]
    scarce = int(torch.bincount(y, minlength=graph.n_classes).min())
    if scarce <= per_class or graph.n_classes * per_class + val >= len(y):
        raise UsageError(
            f"graph {graph.name!r} cannot give {per_class} training nodes per class and {val} to validate: it has "
            f"{len(y)} labelled nodes, {scarce} in its smallest class"
        )
    generator = _generator(seed, "split")
    train = random_ranks(y, generator) < per_class
    order = torch.randperm(len(y), generator=generator)
    others = known[order[~train[order]]]
    masks = {"train": known[train], "val": others[:val], "test": others[val:][:test]}
    return replace(
        graph, **{k: _mask(rows, graph.n).to(graph.y.device) for k, rows in masks.items()}
    )


def _mask(rows: Tensor, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, rows, True)


def _generator(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(stream.encode()))


# --- generated: the stochastic block model -------------------------------------------------------


def sbm(
    nodes: int = 500,
    *,
    seed: int = 0,
    classes: int = 5,
    homophily: float = 0.8,
    degree: float = 5.0,
    informativeness: float = 0.3,
    words: int = 60,
    words_per_node: int = 8,
    per_class: int | None = None,
    val: int | None = None,
    device: str | torch.device = "cpu",
) -> Graph:
    """Draw a stochastic block model with bags of words; everything, the split too, depends on `seed` alone.

    Args:
        nodes: N. Classes have equal sizes (up to one node) and lie in random order.
        homophily: expected share of edges inside a class, 0 to 1; 1 / classes means that edges say nothing.
        degree: expected number of neighbours of a node.
        informativeness: share of a node's words that come from its class's own words, 0 (the words say
            nothing) to 1. The other words are uniform over all.
        words: F, size of the vocabulary; every class owns an equal part of it.
        words_per_node: words drawn for every node, with replacement; x marks those present.

    Raises UsageError for shares outside [0, 1], and for a degree that the nodes cannot have.
    """
    for what, share in {"homophily": homophily, "informativeness": informativeness}.items():
        if not 0 <= share <= 1:
            raise UsageError(f"{what} {share} is outside [0, 1]")
    if not 2 <= classes <= min(nodes, words):
        raise UsageError(f"{classes} classes do not fit {nodes} nodes and {words} words")
    draws = _generator(seed, "sbm")
    y = (torch.arange(nodes) % classes)[torch.randperm(nodes, generator=draws)]
    edges = _block_edges(y, classes, homophily, degree, draws)
    x = _bags(y, classes, informativeness, words, words_per_node, draws)
    nothing = torch.zeros(nodes, dtype=torch.bool)
    names = [chr(ord("A") + c) if classes <= 26 else str(c) for c in range(classes)]
    graph = Graph("sbm", x, edges, y, nothing, nothing, nothing, names)
    return resplit(graph, seed, per_class, val).to(device)


def _block_edges(
    y: Tensor, classes: int, homophily: float, degree: float, draws: torch.Generator
) -> Tensor:
    """Join every pair independently with its probability: (2, E), both directions.

    Pairs are numbered and reached by skipping: between successes of a coin with probability p lie
    geometrically many failures. So the work grows with the edges, not with all N^2 / 2 pairs. The coin
    has the larger of the two probabilities, and a second one thins the pairs of the other kind.
    """
    n = len(y)
    sizes = torch.bincount(y, minlength=classes).double()
    pairs = n * (n - 1) // 2
    inside = float((sizes * (sizes - 1) / 2).sum())
    p_in, p_out = (
        n * degree / 2 * share / count
        for share, count in ((homophily, inside), (1 - homophily, pairs - inside))
    )
    p = max(p_in, p_out)
    if not 0 < p <= 1:
        raise UsageError(
            f"{n} nodes in {classes} classes cannot have mean degree {degree} at homophily {homophily}"
        )
    pair = _successes(pairs, p, draws)
    # Pair k joins i < j with k = j (j - 1) / 2 + i.
    j = ((1 + (1 + 8 * pair.double()).sqrt()) / 2).floor().long()
    i = pair - j * (j - 1) // 2
    probability = torch.where(y[i] == y[j], p_in, p_out)
    kept = torch.rand(len(pair), generator=draws, dtype=torch.float64) * p < probability
    return _both_ways(torch.stack([i, j])[:, kept], n)


def _successes(trials: int, p: float, draws: torch.Generator) -> Tensor:
    """Return which of `trials` independent coins with probability p show heads: (K,) int64, ascending."""
    if p == 1:
        return torch.arange(trials)
    expected = trials * p
    k = int(expected + 10 * math.sqrt(expected + 1) + 10)  # more is needed once in 10^20 graphs
    u = torch.rand(k, generator=draws, dtype=torch.float64)
    gaps = (torch.log1p(-u) / math.log1p(-p)).floor().clamp(max=trials).long() + 1
    places = gaps.cumsum(0) - 1
    return places[places < trials]


def _both_ways(edges: Tensor, n: int) -> Tensor:
    """List every edge of (2, E) in both directions, sorted, without loops and duplicates."""
    i, j = torch.cat([edges, edges.flip(0)], dim=1)
    code = (i * n + j)[i != j].unique()
    return torch.stack([code // n, code % n])


def _bags(
    y: Tensor, classes: int, informativeness: float, words: int, k: int, draws: torch.Generator
) -> Tensor:
    """Draw k words for every node; the words of class c are those with number c modulo `classes`."""
    any_word = torch.randint(words, (len(y), k), generator=draws)
    own = any_word - any_word % classes + y[:, None]
    own = torch.where(own < words, own, own - classes)
    topical = torch.rand(len(y), k, generator=draws) < informativeness
    counts = torch.zeros(len(y), words).scatter_(1, torch.where(topical, own, any_word), 1.0)
    return F.normalize(counts, p=1)


# --- Zachary's karate club -----------------------------------------------------------------------


def karate() -> Graph:
    """Return Zachary's karate club: 34 members, 78 friendships, the two sides of the quarrel that split it.

    From networkx. Nobody has words, so a node's only feature is its own number (x is the identity).
    """
    import networkx as nx

    club = nx.karate_club_graph()
    sides = CLASSES["karate"]
    y = torch.tensor([sides.index(club.nodes[i]["club"]) for i in club])
    edges = _both_ways(torch.tensor(list(club.edges)).T, len(y))
    nothing = torch.zeros(len(y), dtype=torch.bool)
    return Graph("karate", torch.eye(len(y)), edges, y, nothing, nothing, nothing, sides)


# --- citation graphs -----------------------------------------------------------------------------


def raw_files(name: str) -> list[Path]:
    """Return the files of a citation graph that must lie below the data root (`LEFCOURSE_DATA`)."""
    folder = data_root() / "Planetoid" / PLANETOID[name][0] / "raw"
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    return [folder / f"ind.{name}.{part}" for part in parts]


def planetoid(name: str) -> Graph:
    """Return Cora, CiteSeer or PubMed with the public split, read by torch_geometric from raw files.

    The raw files are only read; what torch_geometric makes of them goes to a folder in the cache that
    is removed again, so that the data may be read-only and several runs may start at once.
    Raises DataError if files are absent (nothing is downloaded) or are not this set.
    """
    title, n, words = PLANETOID[name]
    missing = [path.name for path in raw_files(name) if not path.is_file()]
    folder = raw_files(name)[0].parent
    if missing:
        raise DataError(
            f"graph {name!r} is absent: put {', '.join(missing)} into {folder} (LEFCOURSE_DATA chooses the part before "
            "Planetoid); the files are in the folder data of https://github.com/kimiyoung/planetoid"
        )
    for path in raw_files(name):
        _check(path)
    try:
        data = _read(title, folder)
    except Exception as problem:  # files that do not belong together fail in many ways
        raise DataError(
            f"{folder} is broken: its files do not belong together ({problem}); replace them"
        ) from None
    if data.x.shape != (n, words):
        raise DataError(
            f"{folder} is broken: {tuple(data.x.shape)} nodes and words, {title} has {(n, words)}; replace the files"
        )
    if int(data.y.max()) + 1 != len(CLASSES[name]) or int(data.edge_index.max()) >= n:
        raise DataError(
            f"{folder} is broken: it has other classes or nodes than {title}; replace the files"
        )
    edges = _both_ways(data.edge_index, n)
    x = F.normalize(data.x, p=1)
    return Graph(
        name, x, edges, data.y, data.train_mask, data.val_mask, data.test_mask, CLASSES[name]
    )


def _check(path: Path) -> None:
    """Raise DataError if one raw file cannot be read: a pickle, or a list of whole numbers."""
    try:
        if path.name.endswith("test.index"):
            [int(line) for line in path.read_text().split()]
        else:
            pickle.loads(path.read_bytes(), encoding="latin1")
    except Exception as problem:  # a pickle that is cut or damaged fails in many ways
        raise DataError(f"{path.parent} is broken: {path.name} ({problem}); replace it") from None


def _read(title: str, raw: Path):
    """Let torch_geometric read the raw files of one citation graph."""
    from torch_geometric.datasets import Planetoid

    cache_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix="planetoid-") as scratch:
        places = {"raw_dir": str(raw), "processed_dir": scratch}
        local = type(
            title, (Planetoid,), {k: property(lambda _, v=v: v) for k, v in places.items()}
        )
        with contextlib.redirect_stderr(io.StringIO()):  # it announces each step there
            return local(root=scratch, name=title)[0]
