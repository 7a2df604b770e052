"""The simulated device: the CPU's results to the last digit, and CUDA's refusals."""

import copy
import json
import pickle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lefcourse import catalogue

from .device import installed
from .execute import CellError, execute

TWO_DEVICES = "Expected all tensors to be on the same device, but found at least two devices, sim:0"


def same(on_device: torch.Tensor, on_cpu: torch.Tensor) -> bool:
    """Is the first on the device, and equal to the second in values, type, shape and strides?"""
    there = on_device.detach().cpu()
    alike = there.stride() == on_cpu.stride() and there.dtype == on_cpu.dtype
    return on_device.device.type == "sim" and alike and torch.equal(there, on_cpu.detach())


# --- results -------------------------------------------------------------------------------------


def network() -> nn.Module:
    """Layers whose kernels torch chooses by the device."""
    torch.manual_seed(0)
    body = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]
    body += [
        nn.Conv2d(8, 8, 3, groups=2),
        nn.GroupNorm(2, 8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    ]
    head = [nn.Linear(32, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 5)]
    return nn.Sequential(*body, *head)


def train(device, optimizer, **settings) -> list[torch.Tensor]:
    """Train for three steps; return the losses, the weights, the buffers and the last gradients."""
    net = network().to(device).to(memory_format=torch.channels_last)
    opt = optimizer(net.parameters(), lr=0.05, **settings)
    g = torch.Generator(device=device).manual_seed(1)
    losses = []
    for _ in range(3):
        x = torch.randn(6, 3, 8, 8, generator=g, device=device)
        y = torch.randint(5, (6,), generator=g, device=device)
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        losses.append(loss)
    return [*losses, *net.state_dict().values(), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-3}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"foreach": True}),
    ],
)
def test_training_gives_the_cpu_s_numbers(accelerator, optimizer, settings):
    there, here = (train(d, optimizer, **settings) for d in (accelerator, torch.device("cpu")))
    assert all(same(a, b) for a, b in zip(there, here, strict=True))


@pytest.mark.parametrize("mask", ["none", "boolean", "causal"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_attention_gives_the_cpu_s_numbers(accelerator, mask, dropout):
    torch.manual_seed(0)
    first = torch.randn(3, 2, 2, 5, 4)
    keep = torch.rand(5, 5).fill_diagonal_(1) > 0.5 if mask == "boolean" else None

    def attend(device):
        torch.manual_seed(1)
        inputs = first.to(device, copy=True).requires_grad_()
        allowed = keep if keep is None else keep.to(device)
        out = F.scaled_dot_product_attention(*inputs, allowed, dropout, mask == "causal")
        out.square().sum().backward()
        return out, inputs.grad

    for there, here in zip(attend(accelerator), attend("cpu"), strict=True):
        assert same(there, here)


def test_transformer_layer_gives_the_cpu_s_numbers(accelerator):
    x, results = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), []
    for device in (accelerator, "cpu"):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).to(device)
        trained = layer(x.to(device))
        with torch.no_grad():
            results.append([trained, layer.eval()(x.to(device))])
    assert all(same(there, here) for there, here in zip(*results, strict=True))


MAKERS = {
    "arange": lambda d: torch.arange(1, 9, 2, device=d),
    "linspace": lambda d: torch.linspace(0, 1, 5, device=d),
    "eye": lambda d: torch.eye(2, 3, device=d),
    "full": lambda d: torch.full((2, 3), 7, device=d),
    "tril_indices": lambda d: torch.tril_indices(3, 3, -1, device=d),
    "tensor": lambda d: torch.tensor([[1.0, 2.0]], device=d),
    "as_tensor": lambda d: torch.as_tensor(np.arange(3), device=d),
    "new_tensor": lambda d: torch.zeros(1, device=d).new_tensor([[1, 2]]),
    "zeros_like": lambda d: torch.zeros_like(torch.ones(2, 3).T, device=d),
    "one_hot": lambda d: F.one_hot(torch.arange(3, device=d)),
    "tensor of tensors": lambda d: torch.tensor([torch.ones((), device=d), 2], device=d),
    "sparse": lambda d: torch.eye(3, device=d).to_sparse_csr().to_dense(),
    "default": lambda d: default_ones(d),
}


def default_ones(device) -> torch.Tensor:
    with torch.device(device):
        return torch.ones(2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_new_tensors_lie_on_the_device(accelerator, make):
    assert same(make(accelerator), make("cpu"))


WRITERS = {
    "slice": lambda x: x[:, 1].mul_(3),
    "assign": lambda x: x.__setitem__((0, slice(None)), torch.arange(4.0, device=x.device)),
    "number": lambda x: x.__setitem__((slice(None), 0), 9),
    "mask": lambda x: x.__setitem__(x > 5, 0.5),
    "index": lambda x: x.index_add_(0, x[0, 1:3].long(), x[:2].clone()),
    "view": lambda x: x.view(-1)[::5].zero_(),
    "transposed": lambda x: x.T[1:].add_(1),
    "out": lambda x: torch.add(x[0], 1, out=x[1]),
    "unsqueeze_": lambda x: x.unsqueeze_(1).add_(1),
    "t_": lambda x: x.t_(),
    "detached": lambda x: x.detach().unsqueeze_(0).mul_(2),
    "data": lambda x: setattr(x, "data", x.data.T + 1),
    "foreach": lambda x: torch._foreach_lerp_([x, x[0]], [x + 1, x[1]], 0.3),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_writing_in_place_and_through_views(accelerator, write):
    there, here = (torch.arange(12.0, device=d).view(3, 4) for d in (accelerator, "cpu"))
    for x in (there, here):
        write(x)
    assert same(there, here) and there.shape == here.shape and there.stride() == here.stride()


def test_out_grows(accelerator):
    out = torch.empty(0, device=accelerator)
    assert torch.add(torch.ones(2, 3, device=accelerator), 1, out=out) is out
    assert out.shape == (2, 3) and out.view(3, 2).sum().item() == 12


def test_gradient_of_a_write_through_a_view(accelerator):
    def gradient(device):
        x = torch.ones(3, 2, device=device, requires_grad=True)
        y = x * 1
        y[1:].t()[0].mul_(3)
        y.sum().backward()
        return x.grad

    assert same(gradient(accelerator), gradient("cpu"))


def test_functional_transforms(accelerator):
    def hessian(device):
        x = torch.arange(3.0, device=device)
        return torch.func.vmap(torch.func.grad(lambda r: (r**3).sum()))(torch.stack([x, x + 1]))

    assert same(hessian(accelerator), hessian("cpu"))


def test_between_the_devices(accelerator):
    here = torch.arange(6.0).view(2, 3).T
    there = here.to(accelerator)
    assert same(there, here) and there.to(accelerator) is there and there.to("sim") is there
    assert torch.equal(there.cpu(), here) and torch.equal(there.to("cpu", torch.float64), here)
    assert torch.equal(torch.zeros(3, 2).copy_(there), here)
    assert torch.equal(torch.zeros(3, 2, device=accelerator).copy_(here).cpu(), here)
    here.zero_()
    assert there.sum().item() == 15  # a copy


def test_a_module_keeps_its_parameters_when_it_moves(accelerator):
    net = nn.Linear(2, 2)
    weight, opt = net.weight, torch.optim.SGD(net.parameters(), 1.0)
    net.to(accelerator)
    assert net.weight is weight and isinstance(weight, nn.Parameter) and weight.is_leaf
    net(torch.ones(1, 2, device=accelerator)).sum().backward()
    before = weight.detach().clone()
    opt.step()
    assert torch.equal(weight, before - 1)
    assert net.cpu().weight is weight and weight.device.type == "cpu"


def test_copies_of_a_module(accelerator):
    net = nn.BatchNorm1d(3).to(accelerator)
    twin, sent = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        net.weight.add_(1)
    for other in (twin, sent):
        assert isinstance(other.weight, nn.Parameter) and other.weight.requires_grad
        assert other.weight.tolist() == [1, 1, 1] and other.running_mean.device == accelerator
    twin.load_state_dict(net.state_dict())
    assert twin.weight.tolist() == [2, 2, 2]


def test_python_may_read_values(accelerator):
    x = torch.tensor([1.5, 2.5], device=accelerator)
    assert float(x[0]) == 1.5 and int(x[1]) == 2 and bool(x[0] > 1) and x.tolist() == [1.5, 2.5]
    assert x.max().item() == 2.5 and f"{x[0]:.2f}" == "1.50" and [v.item() for v in x] == [1.5, 2.5]
    assert repr(x) == "tensor([1.5000, 2.5000], device='sim:0')" and str(x.device) == "sim:0"


def test_generators_draw_the_cpu_s_numbers(accelerator):
    there = torch.Generator(device=accelerator).manual_seed(3)
    here = torch.Generator().manual_seed(3)
    assert isinstance(there, torch.Generator) and isinstance(here, torch.Generator)
    assert there.device == accelerator and here.device.type == "cpu"
    for draw in (torch.rand, torch.randn):
        assert same(draw(4, generator=there, device=accelerator), draw(4, generator=here))
    order = torch.randperm(9, generator=there, device=accelerator)
    assert same(order, torch.randperm(9, generator=here))
    x, y = torch.empty(5, device=accelerator), torch.empty(5)
    assert same(x.uniform_(-1, 1, generator=there), y.uniform_(-1, 1, generator=here))
    assert there.initial_seed() == 3 and torch.equal(there.get_state(), here.get_state())


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: here * there[0],
        lambda there, here: there.add_(here),
        lambda there, here: here.add_(there),
        lambda there, here: here[0].add_(there[0]),
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.stack([there[0], here[0]]),
        lambda there, here: torch.isin(there, here),
        lambda there, here: torch.where(there > 1, there, here),
        lambda there, here: there @ here,
        lambda there, here: there.gather(0, here.long()),
        lambda there, here: F.cross_entropy(there[None], here[:1].long()),
        lambda there, here: there.index_put_((here.long(),), here),
        lambda there, here: F.scaled_dot_product_attention(there[None], there[None], here[None]),
    ],
)
def test_planted_two_devices(accelerator, mix):
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        mix(torch.arange(3.0, device=accelerator), torch.arange(3.0))


def test_planted_device_index_into_a_cpu_tensor(accelerator):
    at = torch.tensor([0, 2], device=accelerator)
    with pytest.raises(RuntimeError, match="same device as the indexed tensor \\(cpu\\)"):
        torch.arange(3)[at]
    with pytest.raises(RuntimeError, match="same device as the indexed tensor \\(cpu\\)"):
        torch.arange(3)[at] = 1


def test_planted_numpy(accelerator):
    with pytest.raises(TypeError, match="can't convert sim:0 device type tensor to numpy"):
        torch.ones(2, device=accelerator).numpy()


@pytest.mark.parametrize(
    "give", [np.asarray, lambda x: np.concatenate([x, x]), lambda x: plt.figure().subplots().plot(x),
             lambda x: plt.figure().subplots().imshow(x[None])]
)  # fmt: skip
def test_planted_conversion_by_numpy_and_matplotlib(accelerator, give):
    try:
        with pytest.raises(TypeError, match="can't convert sim:0 device type tensor to numpy"):
            give(torch.ones(2, device=accelerator))
    finally:
        plt.close("all")


@pytest.mark.parametrize(
    "draw",
    [
        lambda d, g: torch.rand(2, device=d, generator=g),
        lambda d, g: torch.randperm(2, device=d, generator=g),
        lambda d, g: torch.empty(2, device=d).normal_(generator=g),
        lambda d, g: torch.ones(2, device=d).multinomial(1, generator=g),
        lambda d, g: nn.init.kaiming_normal_(torch.empty(2, 2, device=d), generator=g),
    ],
)
@pytest.mark.parametrize("planted", ["cpu generator on device", "device generator on cpu"])
def test_planted_generator_of_the_other_device(accelerator, planted, draw):
    on, by = ("sim", "cpu") if planted == "cpu generator on device" else ("cpu", "sim")
    with pytest.raises(RuntimeError, match=f"'{on}' device type for generator but found '{by}'"):
        draw(on, torch.Generator(device=by))


def test_an_error_inside_a_backward_pass_is_an_error(accelerator):
    def fail(gradient):
        raise LookupError("on the way")

    class Mixing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient + torch.ones(3)

    x = torch.ones(3, device=accelerator, requires_grad=True)
    y = x * 1
    y.register_hook(fail)
    with pytest.raises(LookupError, match="on the way"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        Mixing.apply(x).sum().backward()
    (x * 2).sum().backward()  # and the next one works
    assert x.grad.tolist() == [2, 2, 2]


def test_checkpointing(accelerator):
    from torch.utils.checkpoint import checkpoint

    x = torch.arange(3.0, device=accelerator, requires_grad=True)
    checkpoint(lambda x: (x.sin() * x).sum(), x, use_reentrant=False).backward()
    y = torch.arange(3.0, requires_grad=True)
    (y.sin() * y).sum().backward()
    assert same(x.grad, y.grad)


def test_what_cuda_allows(accelerator):
    there, number = torch.arange(3.0, device=accelerator), torch.tensor(2.0)
    assert (there + number).tolist() == (number + there).tolist() == [2, 3, 4]
    assert torch.where(there > 1, number, there).tolist() == [0, 1, 2]
    assert there[torch.tensor([2, 0])].tolist() == [2, 0] == there[[2, 0]].tolist()
    assert there[torch.tensor([True, False, True])].tolist() == [0, 2]
    there[torch.tensor([0])] = number
    there[1] = torch.tensor([5.0])[0]
    there[2:] = torch.tensor([7.0])  # a copy
    assert there.masked_fill(there > 6, number).tolist() == [2, 5, 2]
    assert torch.zeros(3).copy_(there).tolist() == [2, 5, 7]


# --- the cells of a notebook ---------------------------------------------------------------------


def test_a_failure_names_the_cell_and_the_operation(tmp_path):
    path = _planted(tmp_path, "import torch\ntorch.ones(3)[torch.arange(2, device=run.device)]")
    with pytest.raises(CellError, match=r"(?s)^elr, cell \d+ \(import torch\).*aten.index.Tensor"):
        execute(path, tmp_path)


def test_a_figure_that_nobody_shows_is_an_error(tmp_path):
    path = _planted(tmp_path, "fig, axis = plt.subplots()")
    with pytest.raises(CellError, match=r"(?s)^elr, cell \d+ .*leaves a figure open"):
        execute(path, tmp_path)


def _planted(folder: Path, source: str) -> Path:
    """Return a copy of the chapter on ELR in `folder`, with a cell of this source after the setup."""
    book = json.loads(catalogue.get("elr").path.read_text())
    cells = book["cells"]
    at = next(k for k, c in enumerate(cells) if "setup" in c["metadata"].get("tags", []))
    cells.insert(at + 1, {"cell_type": "code", "metadata": {}, "source": source, "outputs": []})
    path = folder / "elr.ipynb"
    path.write_text(json.dumps(book))
    return path


# --- in and out ----------------------------------------------------------------------------------


def test_afterwards_torch_is_as_before():
    def state():
        methods = {n: v for n, v in vars(torch.Tensor).items() if not n.startswith("__")}
        flags = (
            torch.__future__.get_swap_module_params_on_conversion(),
            torch.autograd.is_multithreading_enabled(),
        )
        return dict(vars(torch)), methods, flags

    with installed():
        pass  # the name of the device stays
    before = state()
    with pytest.raises(ZeroDivisionError), installed() as device:
        assert torch.rand is not before[0]["rand"]
        assert torch.Generator is not before[0]["Generator"]
        torch.ones(1 // 0, device=device)
    assert state() == before
    assert type(torch.ones(2)) is torch.Tensor and torch.Generator().device.type == "cpu"
    here = torch.Generator().manual_seed(0)
    assert torch.equal(torch.rand(2, generator=here), torch.rand(2, generator=here.manual_seed(0)))


def test_a_backward_pass_on_the_cpu_may_come_first():
    torch.ones(2, requires_grad=True).sum().backward()
    with installed() as device:
        x = torch.ones(2, device=device, requires_grad=True)
        x.square().sum().backward()
        assert x.grad.tolist() == [2, 2]
