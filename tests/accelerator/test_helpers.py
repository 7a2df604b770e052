"""The package's own functions on the device: the CPU's result to the last digit, and it stays there.

Each case is a function of a device. It is called twice, with the CPU and with the simulated device, and
all tensors in what it returns are compared.
"""

from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import nn

from lefcourse.science import (
    augment,
    data,
    detection,
    evaluate,
    labels,
    miniclip,
    nets,
    segmentation,
    training,
)
from lefcourse.worlds import graphs, lidar, retina, shapes, volumes

CASES = {}


def case(name: str):
    """Register a function of a device, under the name of what it tests."""

    def register(function):
        CASES[name] = function
        return function

    return register


def gen(device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def rand(device, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=gen("cpu", seed)).to(device)


def randint(device, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(high, shape, generator=gen("cpu", seed)).to(device)


def tensors(value) -> list[torch.Tensor]:
    """Return all tensors in a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors(getattr(value, field.name))]
    return []


def others(value):
    """Return what else there is in a result: numbers, texts, and tensors' places left blank."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, dict):
        return {key: others(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [others(item) for item in value]
    if is_dataclass(value):
        return [others(getattr(value, field.name)) for field in fields(value)]
    return value


def assert_same(there, here, device_type: str) -> None:
    pairs = list(zip(tensors(there), tensors(here), strict=True))
    assert {t.device.type for t, _ in pairs} <= {device_type}
    for one, other in pairs:
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one.detach().cpu(), other.detach(), rtol=0, atol=0, equal_nan=True
        )
    assert str(others(there)) == str(others(here))


# What says in its documentation that its result is on the CPU.
ON_THE_CPU = {"evaluate.confusion", "segmentation.hausdorff95"}


# --- augment -------------------------------------------------------------------------------------

CHANGES = {
    "shift": lambda x, g: augment.shift(x, 2, generator=g),
    "crop_pad": lambda x, g: augment.crop_pad(x, 2, generator=g),
    "flip": lambda x, g: augment.flip(x, generator=g),
    "cutout": lambda x, g: augment.cutout(x, 5, generator=g),
    "affine": lambda x, g: augment.affine(x, 30, (0.8, 1.2), 0.2, generator=g),
    "colour_jitter": lambda x, g: augment.colour_jitter(x, 0.4, 0.4, 0.4, generator=g),
    "randaugment": lambda x, g: augment.randaugment(x, 3, generator=g),
    "mixup": lambda x, g: augment.mixup(x, x[:, 0, 0, :4], 0.3, generator=g),
    "beta": lambda x, g: augment.beta(0.3, 9, x.device, g),
    "cutmix_box": lambda x, g: augment.cutmix_box(x, x[:, 0, 0, 0], generator=g),
}
for name, change in CHANGES.items():
    CASES[f"augment.{name}"] = lambda d, change=change: change(rand(d, 40, 3, 12, 12), gen(d))
for name, operation in augment.OPERATIONS.items():
    CASES[f"augment.OPERATIONS[{name}]"] = lambda d, operation=operation: operation(
        rand(d, 6, 3, 12, 12), 2 * rand(d, 6, seed=1) - 1
    )


@case("augment.given draws")
def _(d):
    x, u = rand(d, 6, 3, 12, 12), rand(d, 6, 4, seed=1)
    matrix = augment.affine_matrix(*u.T)
    return augment.affine(x, 20, draws=u), augment.warp(x, matrix), augment.flip(x, draws=u[:, :1])


# --- labels, training, evaluate, nets, data ------------------------------------------------------


@case("labels")
def _(d):
    y, mapping = randint(d, 5, 60), labels.pair_mapping("digits", 10)
    return (
        labels.flip_symmetric(y, 0.4, 5, gen(d)),
        labels.flip_symmetric(y, 0.4, 5, gen(d), exclude_true=True),
        labels.flip_pairs(y, 0.3, mapping, gen(d)),
        labels.random_ranks(y, gen(d)),
        data.few_labels(y, 3, gen(d)),
    )


@case("training.batches")
def _(d):
    return list(training.batches(10, 4, gen(d))), list(training.batches(3, 4, gen(d), steps=3))


def problem(d, n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    return rand(d, n, 1, 8, 8), randint(d, 3, n)


TRAINED = {
    "sgd": dict(epochs=2, schedule="cosine", weight_decay=1e-3),
    "adam": dict(steps=3, optimizer="adam", lr=1e-3, augment=lambda x, g: augment.shift(x, 1, generator=g)),
}  # fmt: skip
NETS = {
    "mlp": lambda: nets.mlp((1, 8, 8), 3, (16,)),
    "convnet": lambda: nets.convnet(1, 3, 8, size=8),
    "convnet, group": lambda: nets.convnet(1, 3, 8, size=8, norm="group"),
    "resnet18": lambda: nets.resnet("resnet18", 1, 3),
}


def trained(d, make, settings) -> tuple:
    torch.manual_seed(0)
    x, y = problem(d)
    net = make().to(d)
    history = training.fit(net, x, y, batch=8, generator=gen(d), **settings)
    measured = evaluate.predict(net, x, 16), evaluate.accuracy(net, x, y)
    return history, measured, net.features(x), net.state_dict()


for name, make in NETS.items():
    for kind, settings in TRAINED.items():
        if name != "resnet18" or kind == "sgd":
            CASES[f"training.fit({name}, {kind})"] = lambda d, m=make, s=settings: trained(
                d, m, {**s, "steps": 1, "epochs": None} if m is NETS["resnet18"] else s
            )


@case("nets.ema_update")
def _(d):
    torch.manual_seed(0)
    student, teacher = (nets.convnet(1, 3, 8, size=8).to(d) for _ in range(2))
    student(rand(d, 4, 1, 8, 8))
    nets.ema_update(teacher, student, 0.9)
    return teacher.state_dict(), nets.count_parameters(teacher)


@case("nets.build and data.load")
def _(d):
    digits = data.load("digits", device=d, train=20, val=5, test=5, size=10)
    drawn = data.load("shapes", device=d, train=4, val=2, test=2)
    torch.manual_seed(0)
    net = nets.build("mlp", digits)
    return digits, drawn, net(digits.x_test), digits.describe()


@case("evaluate.numbers")
def _(d):
    logits, y = rand(d, 30, 4), randint(d, 4, 30)
    hot = rand(d, 30, 4, seed=2) > 0.5
    return (
        evaluate.macro_f1(logits, y),
        evaluate.mean_average_precision(logits, hot),
        evaluate.calibration_error(logits, y),
    )


@case("evaluate.confusion")
def _(d):
    return evaluate.confusion(rand(d, 30, 4), randint(d, 4, 30))


# --- segmentation --------------------------------------------------------------------------------


@case("segmentation.UNet")
def _(d):
    results = []
    for dims, norm in ((2, "batch"), (2, "group"), (3, "batch")):
        torch.manual_seed(0)
        net = segmentation.UNet(1, 3, (4, 8), dims, norm).to(d)
        x = rand(d, 2, 1, *(dims * [8]))
        out = net(x)
        out.square().mean().backward()
        results += [out, [p.grad for p in net.parameters()], segmentation.predict(net, x)]
    return results


@case("segmentation.dice")
def _(d):
    return segmentation.dice(randint(d, 3, 4, 8, 8), randint(d, 3, 4, 8, 8, seed=1), 3)


@case("segmentation.hausdorff95")
def _(d):
    return segmentation.hausdorff95(randint(d, 3, 2, 8, 8), randint(d, 3, 2, 8, 8, seed=1), 3)


# --- detection -----------------------------------------------------------------------------------


def objects(d) -> tuple[torch.Tensor, torch.Tensor]:
    corner, side = rand(d, 3, 4, 2) * 30, rand(d, 3, 4, 2, seed=1) * 16 + 6
    return torch.cat([corner, corner + side], -1), randint(d, 3, 3, 4) - 1


@case("detection.boxes")
def _(d):
    boxes, _ = objects(d)
    mirrored = torch.tensor([True, False, True], device=d)
    M = detection.affine(
        (48, 48), mirrored=mirrored, shift=rand(d, 3, 2), scale=1.1, angle=rand(d, 3)
    )
    deltas = detection.encode(boxes, boxes + 1)
    moved = detection.transport(boxes, M, (48, 48))
    return (
        deltas,
        detection.decode(deltas, boxes),
        M,
        moved,
        detection.warp(rand(d, 3, 3, 48, 48), M),
    )


@case("detection.assignment")
def _(d):
    boxes, where = objects(d)
    overlap, slot, iou = detection.match(boxes + 2, boxes, where)
    kind = torch.where(overlap > 0.5, 1, 0)
    sampled = detection.sample(kind, 3, 1, generator=gen(d))
    kept = detection.suppress(boxes, rand(d, 3, 4), where.clamp(0), 0.3)
    return overlap, slot, iou, sampled, detection.take(boxes, slot), kept


def detector(d) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = detection.Detector(2, (48, 48), widths=(4, 8, 8), hidden=16, proposals=8).to(d)
    return net, net.features(rand(d, 3, 3, 48, 48))


@case("detection.Detector")
def _(d):
    (net, features), (boxes, where) = detector(d), objects(d)
    scores, deltas = net.rpn(features)
    loss = detection.rpn_loss(net, scores, deltas, boxes, where, size=8, generator=gen(d))
    logits, shifts = net.head(features, net.propose(scores, deltas))
    (loss.sum() + logits.sum() + shifts.sum()).backward()
    found = net.detect(features, threshold=0.0, slots=4)
    pooled = detection.pool(features, boxes, 2)
    grads = [p.grad for p in net.parameters()]
    everything = detection.detect_all(net.eval(), rand(d, 3, 3, 48, 48), 2, threshold=0.0, slots=4)
    return loss, logits, grads, found, found.above(0.3), pooled, everything


@case("detection.average_precision")
def _(d):
    boxes, where = objects(d)
    found = detection.Detections(boxes + 1, where, rand(d, 3, 4))
    return detection.average_precision(found, boxes, where)


# --- miniclip ------------------------------------------------------------------------------------


@case("miniclip.pictures")
def _(d):
    drawn = miniclip.pairs(6, generator=gen(d))
    few = miniclip.pictures(3, "sketch", only=[("red", "star")], generator=gen(d))
    return drawn, few, few.images, miniclip.ends(drawn.tokens)


@case("miniclip.captions of pictures")
def _(d):
    return miniclip.captions(miniclip.pictures(4, generator=gen(d)).labels, generator=gen("cpu"))


@case("miniclip.MiniCLIP")
def _(d):
    model = miniclip.load(device=d)
    x, texts = rand(d, 3, 3, 32, 32), ["a red star", "a sketch of a circle"]
    embedded, end = model.token_embeddings(texts)
    prompts = rand(d, 2, 96, seed=1).requires_grad_()
    image = model.encode_image(x, prompts=[prompts, prompts], patches=True)
    loss = (image[0] @ model.encode_text(texts).T * model.logit_scale.exp()).square().mean()
    loss.backward()
    plain = model.encode_image(x), model.encode_text_embeddings(embedded, end)
    return plain, image, embedded, end, prompts.grad, [p.grad for p in model.parameters()]


# --- worlds --------------------------------------------------------------------------------------

LABELS = (
    "image", "classes", "superclasses", "attributes", "captions", "segments", "masks", "boxes",
    "semantic", "panoptic", "alpha", "depth", "keypoints",
)  # fmt: skip


@case("worlds.shapes")
def _(d):
    mixed = dict(flat=0.25, real=0.25, sketch=0.25, noisy=0.25)
    world = shapes.make(8, objects=(1, 3), style=mixed, device=d, exclude=[("red", "star")])
    some = world.scenes[[1, 3]]
    return (
        world.scenes, [getattr(world, name) for name in LABELS], shapes.render(some),
        shapes.coverage(some), shapes.visible(some), shapes.classification(2, device=d),
    )  # fmt: skip


@case("worlds.volumes")
def _(d):
    scans = volumes.make(2, size=24, depth=4, device=d)
    return scans, scans.slices(2)


@case("worlds.retina")
def _(d):
    eyes, g = retina.make(3, device=d), torch.Generator(d).manual_seed(1)
    some = retina.sample(2, labels=torch.tensor([3, 1]), generator=g)
    return (
        eyes, eyes[1:], eyes.mirrored(), some, eyes.vessel_map(16),
        eyes.fundus(16, generator=g), eyes.oct(12, generator=g),
    )  # fmt: skip


@case("worlds.lidar")
def _(d):
    clouds, g = lidar.make(5, device=d), torch.Generator(d).manual_seed(1)
    far = dict(distance=(20.0, 30.0), labels=torch.tensor([3, 5]))
    return clouds, clouds[1:], lidar.sample(2, points=16, generator=g, **far)


@case("worlds.graphs")
def _(d):
    graph = graphs.load("sbm", device=d, nodes=120, val=10)
    club, split = graphs.load("karate", device=d), graphs.resplit(graph, 3, 4, 10)
    x, weights = graph.x, rand(d, graph.edge_index.shape[1])
    return (
        graph, club, split, graph.degree, graph.homophily, graph.describe(),
        graph.matrix() @ x, graph.matrix(weights, dense=True) @ x,
    )  # fmt: skip


@case("worlds.graphs, sparse")
def _(d):
    graph = graphs.load("sbm", device=d, nodes=120, val=10)
    x, weights = graph.x.clone().requires_grad_(), rand(d, graph.edge_index.shape[1])
    out = graph.matrix(weights, dense=False) @ x
    out.square().sum().backward()
    return out, x.grad


# --- the test ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_same_on_the_device(accelerator, name):
    torch.manual_seed(0)
    here = CASES[name](torch.device("cpu"))
    torch.manual_seed(0)
    there = CASES[name](accelerator)
    assert_same(there, here, "cpu" if name in ON_THE_CPU else accelerator.type)
