"""The world of graphs: what is drawn is what was asked for, and what is read is the published set."""

import os
import pickle

import pytest
import torch

from lefcourse.errors import DataError, UsageError
from lefcourse.science.worlds import graphs


def tensors(graph):
    return [v for v in vars(graph).values() if isinstance(v, torch.Tensor)]


def test_a_seed_is_a_graph():
    a, b, c = (graphs.sbm(200, seed=s, val=50) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    assert a.edge_index.shape != c.edge_index.shape or not torch.equal(a.edge_index, c.edge_index)
    torch.manual_seed(5)
    assert all(
        torch.equal(x, y)
        for x, y in zip(tensors(a), tensors(graphs.sbm(200, seed=1, val=50)), strict=True)
    )


@pytest.mark.parametrize(("homophily", "degree"), [(0.8, 5.0), (0.2, 12.0), (1.0, 4.0), (0.0, 4.0)])
def test_degree_and_homophily_are_as_asked(homophily, degree):
    graph = graphs.sbm(20_000, seed=0, homophily=homophily, degree=degree)
    assert abs(graph.degree.double().mean().item() - degree) < 0.03 * degree
    assert abs(graph.homophily - homophily) < 0.02
    assert torch.bincount(graph.y).unique().numel() == 1


def test_pairs_of_a_kind_are_equally_likely():
    """Over many small graphs every pair inside a class is joined alike, and every pair across."""
    n, runs = 8, 3000
    counts = torch.zeros(n, n)
    y = torch.arange(n) % 2
    draws = torch.Generator().manual_seed(0)
    for _ in range(runs):
        i, j = graphs._block_edges(y, 2, 0.75, 3.0, draws)
        counts[i, j] += 1
    same = (y[:, None] == y) & ~torch.eye(n, dtype=torch.bool)
    for pairs, share in ((same, 8 * 3 / 2 * 0.75 / 12), (y[:, None] != y, 8 * 3 / 2 * 0.25 / 16)):
        spread = 5 * (share * (1 - share) / runs) ** 0.5
        assert (counts[pairs] / runs - share).abs().max() < spread
    assert not counts.diag().any() and torch.equal(counts, counts.T)


def test_edges_are_listed_both_ways_once_without_loops():
    graph = graphs.sbm(300, seed=3)
    pairs = set(map(tuple, graph.edge_index.T.tolist()))
    assert len(pairs) == graph.edge_index.shape[1]
    assert all((j, i) in pairs and i != j for i, j in pairs)
    dense, sparse = graph.matrix(dense=True), graph.matrix(dense=False)
    assert torch.equal(dense, dense.T) and torch.equal(dense, sparse.to_dense())
    assert torch.equal(dense.sum(1).long(), graph.degree)


def test_words_follow_the_class_as_far_as_asked():
    for informativeness in (0.0, 0.5, 1.0):
        graph = graphs.sbm(5_000, seed=0, informativeness=informativeness, words=1_000)
        assert torch.allclose(graph.x.sum(1), torch.ones(graph.n))
        own = torch.arange(1_000) % 5 == graph.y[:, None]
        share = (graph.x * own).sum(1).mean().item()
        assert abs(share - (informativeness + (1 - informativeness) / 5)) < 0.03


def test_splits_are_stratified_and_disjoint():
    graph = graphs.sbm(500, seed=4, per_class=7, val=60)
    assert (torch.bincount(graph.y[graph.train]) == 7).all() and graph.val.sum() == 60
    assert (graph.train.int() + graph.val.int() + graph.test.int() == 1).all()
    again = graphs.resplit(graph, 5)
    assert torch.equal(again.edge_index, graph.edge_index) and not torch.equal(
        again.train, graph.train
    )


def test_the_karate_club():
    club = graphs.load("karate", seed=0)
    assert (club.n, club.edge_index.shape[1], club.n_classes) == (34, 2 * 78, 2)
    assert torch.bincount(club.y).tolist() == [17, 17] and club.degree.max() == 17
    assert (club.y[0], club.y[33]) == (0, 1)
    assert torch.equal(club.edge_index, graphs.load("karate", seed=1).edge_index)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: graphs.load("coar"), ["coar", "cora"]),
        (lambda: graphs.load("sbm", split="publik"), ["publik", "public"]),
        (lambda: graphs.load("karate", split="public"), ["karate", "no public split"]),
        (lambda: graphs.sbm(homophily=1.2), ["homophily 1.2", "[0, 1]"]),
        (lambda: graphs.sbm(20, degree=30.0), ["mean degree 30"]),
        (lambda: graphs.sbm(3, classes=5), ["5 classes", "3 nodes"]),
        (lambda: graphs.sbm(50, per_class=20), ["50 labelled nodes", "10 in its smallest class"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(call, words):
    with pytest.raises(UsageError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words)


def test_absent_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"ind\.cora\.allx.*LEFCOURSE_DATA"):
        graphs.load("cora")


def test_broken_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    for path in graphs.raw_files("cora"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"Cora.raw is broken"):
        graphs.load("cora")


@pytest.mark.parametrize("content", [b"", b"\x80\x04half", b"cnowhere\nnothing\n.", b"\xff"])
@pytest.mark.parametrize("part", ["allx", "graph", "test.index"])
def test_a_damaged_file_of_a_graph_is_named(part, content, tmp_path, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    for path in graphs.raw_files("cora"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if path.name.endswith(part) else pickle.dumps(0))
        if path.name.endswith("test.index") and part != "test.index":
            path.write_text("1\n2\n")
    names_it = "" if part == "test.index" and not content else f".*ind.cora.{part}"
    with pytest.raises(DataError, match=f"Cora.raw is broken{names_it}"):
        graphs.load("cora")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "homophily"), [("cora", 2708, 5278, 0.81), ("citeseer", 3327, 4552, 0.74)]
)  # fmt: skip
def test_citations_are_the_published_ones(name, nodes, edges, homophily):
    if "LEFCOURSE_DATA" not in os.environ or not graphs.raw_files(name)[0].is_file():
        pytest.skip("LEFCOURSE_DATA does not hold this set")
    public = graphs.load(name, split="public")
    assert (public.n, public.edge_index.shape[1]) == (nodes, 2 * edges)
    assert abs(public.homophily - homophily) < 0.01
    C = public.n_classes
    assert (torch.bincount(public.y[public.train]) == 20).all()
    assert [int(m.sum()) for m in (public.train, public.val, public.test)] == [20 * C, 500, 1000]
    drawn = graphs.load(name, seed=3)
    assert (torch.bincount(drawn.y[drawn.train]) == 20).all() and not (
        drawn.train & drawn.test
    ).any()
    assert not drawn.train[~drawn.x.any(1)].any()
