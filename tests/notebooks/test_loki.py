"""Loki against brute force: the rule, its special cases, and which labels it can reach."""

import codecs
import pickle

import numpy as np
import pytest
import torch
from exercise_checks import assert_named, each
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from sklearn.utils import Bunch

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.running import runner

loki = lc.methods("loki")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def simplex(n, K, seed=0):
    p = torch.rand(n, K, generator=rng(seed), dtype=torch.float64) ** 2
    return p / p.sum(1, keepdim=True)


def random_tree(N, seed):
    g = rng(seed)
    return loki.tree_metric(
        [-1] + [int(torch.randint(v, (1,), generator=g)) for v in range(1, N)]
    ).double()


def graph_metric(edges):
    a, b = np.array(edges).T
    shape = (max(a.max(), b.max()) + 1,) * 2
    ones = coo_array((np.ones(len(a)), (a, b)), shape=shape)
    return torch.tensor(shortest_path(ones, directed=False, unweighted=True))


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 2])
def test_the_rule_is_its_definition(q):
    d, seen, P = random_tree(12, 0), [1, 4, 7, 11], simplex(30, 4)
    answers = loki.loki(P, d[:, seen], q)
    for i in range(30):
        costs = [sum(P[i, k] * d[y, s] ** q for k, s in enumerate(seen)) for y in range(12)]
        assert torch.allclose(
            loki.risk(P, d[:, seen], q)[i], torch.stack([torch.as_tensor(c) for c in costs])
        )
        assert answers[i] == int(np.argmin([float(c) for c in costs]))


def test_without_geometry_it_is_argmax():
    d = 1 - torch.eye(9, dtype=torch.float64)
    P = simplex(500, 9)
    assert torch.equal(loki.loki(P, d), P.argmax(1))
    seen = torch.tensor([2, 3, 8])
    P = simplex(500, 3)
    assert torch.equal(loki.loki(P, d[:, seen]), seen[P.argmax(1)])


def test_certainty_names_the_observed_label():
    d, seen = random_tree(15, 1), torch.tensor([3, 8, 14])
    assert torch.equal(loki.loki(torch.eye(3).double(), d[:, seen]), seen)


def test_scale_does_not_matter_and_an_offset_does():
    d, P = random_tree(20, 2), simplex(400, 20, seed=3)
    offset = d + 20 * (1 - torch.eye(20).double())
    assert torch.equal(loki.loki(P, d), loki.loki(P, 3.7 * d))
    agree = [(loki.loki(P, m) == P.argmax(1)).double().mean() for m in (d, offset)]
    assert agree[0] < agree[1], "a constant between all different labels moves the rule to argmax"


def test_permuting_labels_permutes_answers():
    # Points in the plane: no ties, which the first index would break differently.
    points = torch.rand(15, 2, generator=rng(9), dtype=torch.float64)
    d, P, seen = torch.cdist(points, points), simplex(200, 4, 1), torch.tensor([0, 5, 9, 13])
    order = torch.randperm(15, generator=rng(4))
    place = order.argsort()  # old label v is now called place[v]
    answers = loki.loki(P, d[order][:, order][:, place[seen]])
    assert torch.equal(answers, place[loki.loki(P, d[:, seen])])


def test_on_a_line_it_is_the_label_nearest_to_the_mean():
    ruler, seen = torch.arange(50).double(), torch.tensor([0, 7, 31, 49])
    d, P = (ruler[:, None] - ruler[seen]).abs(), simplex(300, 4, 2)
    mean = P @ ruler[seen]
    assert torch.equal(loki.loki(P, d), mean.round().long())


def test_without_the_square_it_is_the_weighted_median():
    ruler, seen = torch.arange(50).double(), torch.tensor([0, 7, 31, 49])
    d, P = (ruler[:, None] - ruler[seen]).abs(), simplex(300, 4, 2)
    median = seen[(P.cumsum(1) < 0.5).sum(1)]
    assert torch.equal(loki.loki(P, d, q=1), median)


def test_between_two_ends_of_a_path():
    L = 12
    d = loki.tree_metric([-1, *range(L)]).double()
    w = torch.linspace(0, 1, 101, dtype=torch.float64)
    w = w[((w * L) % 1 - 0.5).abs() > 1e-6]
    answers = loki.loki(torch.stack([1 - w, w], 1), d[:, [0, L]])
    assert torch.equal(answers, (w * L).round().long())


def test_no_answer_has_a_smaller_expected_squared_distance():
    d = loki.grid_metric(8, 8).double()
    posterior = simplex(40, 64, 5)  # the true one, over all labels
    best = loki.risk(posterior, d).gather(1, loki.loki(posterior, d)[:, None])[:, 0]
    for rule in [torch.full((40,), y) for y in range(64)] + [posterior.argmax(1)]:
        assert (best <= loki.risk(posterior, d).gather(1, rule[:, None])[:, 0] + 1e-12).all()


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_tree_metric_counts_edges(seed):
    parent = [-1] + [int(torch.randint(v, (1,), generator=rng(seed + v))) for v in range(1, 25)]
    expected = graph_metric([(v, p) for v, p in enumerate(parent) if p >= 0])
    assert torch.equal(loki.tree_metric(parent).double(), expected)


def test_ternary_tree_and_grid():
    assert loki.ternary_parents(2) == [-1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    d = loki.grid_metric(3, 5)
    for u in range(15):
        for v in range(15):
            assert d[u, v] == abs(u // 5 - v // 5) + abs(u % 5 - v % 5)


# --- the locus -----------------------------------------------------------------------------------


def test_simplex_grid_holds_every_vector_once():
    grid = loki.simplex_grid(4, 6)
    assert len(grid) == 84 == len({tuple(row) for row in grid.tolist()})
    assert torch.allclose(grid.sum(1), torch.ones(84, dtype=torch.float64))


def weights_for(d, seen, steps=12):
    """A grid on the simplex, and for every pair of observed vertices the exact weights of the vertices between."""
    rows = [loki.simplex_grid(len(seen), steps)]
    for a in range(len(seen)):
        for b in range(a):
            L = int(d[seen[a], seen[b]])
            for i in range(L + 1):
                row = torch.zeros(1, len(seen), dtype=torch.float64)
                row[0, a], row[0, b] = i / L, 1 - i / L
                rows.append(row)
    return torch.cat(rows)


@pytest.mark.parametrize("seed", range(6))
def test_on_a_tree_the_locus_is_the_union_of_paths(seed):
    d = random_tree(18, seed + 10)
    seen = torch.randperm(18, generator=rng(seed))[: 2 + seed % 3]
    paths = loki.tree_locus(d, seen)
    coarse = loki.locus_by_search(d, seen, loki.simplex_grid(len(seen), 12))
    assert not (coarse & ~paths).any()
    assert torch.equal(loki.locus_by_search(d, seen, weights_for(d, seen)), paths)
    assert paths.tolist() == [loki.in_locus(v, d, seen) for v in range(18)]


@pytest.mark.parametrize("seed", range(4))
def test_paths_of_a_weighted_tree_in_single_precision(seed):
    parent = [-1] + [int(torch.randint(v, (1,), generator=rng(seed + v))) for v in range(1, 18)]
    length = torch.rand(18, generator=rng(seed)) + 0.1
    d = torch.zeros(18, 18)
    for v in range(1, 18):
        d[v, :v] = d[:v, v] = d[parent[v], :v] + length[v]
    seen = torch.tensor([17, 4, 9])
    on_paths = set()
    for a, b in [(17, 4), (17, 9), (4, 9)]:
        ways = []
        for v in (a, b):
            way = [v]
            while parent[way[-1]] >= 0:
                way.append(parent[way[-1]])
            ways.append(way)
        shared = next(v for v in ways[0] if v in ways[1])
        on_paths |= {v for way in ways for v in way[: way.index(shared) + 1]}
    assert set(loki.tree_locus(d, seen).nonzero()[:, 0].tolist()) == on_paths


def test_a_vertex_between_two_is_the_only_minimiser():
    d = random_tree(20, 30)
    a, b = divmod(int(d.argmax()), 20)
    L = int(d[a, b])
    for i in range(L + 1):
        w = torch.tensor([[1 - i / L, i / L]], dtype=torch.float64)
        (found,) = loki.minimisers(w, d[:, [a, b]]).nonzero()[:, 1].tolist()
        assert (d[a, found], d[found, b]) == (i, L - i)


@pytest.mark.parametrize("seed", range(3))
def test_the_leaves_are_the_smallest_locus_cover(seed):
    d = random_tree(16, seed + 50)
    leaves = ((d == 1).sum(1) == 1).nonzero()[:, 0]
    assert loki.tree_locus(d, leaves).all()
    for k in range(len(leaves)):
        others = torch.cat([leaves[:k], leaves[k + 1 :]])
        rest = torch.tensor([v for v in range(16) if v not in leaves.tolist()] + others.tolist())
        assert not loki.tree_locus(d, rest)[leaves[k]], "no leaf can be spared"


def test_opposite_corners_cover_a_grid_through_ties():
    d = loki.grid_metric(4, 5).double()
    corners = torch.tensor([0, 19])
    assert all(loki.in_locus(v, d, corners) for v in range(20))
    w = torch.stack([1 - torch.arange(8) / 7, torch.arange(8) / 7], 1).double()
    ties = loki.minimisers(w, d[:, corners])
    assert ties.any(0).all()
    assert ties.sum(1).tolist() == [int((d[0] == i).sum()) for i in range(8)]


def test_without_geometry_nothing_new_is_in_reach():
    d = 1 - torch.eye(7, dtype=torch.float64)
    assert [v for v in range(7) if loki.in_locus(v, d, torch.tensor([1, 4, 5]))] == [1, 4, 5]


def test_where_only_leaves_are_labels_some_are_out_of_reach():
    d = loki.tree_metric(loki.ternary_parents(2)).double()[4:, 4:]
    seen = torch.tensor([0, 3, 6])  # one leaf of each branch
    assert [v for v in range(9) if loki.in_locus(v, d, seen)] == [0, 3, 6]


def test_on_a_graph_an_answer_can_lie_on_no_path():
    ring = [(i, (i + 1) % 9) for i in range(9)]
    d = graph_metric([*ring, (0, 10), (10, 9), (3, 11), (11, 9), (6, 12), (12, 9)])
    seen = torch.tensor([0, 3, 6])
    assert not loki.tree_locus(d, seen)[9]
    assert loki.in_locus(9, d, seen)
    sums = loki.risk(torch.ones(1, 3).double(), d[:, seen])[0]
    assert (sums[9], sums[0], sums.argmin()) == (12, 18, 9)


def test_next_class_is_the_farthest_and_a_leaf():
    for seed in range(5):
        d = random_tree(20, seed + 80)
        locus = loki.tree_locus(d, torch.tensor([2, 11]))
        chosen = loki.next_class(d, locus)
        gaps = [min(float(d[v, u]) for u in range(20) if locus[u]) for v in range(20)]
        assert gaps[chosen] == max(gaps)
        assert (d[chosen] == 1).sum() == 1
        assert loki.tree_locus(d, torch.tensor([2, 11, chosen])).sum() == locus.sum() + max(gaps)


# --- 20 Newsgroups -------------------------------------------------------------------------------

GROUPS = ("comp.sys.mac", "comp.sys.pc", "comp.graphics", "sci.space", "sci.med", "talk.politics")


def test_dotted_names_hang_on_their_prefixes():
    vertices, parent = loki.dotted_tree(GROUPS)
    assert vertices[0] == "" and set(GROUPS) < set(vertices)
    assert len(vertices) == 11
    for v, p in zip(vertices[1:], parent[1:], strict=True):
        assert vertices[p] == v.rpartition(".")[0]
    d = loki.tree_metric(parent)
    at = vertices.index
    assert d[at("comp.sys.mac"), at("comp.sys.pc")] == 2
    assert d[at("comp.sys.mac"), at("sci.med")] == 5


def test_absent_newsgroups_say_what_to_put_where(monkeypatch, tmp_path):
    def fetch(**given):
        raise OSError("no network")

    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets.fetch_20newsgroups", fetch)
    with pytest.raises(lc.DataError, match=r"20news-bydate_py3\.pkz"):
        loki.newsgroups("train")


@pytest.mark.notebook
def test_the_chapter_runs_on_newsgroups_where_they_are(monkeypatch, tmp_path):
    """A handful of texts in the file that scikit-learn keeps."""

    def part(n):
        target = np.arange(n) % len(GROUPS)
        data = [f"From: somebody\n\n{GROUPS[t]}\nis the subject of this letter" for t in target]
        names = np.array([str(i) for i in range(n)])
        return Bunch(data=data, target=target, target_names=list(GROUPS), filenames=names, DESCR="")

    cache = pickle.dumps({"train": part(60), "test": part(24)})
    (tmp_path / "20news-bydate_py3.pkz").write_bytes(codecs.encode(cache, "zlib_codec"))
    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    chosen = {"source": "newsgroups", "observed": 4}
    record = runner.execute(catalogue.get("loki"), chosen, tmp_path / "run", budget="smoke")
    assert record["status"] == "done", record.get("error")
    arms = record["arms"]
    assert arms["argmax, 20 Newsgroups"]["says_unobserved"] == 0
    assert arms["Loki, 20 Newsgroups"]["says_unobserved"] > 0, "inner topics can be answered"
    assert arms["Loki, 20 Newsgroups"]["squared_distance"] < 36


# --- the paper's setting, and the exercises ------------------------------------------------------

# What `--budget full` must be, and where it is said (files of the authors' repository).
PAPER = {
    "temperature": (1.0, "simclr_exps/loki.py: predict_proba enters the rule as it is"),
    "grid_temperature": (1.0, "clip_exp/run_cifar.py: softmax(100 * cosine) enters as it is"),
}


def test_the_full_budget_is_the_papers_rule():
    full = params.presets(catalogue.get("loki").path)["full"]
    for name, (value, _) in PAPER.items():
        assert full[name] == value


def ruler_with(rule):
    return lambda p, positions: rule(p, positions, torch.arange(101.0)[:, None])


def best_by(quality):
    """Choose the temperature by another quality of the answers than their squared distance."""

    def mend(z, d, observed, truth, options):
        def value(T):
            answers = loki.loki(torch.softmax(z / T, dim=1), d[:, observed])
            return quality(answers, truth, d).item()

        return max(options, key=value)

    return mend


RING = [(i, (i + 1) % 9) for i in range(9)]
DENSE = [(i, j) for i in range(6) for j in range(i)]

WRONG = {
    "check_ruler": [
        (ruler_with(lambda p, at, y: at[p.argmax(1)]), "argmax's answers"),
        (lambda p, at: p @ at, "round to the"),
        (lambda p, at: (p @ at).long(), "round to the"),
        (
            lambda p, at: at[((p @ at)[:, None] - at).abs().argmin(1)],
            "the minimum runs over all of them",
        ),
        (lambda p, at: (p @ at)[:5].round(), "every row"),
        (lambda p, at: (p @ at**2).sqrt().round(), "nearest to the mean"),
    ],
    "check_graph": [
        (lambda: (RING, [0, 3, 6], 1), "lies on a shortest path"),
        (lambda: ([*RING, (9, 10)], [0, 3, 6], 9), "must be connected"),
        (lambda: ([*RING, (1, 9)], [0, 3, 6], 9), "no weights make"),
        (lambda: (DENSE, [0, 1, 2], 3), "no weights make"),
        (lambda: (RING, [0, 3, 3], 1), "three different"),
    ],
    "check_mend": [
        (lambda z, d, observed, truth, options: 1 / 50, "strangers need flatter"),
        (lambda z, d, observed, truth, options: 1.0, "the largest of all"),
        (lambda z, d, observed, truth, options: 50.0, "none of the options"),
        (best_by(lambda a, truth, d: (a == truth).float().mean()), "most exact hits"),
        (best_by(lambda a, truth, d: (d[a, truth] ** 2).mean()), "the largest of all"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("loki", WRONG, name, k, coo_array=coo_array, shortest_path=shortest_path)
