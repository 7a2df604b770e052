"""The mechanism of Soft Teacher, against closed forms and slow definitions. Sources: paper, section 3; authors' code."""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.errors import DataError
from lefcourse.running import runner
from lefcourse.science import detection
from lefcourse.science.worlds import shapes

st = lc.methods("soft-teacher")
C, SIZE = 3, (48, 48)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes():
    w = shapes.make(12, objects=(1, 3), size=48, shapes=("ring", "cross", "heart"), seed=1)
    names = [shapes.SHAPES.index(n) for n in ("ring", "cross", "heart")]
    y = torch.full_like(w.scenes.shape, -1)
    for k, name in enumerate(names):
        y[(w.scenes.shape == name) & w.scenes.valid] = k
    pad = 6 - y.shape[1]
    return w.image, F.pad(w.boxes, (0, 0, 0, pad)), F.pad(y, (0, pad), value=-1)


@pytest.fixture(scope="module")
def trained(scenes):
    """A detector that has seen a few steps, so that it finds something."""
    torch.manual_seed(0)
    model = detection.Detector(C, SIZE, anchors=(9, 13, 18))
    st.train_supervised(model, *scenes, steps=60, batch=12, lr=3e-3, generator=generator())
    return model.eval()


def samples(seed=0):
    z = torch.randn(2, 8, C + 1, generator=generator(seed), requires_grad=True)
    y = torch.randint(C + 1, (2, 8), generator=generator(seed + 1))
    y[0, 0], y[1, 3] = C, C
    return z, y, torch.rand(2, 8, generator=generator(seed + 2))


def train(scenes, student, teacher, **change):
    x, boxes, y = scenes
    own = dict(steps=4, batch=(2, 3), lr=1e-3, tau=0.5, tau_u=0.05, generator=generator(5)) | change
    st.train_soft_teacher(student, teacher, x[:4], boxes[:4], y[:4], x[4:], **own)


# --- the classification loss


def test_with_all_weights_one_it_is_the_mean_cross_entropy():
    z, y, _ = samples()
    w = st.soft_weights(y, torch.ones(2, 8), C)
    assert torch.allclose(
        st.classification_loss(z, y, w), F.cross_entropy(z.flatten(0, 1), y.flatten())
    )


def test_the_loss_is_its_definition():
    z, y, r = samples(3)
    total = weight = 0.0
    for b in range(2):
        for i in range(8):
            w = r[b, i] if y[b, i] == C else 1.0
            total = total - w * torch.log_softmax(z[b, i], 0)[y[b, i]]
            weight = weight + w
    assert torch.allclose(st.classification_loss(z, y, st.soft_weights(y, r, C)), total / weight)


def test_where_the_teacher_sees_no_background_the_student_is_not_taught_it():
    z, y, r = samples()
    r[0, 0] = 0.0
    (g,) = torch.autograd.grad(st.classification_loss(z, y, st.soft_weights(y, r, C)), z)
    assert (g[0, 0] == 0).all() and (g[1, 3] != 0).any()


def test_foreground_counts_fully_whatever_the_teacher_says():
    _, y, r = samples()
    w = st.soft_weights(y, r, C)
    assert (w[y < C] == 1).all() and torch.equal(w[y == C], r[y == C])


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_common_factor_of_the_weights_does_not_matter(factor):
    z, y, r = samples()
    w = st.soft_weights(y, r, C)
    assert w.sum() * factor >= 1
    assert torch.allclose(st.classification_loss(z, y, factor * w), st.classification_loss(z, y, w))


def test_without_weight_the_loss_is_zero_and_small_weights_stay_small():
    z, y, _ = samples()
    assert st.classification_loss(z, y, torch.zeros(2, 8)) == 0
    w = torch.zeros(2, 8)
    w[0, 0] = 0.1
    ce = F.cross_entropy(z[0, :1], y[0, :1])
    assert torch.allclose(st.classification_loss(z, y, w), 0.1 * ce), (
        "the normaliser is at least one"
    )


def test_no_gradient_reaches_the_teachers_score():
    _, y, _ = samples()
    r = torch.rand(2, 8, requires_grad=True)
    assert not st.soft_weights(y, r, C).requires_grad


# --- whom the teacher is asked about


class Spy:
    """A teacher whose box head writes down the boxes; its background logit is their left edge."""

    size = SIZE

    def head(self, f, boxes):
        self.boxes = boxes
        z = torch.zeros(*boxes.shape[:2], C + 1)
        z[..., -1] = boxes[..., 0] / 10
        return z, torch.zeros_like(boxes)


def test_the_score_is_the_background_probability_of_the_aligned_box():
    spy = Spy()
    T_t = detection.affine(SIZE, mirrored=torch.tensor([True]))
    T_s = detection.affine(SIZE, mirrored=torch.tensor([False]), shift=torch.tensor([[5.0, -3.0]]))
    raw = torch.tensor([[[10.0, 12, 20, 24], [30, 6, 40, 14]]])
    r = st.background_score(spy, None, detection.transport(raw, T_s), T_t @ T_s.inverse())
    assert torch.allclose(spy.boxes, detection.transport(raw, T_t), atol=1e-4)
    e = (spy.boxes[..., 0] / 10).exp()
    assert torch.allclose(r, e / (e + C)), "a probability over all classes, and that of the last"


def test_in_the_loop_the_teacher_scores_the_students_own_proposals(scenes, trained):
    """Recompute r from the raw image: weak view by its matrix, proposals back by the inverse of the strong one."""
    student, teacher = copy.deepcopy(trained), copy.deepcopy(trained)
    seen = []

    def watch(t, j, T_t, T_s, found, u, o, r):
        f_t = teacher.features(detection.warp(scenes[0][4:][j], T_t))
        for row in range(3):
            box = detection.transport(o.proposals[2 + row][None], (T_t @ T_s.inverse())[row][None])
            z, _ = teacher.head(f_t[row : row + 1], detection.clip(box, SIZE))
            assert torch.allclose(r[row], z.softmax(-1)[0, :, -1], atol=1e-4)
        assert not r.requires_grad
        seen.append(t)

    train(scenes, student, teacher, watch=watch)
    assert seen == [0, 1, 2, 3]


def test_pseudo_boxes_arrive_where_the_object_is_on_the_strong_view(scenes, trained, monkeypatch):
    """A teacher that knows the truth must hand the student the truth of the strong view, slot by slot."""
    x, boxes, y = scenes
    truth, handed = {}, []

    def knows(teacher, x_t, first_cut=0.5, slots=6, generator=None, with_u=True, **_):
        f_t = teacher.features(x_t)
        now = truth["weak"]
        found = detection.Detections(
            now, truth["labels"], torch.where(truth["labels"] >= 0, 0.95, 0.0)
        )
        return f_t, found, torch.zeros_like(found.scores)

    original_view, original_pass = st.weak_view, st.student_pass

    def weak(images, generator=None, draws=None):
        rows = [int((x[4:] == image).flatten(1).all(1).nonzero()) for image in images]
        x_t, T_t = original_view(images, generator, draws)
        truth.update(rows=rows, weak=detection.transport(boxes[4:][rows], T_t), labels=y[4:][rows])
        return x_t, T_t

    def spy(model, x_s, moved, y_cls, y_reg=None, generator=None):
        handed.append((moved, y_cls, y_reg, list(truth["rows"])))
        return original_pass(model, x_s, moved, y_cls, y_reg, generator)

    views = []
    original_strong = st.strong_view

    def strong(images, generator=None, draws=None):
        x_s, T_s = original_strong(images, generator, draws)
        views.append(T_s)
        return x_s, T_s

    monkeypatch.setattr(st, "teacher_pass", knows)
    monkeypatch.setattr(st, "weak_view", weak)
    monkeypatch.setattr(st, "student_pass", spy)
    monkeypatch.setattr(st, "strong_view", strong)
    train(scenes, copy.deepcopy(trained), copy.deepcopy(trained))
    for (moved, y_cls, y_reg, rows), T_s in zip(handed, views, strict=True):
        there = detection.transport(boxes[4:][rows], T_s[2:], SIZE)
        assert torch.allclose(moved[2:], there, atol=1e-3)
        assert torch.equal(y_cls[2:], st.visible(there, y[4:][rows])) and torch.equal(y_cls, y_reg)


# --- jitter


def test_jitter_is_noise_in_widths_and_heights():
    b = torch.tensor([[[10.0, 20, 30, 24]]])  # 20 wide, 4 high
    noise = torch.zeros(1, 1, 2, 4)
    noise[0, 0, 1] = torch.tensor([1.0, 1, -1, 2])
    moved = st.jitter(b, 2, 0.06, noise=noise)
    assert torch.allclose(moved[0, 0, 0], b[0, 0])
    assert torch.allclose(moved[0, 0, 1], torch.tensor([11.2, 20.24, 28.8, 24.48]))


def boxes_to_jitter():
    return torch.tensor([[[10.0, 20, 30, 28], [5, 5, 17, 40]], [[0, 0, 8, 8], [20, 2, 44, 12]]])


def test_a_head_that_always_answers_the_same_is_certain():
    fixed = torch.tensor([3.0, 4, 20, 30])
    u = st.uncertainty(
        lambda boxes: fixed.expand_as(boxes), boxes_to_jitter(), generator=generator()
    )
    assert u.shape == (2, 2) and (u < 1e-6).all()


def test_a_head_that_corrects_nothing_leaves_the_jitter():
    u = st.uncertainty(lambda boxes: boxes, boxes_to_jitter(), N=4000, generator=generator())
    assert torch.allclose(u, torch.full((2, 2), 0.06), atol=0.002)


def test_u_is_its_definition_and_each_image_gets_its_own_boxes():
    b, noise = boxes_to_jitter(), torch.randn(2, 2, 5, 4, generator=generator(3))

    def head(boxes):  # shrinks the second image's boxes towards a corner
        return boxes * torch.tensor([1.0, 0.5])[:, None, None]

    u = st.uncertainty(head, b, N=5, noise=noise)
    for i in range(2):
        for k in range(2):
            w, h = b[i, k, 2] - b[i, k, 0], b[i, k, 3] - b[i, k, 1]
            copies = [b[i, k] + 0.06 * torch.stack([w, h, w, h]) * noise[i, k, n] for n in range(5)]
            refined = torch.stack(copies) * (1.0, 0.5)[i]
            mean = refined.mean(0)
            size = torch.stack([mean[2] - mean[0], mean[3] - mean[1]] * 2).clamp_min(1)
            assert torch.allclose(u[i, k], (refined.std(0) / size).mean(), atol=1e-6)


def test_u_does_not_depend_on_place_and_size():
    b, noise = boxes_to_jitter(), torch.randn(2, 2, 10, 4, generator=generator(4))
    u = st.uncertainty(lambda boxes: boxes, b, noise=noise)
    assert torch.allclose(st.uncertainty(lambda boxes: boxes, b + 7, noise=noise), u, atol=1e-5)
    assert torch.allclose(st.uncertainty(lambda boxes: boxes, b * 3, noise=noise), u, atol=1e-5)


def test_boxes_smaller_than_a_pixel_do_not_explode():
    tiny = torch.full((1, 1, 4), 5.0)
    assert st.uncertainty(lambda boxes: boxes, tiny, generator=generator()).isfinite().all()


# --- two sets of pseudo-boxes


def found():
    scores = torch.tensor([[0.95, 0.92, 0.6, 0.0]])
    return detection.Detections(torch.rand(1, 4, 4), torch.tensor([[0, 1, 2, -1]]), scores)


def test_the_two_sets_are_cut_by_different_measures():
    y_cls, y_reg = st.two_sets(found(), torch.tensor([[0.05, 0.01, 0.01, 0.0]]), 0.9, 0.02)
    assert y_cls.tolist() == [[0, 1, -1, -1]], "class: by the score"
    assert y_reg.tolist() == [[-1, 1, 2, -1]], (
        "box: by u, also below the class threshold; never an empty slot"
    )


def test_without_jitter_there_is_one_set():
    y_cls, y_reg = st.two_sets(found(), None, 0.5, 0.02)
    assert y_cls.tolist() == [[0, 1, 2, -1]] and y_reg is None


def test_each_set_feeds_its_own_loss(scenes, trained):
    x, boxes, y = scenes
    model, none = copy.deepcopy(trained), torch.full_like(y, -1)
    only_class = st.student_pass(model, x, boxes, y, none, generator())
    assert (only_class.box == 0).all() and (only_class.y < C).any()
    only_place = st.student_pass(model, x, boxes, none, y, generator())
    assert (only_place.box > 0).any() and (only_place.y == C).all()
    last = model.reg.weight
    (g,) = torch.autograd.grad(
        st.detection_loss(only_class, only_class.used.float()), last, allow_unused=True
    )
    assert g is None or (g == 0).all()


def test_the_same_set_twice_trains_the_boxes_as_one_set_does(scenes, trained):
    """Sampling differs, the loss must not: with all foreground taken, both ways sum the same errors."""
    x, boxes, y = (v[:1] for v in scenes)
    model = copy.deepcopy(trained)
    one = [st.student_pass(model, x, boxes, y, None, generator(s)).box.item() for s in range(30)]
    two = [st.student_pass(model, x, boxes, y, y, generator(s)).box.item() for s in range(30)]
    assert sum(one) / 30 == pytest.approx(sum(two) / 30, rel=0.15)


def test_proposals_are_assigned_as_usual():
    boxes = torch.tensor([[[4.0, 4, 20, 20], [30, 30, 44, 44], [0, 0, 40, 40]]])
    y = torch.tensor([[2, 0, -1]])
    proposals = torch.tensor(
        [[[4.0, 4, 20, 18], [30, 30, 40, 36], [0, 0, 40, 39], [29, 29, 44, 45]]]
    )
    drawn, label, goal, used = st.sample_proposals(
        proposals, boxes, y, C, 7, 7, generator=generator()
    )
    got = {tuple(b): (k, tuple(g)) for b, k, g, u in zip(
        drawn[0].tolist(), label[0].tolist(), goal[0].tolist(), used[0].tolist(), strict=True) if u}  # fmt: skip
    assert got[(4, 4, 20, 18)] == (2, (4, 4, 20, 20)) and got[(29, 29, 44, 45)] == (
        0,
        (30, 30, 44, 44),
    )
    assert got[(30, 30, 40, 36)][0] == C, "less than half of an object is background"
    assert got[(0, 0, 40, 39)][0] == C, "an empty slot is no object"
    assert got[(4, 4, 20, 20)][0] == 2 and (0, 0, 40, 40) not in got, (
        "objects are candidates, empty slots are not"
    )


# --- views, teacher, loop


def test_views_come_with_their_matrices(scenes, monkeypatch):
    x = scenes[0][:4]
    x_t, T_t = st.weak_view(x, draws=torch.tensor([0.1, 0.9, 0.4, 0.6]))
    assert torch.equal(x_t[1], x[1]) and torch.equal(x_t[0], x[0].flip(-1))
    assert torch.allclose(detection.warp(x, T_t), x_t, atol=1e-4)
    for name in ("colour_jitter", "cutout"):
        monkeypatch.setattr(lc.augment, name, lambda x, *_, **__: x)
    x_s, T_s = st.strong_view(x, generator())
    assert torch.allclose(detection.warp(x, T_s), x_s, atol=1e-4)
    still, T = st.strong_view(x, draws=torch.tensor([[0.9, 0.5, 0.5, 0.5]] * 4))
    assert torch.allclose(still, x, atol=1e-4) and torch.allclose(
        T, torch.eye(3).expand(4, 3, 3), atol=1e-5
    )


def test_the_teacher_copies_the_student_first_and_then_averages(scenes, trained):
    torch.manual_seed(9)
    student, teacher = copy.deepcopy(trained), detection.Detector(C, SIZE, anchors=(9, 13, 18))
    weight = student.cls.weight.detach().clone()
    expected, after = None, None

    def watch(t, *_):
        nonlocal expected, after
        momentum = min(0.7, 1 - 1 / (t + 1))
        before = weight if t == 0 else after
        expected = before if t == 0 else momentum * expected + (1 - momentum) * before
        assert torch.allclose(teacher.cls.weight, expected, atol=1e-6)
        after = student.cls.weight.detach().clone()

    train(scenes, student, teacher, steps=6, m=0.7, watch=watch)
    assert not torch.equal(after, weight)
    assert all(p.grad is None for p in teacher.parameters())


def test_soft_weights_of_one_are_hard_pseudo_boxes_step_for_step(scenes, trained, monkeypatch):
    def run(**change):
        student = copy.deepcopy(trained)
        train(scenes, student, copy.deepcopy(trained), select=False, **change)
        return student.cls.weight

    hard, soft = run(soft=False), run(soft=True)
    monkeypatch.setattr(st, "background_score", lambda teacher, f, b, M: torch.ones(b.shape[:2]))
    assert torch.equal(run(soft=True), hard)
    assert not torch.equal(soft, hard)


def test_labels_count_fully_and_only_unlabeled_background_is_weighted(scenes, trained, monkeypatch):
    original, calls = st.detection_loss, []

    def spy(o, w, part=slice(None), **kw):
        calls.append((part, w.clone(), original(o, w, part, **kw)))
        return calls[-1][2]

    def watch(t, j, T_t, T_s, found, u, o, r):
        (known, w, _), (unknown, same, _) = calls[-2:]
        assert (known, unknown) == (slice(0, 2), slice(2, None)) and torch.equal(w, same)
        assert torch.equal(w[:2], o.used[:2].float()), "no soft weights for labeled images"
        assert torch.equal(w[2:], o.used[2:] * torch.where(o.y[2:] == C, r, 1.0))

    monkeypatch.setattr(st, "detection_loss", spy)
    train(scenes, copy.deepcopy(trained), copy.deepcopy(trained), watch=watch)
    assert len(calls) == 8


def test_all_losses_belong_to_their_images_alone(scenes, trained):
    o = st.student_pass(copy.deepcopy(trained), *scenes, generator=generator())
    w = torch.rand(12, o.y.shape[1], generator=generator(1)) * o.used
    part = slice(3, 7)
    ce = F.cross_entropy(o.z[part].flatten(0, 1), o.y[part].flatten(), reduction="none")
    wanted = (
        o.rpn[part].mean()
        + (w[part].flatten() * ce).sum() / w[part].sum()
        + 2.5 * o.box[part].mean()
    )
    assert torch.allclose(st.detection_loss(o, w, part, box_weight=2.5), wanted)


def test_an_empty_handed_teacher_does_no_harm(scenes):
    torch.manual_seed(0)
    fresh = detection.Detector(C, SIZE, anchors=(9, 13, 18))
    student = copy.deepcopy(fresh)
    train(scenes, student, copy.deepcopy(fresh), tau=0.999, tau_u=0.0)
    assert all(p.isfinite().all() for p in student.parameters())


def test_what_the_teacher_forgets_is_forgotten_before_the_sets_are_made(scenes, trained):
    """With everything forgotten, no unlabeled sample is foreground, and nothing else changes place."""
    seen = []

    def look(t, j, T_t, T_s, found, u, o, r):
        seen.append((found.labels.max().item(), o.y[2:].min().item()))

    nothing = lambda found: found.where(torch.zeros_like(found.scores, dtype=torch.bool))  # noqa: E731
    student, teacher = copy.deepcopy(trained), copy.deepcopy(trained)
    train(scenes, student, teacher, first_cut=0.05, tau=0.05, forget=nothing, watch=look)
    assert seen and all(found == -1 and y == C for found, y in seen)


# --- the paper's setting, and the exercises ------------------------------------------------------

CONFIG = "configs/soft_teacher/base.py"
# What `--budget full` must be, and where it is said (files of the authors' repository).
PAPER = {
    "tau": (0.9, f"{CONFIG}, cls_pseudo_threshold"),
    "tau_hard": (0.9, f"{CONFIG}, cls_pseudo_threshold"),
    "tau_u": (0.02, f"{CONFIG}, reg_pseudo_threshold"),
    "first_cut": (0.5, f"{CONFIG}, pseudo_label_initial_score_thr"),
    "copies": (10, f"{CONFIG}, jitter_times"),
    "sigma": (0.06, f"{CONFIG}, jitter_scale"),
    "w_u": (4.0, "configs/soft_teacher/soft_teacher_faster_rcnn_r50_caffe_fpn_coco_180k.py"),
    "m": (0.999, f"{CONFIG}, MeanTeacher"),
}


def test_the_full_budget_has_the_papers_setting():
    full = full_budget("soft-teacher")
    assert_papers(full, PAPER)
    assert full["batch_u"] == 4 * full["batch_l"]  # one labeled to four unlabeled images


def joint(z, y, r):
    return st.classification_loss(z[None], y[None], st.soft_weights(y, r, 2)[None])


def parts(z, y, r, foreground, background):
    ce, behind = F.cross_entropy(z, y, reduction="none"), y == 2
    return foreground(ce[~behind], r[~behind]) + background(ce[behind], r[behind])


def weighted(ce, r):
    return (ce * r).sum() / r.sum().clamp_min(1e-6)


def mean(ce, r):
    return ce.sum() / max(1, len(ce))


def paper_loss(z, y, r):
    return parts(z, y, r, mean, weighted)


def unsafe(z, y, r):
    return parts(z, y, r, lambda ce, r: ce.mean(), weighted)


def own_class(refined, labels):
    return refined[torch.arange(len(labels)), :, labels]


def spread_over(mine, size):
    return (mine.std(1) / size).mean(1)


def swapped(refined, labels):
    mine = own_class(refined, labels)
    return spread_over(mine, st.sides(mine.mean(1))[:, [1, 0, 3, 2]])


WRONG = {
    "check_paper_loss": [
        (joint, "joint normaliser"),
        (lambda z, y, r: parts(z, y, r, mean, lambda ce, r: (ce * r).mean()), "by the sum of its"),
        (lambda z, y, r: parts(z, y, r, weighted, weighted), "foreground carries no weight"),
        (unsafe, "divide by zero"),
        (lambda z, y, r: parts(z, y, r, mean, mean), "you say"),
    ],
    "check_way_back": [
        (lambda b, T_s, T_t, size: b, "not moved at all"),
        (
            lambda b, T_s, T_t, size: detection.transport(b, T_s @ T_t.inverse(), size),
            "teacher's way to the student",
        ),
        (lambda b, T_s, T_t, size: detection.transport(b, T_s.inverse(), size), "one more step"),
        (lambda b, T_s, T_t, size: detection.transport(b, T_t @ T_s.inverse()), "clip the box"),
        (
            lambda b, T_s, T_t, size: detection.transport(b, T_s.inverse() @ T_t, size),
            "should arrive at",
        ),
    ],
    "check_uncertainty": [
        (lambda refined, labels: own_class(refined, labels).std(1).mean(1), "divide by the size"),
        (swapped, "not the other way round"),
        (
            lambda refined, labels: spread_over(
                refined[:, :, 0], st.sides(refined[:, :, 0].mean(1))
            ),
            "own class only",
        ),
        (lambda refined, labels: own_class(refined, labels).std(1), "one number for each box"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("soft-teacher", WRONG, name, k)


@pytest.mark.realdata
def test_runs_as_it_is_on_blood_cells(tmp_path):
    if "LEFCOURSE_DATA" not in os.environ:
        pytest.skip("LEFCOURSE_DATA is not set: no folder of real data sets")
    try:
        detection.bccd((12, 16))
    except DataError as absent:
        pytest.skip(str(absent))
    chosen = {"source": "bccd", "pixels": 72, "labeled": 12}
    record = runner.execute(catalogue.get("soft-teacher"), chosen, tmp_path, budget="smoke")
    assert record["status"] == "done", record.get("error")
    assert record["parameters"]["source"] == "bccd"
