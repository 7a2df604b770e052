"""PL-FMS: stream, heads, memory rules, importance, acceptance and the loop, each against a hand-made case or a slow definition."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, checks, each, full_budget
from realdata import assert_runs

import lefcourse as lc

hle = lc.methods("hle")
PARENT = torch.arange(6) // 3  # two parents with three children
LEVEL = torch.tensor([0] * 2 + [1] * 6)
LEVELS = LEVEL.tolist()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=120, seed=1):
    return torch.rand(n, 1, 8, 8, generator=rng(seed)), torch.arange(n) % 6


def net(seed=2):
    torch.manual_seed(seed)
    return lc.nets.convnet(1, len(LEVEL), 4, size=8)


def arm(rule=None, entry="fms", **change):
    return hle.Arm(rule or hle.pl, entry, **dict(lr=1e-3, M=16) | change)


def run(an_arm, *, B=8, per_sample=0.5, watch=lambda *a: None, n=96, seed=3):
    x, fine = images(n)
    stream = hle.stream_of(fine, PARENT, "single", rng(4))
    model = net()
    memory = hle.online(model, x, stream, LEVEL, an_arm, B, per_sample, rng(seed), watch)
    return model, memory, stream


def memory_of(ids, gain=None, capacity=None):
    n = len(ids)
    gain = [float(j) for j in range(n)] if gain is None else gain
    return hle.Memory(capacity or n, list(range(n)), list(ids), list(gain), [None] * n)


# --- the stream ----------------------------------------------------------------------------------


def test_a_single_label_stream_shows_every_image_once_coarse_first():
    fine = torch.arange(120) % 6
    stream = hle.stream_of(fine, PARENT, "single", rng())
    assert torch.equal(stream.image.sort().values, torch.arange(120))
    assert stream.starts[0] == 0 and stream.starts[1] == 30 and len(stream.starts) == 4
    coarse = slice(0, 30)
    assert torch.equal(stream.ids[coarse], PARENT[fine[stream.image[coarse]]])
    assert torch.equal(stream.ids[30:], fine[stream.image[30:]] + 2)  # offset by the level


def test_every_task_brings_one_new_child_of_every_parent():
    stream = hle.stream_of(torch.arange(120) % 6, PARENT, "single", rng())
    ends, met = [*stream.starts, 120], set()
    for a, b in pairwise(ends[1:]):
        here = set(stream.ids[a:b].tolist())
        assert len(here) == 2 and not here & met
        assert {int(PARENT[c - 2]) for c in here} == {0, 1}
        met |= here
        assert len(set(stream.ids[a : a + 12].tolist())) == 2  # the two are mixed
    assert met == set(range(2, 8))


def test_a_dual_label_stream_shows_the_same_images_twice():
    fine = torch.arange(120) % 6
    stream = hle.stream_of(fine, PARENT, "dual", rng())
    assert len(stream.ids) == 120 and stream.starts[1] == 60
    assert set(stream.image[:60].tolist()) == set(stream.image[60:].tolist())
    assert (LEVEL[stream.ids[:60]] == 0).all() and (LEVEL[stream.ids[60:]] == 1).all()


def test_the_order_is_drawn_and_unequal_trees_are_refused():
    one, two = (hle.lessons(PARENT, rng(s)) for s in (0, 1))
    assert torch.equal(one, hle.lessons(PARENT, rng(0))) and not torch.equal(one, two)
    assert torch.equal(PARENT[one], torch.tensor([[0, 1]] * 3))
    with pytest.raises(lc.DataError, match="same number"):
        hle.lessons(torch.tensor([0, 0, 1]), rng())


# --- the heads -----------------------------------------------------------------------------------


def test_a_sample_trains_the_head_of_its_level_alone():
    z = torch.randn(3, 8, generator=rng(), requires_grad=True)
    seen = torch.ones(8, dtype=torch.bool)
    ids = torch.tensor([1, 4, 7])
    loss = hle.level_loss(z, ids, seen, LEVEL)
    assert torch.allclose(loss[0], F.cross_entropy(z[:1, :2], ids[:1]))
    assert torch.allclose(loss[1:], F.cross_entropy(z[1:, 2:], ids[1:] - 2, reduction="none"))
    loss.sum().backward()
    assert (z.grad[0, 2:] == 0).all() and (z.grad[1:, :2] == 0).all()
    assert (z.grad[0, :2] != 0).all() and (z.grad[1:, 2:] != 0).all()


def test_a_class_that_was_not_met_neither_competes_nor_learns():
    model, x = net(), images(8)[0]
    seen = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    before = model.head.weight.detach().clone()
    hle.step(model, optimiser, x, [(i, 2 + i % 2) for i in range(8)], seen, LEVEL)
    moved = (model.head.weight.detach() - before).abs().sum(1) > 0
    assert moved.tolist() == [False, False, True, True, False, False, False, False]
    z = torch.zeros(1, 8)
    assert torch.isclose(
        hle.level_loss(z, torch.tensor([2]), seen, LEVEL), torch.tensor(2.0).log()
    ).all()


def test_growing_a_head_leaves_the_old_logits_as_they_are():
    z, few = torch.randn(4, 8, generator=rng()), torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).bool()
    more = few.clone()
    more[4] = True
    ids = torch.tensor([2, 3, 2, 3])
    one, two = hle.own_head(z, ids, few, LEVEL), hle.own_head(z, ids, more, LEVEL)
    assert torch.equal(one[:, 2:4], z[:, 2:4]) and torch.equal(one[:, 2:4], two[:, 2:4])
    assert torch.isinf(one[:, [0, 1, 4]]).all() and torch.equal(two[:, 4], z[:, 4])


def test_guesses_are_the_best_seen_class_of_each_level():
    z = torch.tensor([[0.0, 1.0, 9.0, 2.0, 3.0, 0.0, 0.0, 99.0]])
    seen = torch.tensor([1, 1, 0, 1, 1, 0, 0, 0], dtype=torch.bool)
    assert hle.guess(z, seen, LEVEL).tolist() == [[1, 4]]
    assert hle.guess(z, seen & (LEVEL == 0), LEVEL).tolist() == [[1, -1]]


def test_the_parent_is_learned_only_where_it_is_told():
    model, x = net(), images(4)[0]
    told = torch.cat([torch.tensor([-1, -1]), PARENT])
    seen = torch.ones(8, dtype=torch.bool)
    for known, expected in ((None, False), (told, True)):
        model = net()
        before = model.head.weight.detach().clone()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        hle.step(model, optimiser, x, [(i, 3 + i) for i in range(4)], seen, LEVEL, known)
        assert ((model.head.weight - before)[:2].abs().sum() > 0).item() == expected


def test_a_step_is_the_sum_of_losses_over_the_batch_size():
    model, x = net(), images(4)[0]
    batch = [(0, 1), (1, 4), (2, 5), (3, 0)]
    seen = torch.ones(8, dtype=torch.bool)
    twin = net()
    hle.step(model, torch.optim.SGD(model.parameters(), lr=0.1), x, batch, seen, LEVEL)
    z = twin(x)
    loss = sum(F.cross_entropy(z[i : i + 1, :2], torch.tensor([c])) for i, c in batch if c < 2)
    loss = loss + sum(
        F.cross_entropy(z[i : i + 1, 2:], torch.tensor([c - 2])) for i, c in batch if c >= 2
    )
    (loss / 4).backward()
    with torch.no_grad():
        for p in twin.parameters():
            p -= 0.1 * p.grad
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


# --- the importance ------------------------------------------------------------------------------


def test_importance_rises_for_those_used_if_the_loss_falls():
    memory = memory_of([0, 0, 1], [0.5, 0.1, 0.2])
    memory.loss, memory.used = [1.0, 2.0, 3.0], {0, 2}
    hle.update_importance(memory, [0.5, 1.0, 2.0])
    delta = -2.5 / 3 - 0.35 / 2  # mean change, less mean importance over its number
    assert memory.gain == pytest.approx([0.5 - 0.1 * delta, 0.1, 0.2 - 0.1 * delta])
    assert memory.gain[0] > 0.5 and memory.gain[1] == 0.1
    assert memory.loss == [0.5, 1.0, 2.0] and memory.used == set()


def test_importance_falls_if_the_loss_rises_and_replaced_samples_do_not_count():
    memory = memory_of([0, 0, 1], [0.0, 0.0, 0.0])
    memory.loss, memory.used = [1.0, None, 1.0], {1}
    hle.update_importance(memory, [1.5, -100.0, 1.5])
    assert memory.gain == pytest.approx([0.0, -0.05, 0.0])


def test_without_a_first_look_or_a_use_nothing_changes():
    memory = memory_of([0, 1], [0.3, 0.4])
    memory.used = {0}
    hle.update_importance(memory, [1.0, 2.0])
    hle.update_importance(memory, [0.0, 0.0])
    assert memory.gain == [0.3, 0.4]


def test_a_new_sample_starts_at_the_mean_of_its_class():
    memory = memory_of([0, 0, 1], [0.2, 0.6, 5.0], capacity=9)
    memory.used = {2}
    memory.put(7, 0)
    memory.put(8, 3)
    assert memory.gain == pytest.approx([0.2, 0.6, 5.0, 0.4, 0.0]) and memory.loss[3] is None
    memory.loss[2] = 1.0
    memory.put(9, 0, slot=2)
    assert (memory.image[2], memory.ids[2], memory.loss[2]) == (9, 0, None)
    assert memory.gain[2] == pytest.approx(0.4) and memory.used == set() and len(memory) == 5


# --- who leaves the memory -----------------------------------------------------------------------


def test_the_incoming_sample_is_counted_and_ties_are_drawn():
    assert hle.largest([0, 0, 1, 1], 1, 0.0) == 1
    assert hle.largest([0, 0, 1], 1, 0.0) == 0 and hle.largest([0, 0, 1], 1, 0.99) == 1


def test_clib_discards_the_least_important_of_the_largest_class():
    memory = memory_of([3, 3, 0, 3, 0], [0.3, 0.1, -9.0, 0.2, 0.0])
    assert hle.clib(memory, 0, 9, (0.0, 0.0), None, LEVELS) == 2  # 3 : 3, the lower id at u = 0
    assert hle.clib(memory, 4, 9, (0.0, 0.0), None, LEVELS) == 1


def hand_made():
    """Class 3 is the largest; its samples are called 1, 1, 0 by the coarse head."""
    ids = [3, 3, 3, 0, 1, 1, 4]
    gain = [0.5, 0.4, 0.6, -5.0, 0.3, 0.2, -7.0]
    guesses = [[1, 3], [1, 3], [0, 4], [0, 3], [1, 3], [1, 3], [0, 4]]
    return memory_of(ids, gain), guesses


def test_pl_pools_the_largest_class_and_the_relative_that_its_samples_vote_for():
    memory, guesses = hand_made()
    assert hle.related([0, 1, 2], guesses, 1) == {1}
    assert hle.pool_of(memory, 3, guesses, LEVELS) == [0, 1, 2, 4, 5]
    assert hle.pl(memory, 3, 9, (0.0, 0.0), guesses, LEVELS) == 5  # a coarse one, for a fine class
    assert hle.clib(memory, 3, 9, (0.0, 0.0), guesses, LEVELS) == 1


def test_the_pool_takes_true_labels_and_the_vote_comes_from_the_largest_class_alone():
    memory, guesses = hand_made()
    guesses[6] = [1, 4]  # whatever others are called does not matter
    guesses[3] = [1, 3]
    assert hle.pl(memory, 3, 9, (0.0, 0.0), guesses, LEVELS) == 5
    guesses[0] = guesses[1] = [0, 3]
    assert hle.pl(memory, 3, 9, (0.0, 0.0), guesses, LEVELS) == 3


def test_a_coarse_class_names_its_dominant_child():
    memory = memory_of([0, 0, 0, 5, 4], [0.0, 1.0, 2.0, -1.0, -2.0])
    guesses = [[0, 5], [0, 5], [0, 4], [0, 5], [0, 4]]
    assert hle.pl(memory, 0, 9, (0.0, 0.0), guesses, LEVELS) == 3


def test_without_relatives_pl_is_clib():
    memory, guesses = hand_made()
    nobody = [[-1, g[1]] for g in guesses]
    g = rng(5)
    for _ in range(20):
        memory.gain = torch.rand(7, generator=g).tolist()
        u = torch.rand(2, generator=g).tolist()
        assert hle.pl(memory, 3, 9, u, nobody, LEVELS) == hle.clib(memory, 3, 9, u, None, LEVELS)
        one_level = [[c] for c in memory.ids]
        flat = [0] * 8
        assert hle.pl(memory, 3, 9, u, one_level, flat) == hle.clib(memory, 3, 9, u, None, flat)


def test_the_placebo_draws_from_the_same_pool():
    memory, guesses = hand_made()
    drawn = {hle.pl_random(memory, 3, 9, (0.0, k / 50), guesses, LEVELS) for k in range(50)}
    assert drawn == {0, 1, 2, 4, 5}
    fair = {hle.balanced(memory, 3, 9, (0.0, k / 50), guesses, LEVELS) for k in range(50)}
    assert fair == {0, 1, 2}


def test_the_reservoir_is_a_fair_sample_of_the_past():
    counts, g = torch.zeros(40), rng(6)
    for _ in range(1500):
        memory, draws = hle.Memory(8), torch.rand(40, 2, generator=g).tolist()
        for n in range(40):
            hle.insert(memory, n, 0, n + 1, draws[n], hle.reservoir, None, LEVELS)
        counts[memory.image] += 1
        assert len(set(memory.image)) == 8
    assert (counts / 1500 - 0.2).abs().max() < 0.05


def test_guesses_move_with_the_slots():
    memory, guesses = hand_made()
    hle.insert(memory, 50, 3, 9, (0.0, 0.0), hle.pl, guesses, LEVELS, [7, 7])
    assert memory.ids[5] == 3 and memory.image[5] == 50 and guesses[5] == [7, 7]
    small, said = hle.Memory(2), []
    hle.insert(small, 1, 3, 1, (0.0, 0.0), hle.pl, said, LEVELS, [0, 3])
    assert said == [[0, 3]] and small.ids == [3]


# --- who enters the batch ------------------------------------------------------------------------


def test_the_ramp_begins_at_zero_when_a_class_is_met_and_ends_at_one():
    assert hle.acceptance(40, 40, 1000, 5) == 0
    assert hle.acceptance(140, 40, 1000, 5) == pytest.approx(0.5)
    assert hle.acceptance(240, 40, 1000, 5) == 1 and hle.acceptance(900, 40, 1000, 5) == 1
    assert hle.acceptance(140, 40, 1000, 10) == 1  # more classes, shorter ramp
    assert hle.acceptance(140, 40, 1000, 5, ramp=2.0) == pytest.approx(0.25)


def test_the_entries_are_the_methods():
    first = {0: 0, 3: 50}
    assert hle.entry(arm(entry="all"), 60, first, 3, 200) == 1
    assert hle.entry(arm(entry="none"), 60, first, 3, 200) == 0
    assert hle.entry(arm(), 60, first, 3, 200) == pytest.approx(0.1)  # by when it was first seen
    assert hle.entry(arm(), 60, first, 0, 200) == pytest.approx(0.6)


def test_a_batch_is_filled_from_memory_in_place_of_the_rejected():
    memory = memory_of([0] * 20)
    arrived = [(100 + i, 3) for i in range(4)]
    u = [0.1, 0.6, 0.4, 0.9]
    batch, slots = hle.mixed_batch(arrived, [0.5] * 4, u, memory, 8, rng())
    assert [s for s in batch if s[0] >= 100] == [(100, 3), (102, 3)]
    assert len(batch) == 8 and len(set(slots)) == 6
    assert [image for image, _ in batch[2:]] == slots
    for p, n in ((0.0, 0), (1.0, 4)):
        batch, slots = hle.mixed_batch(arrived, [p] * 4, u, memory, 8, rng())
        assert len(batch) == 8 and len(slots) == 8 - n
    few, _ = hle.mixed_batch(arrived, [1.0] * 4, u, memory_of([0, 1]), 8, rng())
    assert len(few) == 6  # memory permitting


# --- the loop ------------------------------------------------------------------------------------

RULES = ["reservoir", "balanced", "clib", "pl", "pl_random"]


@pytest.mark.parametrize("rule", RULES)
def test_one_pass_inserts_before_training_and_never_exceeds_the_memory(rule, monkeypatch):
    log, real_put, real_step = [], hle.insert, hle.step

    def insert(memory, image, *rest):
        log.append(("in", image))
        return real_put(memory, image, *rest)

    def step(model, optimiser, x, batch, *rest):
        log.append(("step", [i for i, _ in batch]))
        return real_step(model, optimiser, x, batch, *rest)

    space = hle.online.__globals__
    monkeypatch.setitem(space, "insert", insert)
    monkeypatch.setitem(space, "step", step)
    x, fine = images(96)
    truth = {}

    def watch(n, model, seen, memory):
        assert len(memory) <= 16 and model.training
        assert all(truth[i] == c for i, c in zip(memory.image, memory.ids, strict=True))

    stream = hle.stream_of(fine, PARENT, "single", rng(4))
    truth = dict(zip(stream.image.tolist(), stream.ids.tolist(), strict=True))
    hle.online(net(), x, stream, LEVEL, arm(getattr(hle, rule)), 8, 0.5, rng(3), watch)
    assert [i for what, i in log if what == "in"] == stream.image.tolist()  # each once, in order
    stored, steps = set(), 0
    for what, i in log:
        if what == "in":
            stored.add(i)
        else:
            assert set(i) <= stored
            steps += 1
    assert steps == 48  # per_sample = 0.5
    sizes = [len(i) for what, i in log if what == "step"]
    assert set(sizes[4:]) == {8}


def test_all_arms_make_the_same_number_of_updates(monkeypatch):
    counts = []
    real = hle.step
    space = hle.online.__globals__
    for change in (dict(), dict(share=0.25), dict(entry="none"), dict(entry="all")):
        calls = []
        monkeypatch.setitem(space, "step", lambda *a, calls=calls: (calls.append(1), real(*a)))
        run(arm(hle.clib, **change))
        counts.append(len(calls))
    monkeypatch.setitem(space, "step", lambda *a: counts.append(0))
    assert counts == [48] * 4


def test_looking_changes_nothing():
    model, x = net(), images(20)[0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    z = hle.look(model, x, [3, 5, 7])
    assert model.training and not z.requires_grad and len(z) == 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    assert torch.allclose(z, model(x[[3, 5, 7]]))


def test_a_memory_that_never_fills_needs_no_importance_and_keeps_everything():
    one, memory, stream = run(arm(hle.pl, M=96))
    two, _, _ = run(arm(hle.clib, M=96))
    assert memory.image == stream.image.tolist() and set(memory.gain) == {0.0}
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


def test_methods_differ_where_they_should():
    ways = [
        run(arm(rule, entry))[0].head.weight.detach()
        for rule, entry in ((hle.clib, "fms"), (hle.clib, "none"), (hle.pl, "fms"))
    ]
    assert not torch.equal(ways[0], ways[1]) and not torch.equal(ways[0], ways[2])
    again = run(arm(hle.pl, "fms"))[0].head.weight.detach()
    assert torch.equal(ways[2], again)


def test_the_oracle_learns_both_levels():
    model, (x, fine) = net(), images(24)
    before = model.head.weight.detach().clone()
    hle.offline(model, x, fine, PARENT, LEVEL, 0.01, 0.0, 8, 5, rng())
    assert ((model.head.weight - before).abs().sum(1) > 0).all()


# --- the full budget -----------------------------------------------------------------------------

PAPER = {  # each value with its source in Hyun1A/HLE or the paper
    "memory": (2_000, "CIFAR-100, scripts"),
    "batch": (16, "CIFAR-100, scripts"),
    "per_sample": (3.0, "CIFAR-100, online_iter"),
    "lr": (3e-4, "scripts, Adam"),
    "period": (5, "imp_update_period"),
    "net": ("resnet34", "CIFAR-100, scripts"),
    "ramp": (1.0, "single depth: N / C"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("hle"), PAPER)


# --- the exercises -------------------------------------------------------------------------------


def opened(c, first, total, *, everyone=False, then=False, absolute=False, last=False):
    for n in range(first[c] + 1, total + 1):
        met = sum(f < n for f in first.values())
        met = len(first) if everyone else met
        met = sum(f <= first[c] for f in first.values()) if then else met
        start = 0 if absolute else first[c]
        if n - start >= total / met:
            return n
    return total if last else None


def quota(memory, c, n, u, guesses, level_of, *, count=True, way=min, inner=True, place=False):
    counts = [0, 0]
    for k in memory.ids + ([c] if count else []):
        counts[level_of[k]] += 1
    level = counts.index(max(counts))
    mine = [j for j, k in enumerate(memory.ids) if level_of[k] == level]
    if inner:
        size = {
            k: sum(memory.ids[j] == k for j in mine) + (k == c)
            for k in {memory.ids[j] for j in mine}
        }
        top = max(sorted(size), key=size.get)
        mine = [j for j in mine if memory.ids[j] == top]
    slot = way(mine, key=lambda j: memory.gain[j])
    return mine.index(slot) if place else slot


def turned(stream, *, flip=False, starts=True, image=True, inplace=False, order=False):
    cut, n = stream.starts[1], len(stream.ids)
    new = [s - cut for s in stream.starts[1:]] + [n - cut]
    if inplace:
        stream.starts = new
    if flip:
        return hle.Stream(stream.image.flip(0), stream.ids.flip(0), new)
    i = torch.cat([torch.arange(cut, n), torch.arange(cut)])
    i = i[:-1] if order else i
    return hle.Stream(
        stream.image[i] if image else stream.image, stream.ids[i], new if starts else stream.starts
    )


RIGHT = {"check_fully_open": opened, "check_by_level": quota, "check_fine_first": turned}
WRONG = {
    "check_fully_open": [
        (lambda *a: opened(*a, everyone=True), "not those of the whole stream"),
        (lambda *a: opened(*a, then=True), "not what it was at n_c"),
        (lambda *a: opened(*a, absolute=True), "n - n_c"),
        (lambda *a: opened(*a, last=True), "return None"),
    ],
    "check_by_level": [
        (lambda *a: quota(*a, count=False), "count the incoming"),
        (lambda *a: quota(*a, way=max), "not the most important"),
        (lambda *a: quota(*a, inner=False), "take its largest class"),
        (lambda *a: quota(*a, place=True), "the slot in the memory"),
        (lambda *a: hle.clib(*a), "a coarse one leaves"),
    ],
    "check_fine_first": [
        (lambda s: turned(s, flip=True), "do not flip"),
        (lambda s: turned(s, starts=False), "begin elsewhere"),
        (lambda s: turned(s, image=False), "stay with its image"),
        (lambda s: turned(s, inplace=True), "build a new Stream"),
        (lambda s: turned(s, order=True), "nothing may be lost"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("hle", WRONG, name, k)


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    checks("hle")[name](RIGHT[name], strict=True)


@pytest.mark.realdata
def test_runs_as_it_is_on_real_data(tmp_path):
    assert_runs("hle", "mnist", tmp_path)
