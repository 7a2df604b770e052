import pytest
from tinybook import code, write

from lefcourse.chapter import params
from lefcourse.errors import UsageError

CELL = """\
seed = 0  # of every draw
device = "auto"  # where to compute
dataset = "digits"  # digits | mnist | imagefolder:PATH: where the images come from
noise = "symmetric"  # symmetric | pair-flip
note = "x"  # free | text (not a list of choices)
rate = 0.6  # share of wrong labels
epochs = 20  # passes
balanced = False  # same number of each class
stop = None  # epoch, or None
widths = [32, 64]  # of the layers
scale = (
    0.5,
    1,
)  # range
below = -1e-3  # a negative default
"""


@pytest.fixture
def spec():
    return params.parse_cell(CELL)


def test_a_cell_is_read_with_defaults_comments_and_choices(spec):
    assert list(spec)[:3] == ["seed", "device", "dataset"]
    assert spec["rate"] == params.Parameter("rate", 0.6, "share of wrong labels")
    assert spec["below"].default == -1e-3
    assert spec["scale"] == params.Parameter("scale", (0.5, 1), "range")
    assert spec["noise"].choices == ("symmetric", "pair-flip")
    assert spec["dataset"].choices == ("digits", "mnist", "imagefolder:PATH")
    assert spec["note"].choices == ()
    assert spec["device"].choices == ("auto", "cpu", "cuda")


def test_the_cell_is_found_by_its_tag(tmp_path):
    path = write(tmp_path / "a.ipynb", code("x = 1"), code("y = 2  # two", "parameters"))
    assert list(params.read(path)) == ["y"]
    assert params.read(write(tmp_path / "b.ipynb", code("x = 1"))) == {}


@pytest.mark.parametrize(
    "cell", ["a = 1 + x", "a = f()", "a: int = 1", "a = b = 1", "import os", "a, b = 1, 2"]
)
def test_only_literals_are_parameters(cell):
    with pytest.raises(ValueError, match="line 1"):
        params.parse_cell(cell)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("seed=7", 7),
        ("seed=4294967295", 4294967295),
        ("rate=0.4", 0.4),
        ("rate=1", 1.0),
        ("rate=1e-3", 1e-3),
        ("balanced=true", True),
        ("balanced=False", False),
        ("dataset=mnist", "mnist"),
        ("note=a=b", "a=b"),
        ("note=", ""),
        ("stop=None", None),
        ("stop=3", 3),
        ("widths=[8, 8, 8]", [8, 8, 8]),
        ("scale=[0, 2]", (0, 2)),
        ("device=cpu", "cpu"),
    ],
)
def test_values_get_the_type_of_the_default(spec, given, value):
    (parsed,) = params.parse(spec, [given]).values()
    assert parsed == value
    assert type(parsed) is type(value)


def test_the_last_of_two_values_counts(spec):
    assert params.parse(spec, ["seed=1", "seed=2"]) == {"seed": 2}


def test_a_relative_folder_is_made_absolute(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = params.parse(spec, ["dataset=imagefolder:photos"])
    assert values == {"dataset": f"imagefolder:{tmp_path / 'photos'}"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("sed=1", ["parameter 'sed'", "did you mean 'seed'", "rate"]),
        ("seed", ["'seed' has no value"]),
        ("seed=1.5", ["'seed' takes an integer", "1.5"]),
        ("seed=true", ["'seed' takes an integer"]),
        ("seed=True", ["'seed' takes an integer", "True"]),
        ("rate=high", ["'rate' takes a number", "'high'"]),
        ("rate=nan", ["'rate' takes a number", "'nan'"]),
        ("rate=", ["'rate' takes a number"]),
        ("balanced=1", ["'balanced' takes true or false", "'1'"]),
        ("widths=3", ["'widths' takes a list"]),
        ("widths=['a']", ["'widths' takes a list"]),
        ("noise=symetric", ["value of 'noise'", "did you mean 'symmetric'", "pair-flip"]),
        ("dataset=mnits", ["data set 'mnits'", "did you mean 'mnist'"]),
        ("dataset=imagefolder:", ["data set", "imagefolder:PATH"]),
        ("seed=-1", ["parameter 'seed' is -1", "0 to 4294967295"]),
        ("seed=4294967296", ["parameter 'seed' is 4294967296", "0 to 4294967295"]),
        ("widths=[]", ["'widths' has no value"]),
        ("device=gpu", ["device 'gpu'", "auto", "cpu", "cuda"]),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(spec, given, words):
    with pytest.raises(UsageError) as error:
        params.parse(spec, [given])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_typed_values_are_checked_too(spec):
    params.check(spec, {"rate": 1, "seed": 3, "stop": "never", "widths": [3]})
    for wrong in ({"seed": True}, {"seed": 1.0}, {"rate": "0.1"}, {"rate": True}, {"balanced": 0}):
        with pytest.raises(UsageError):
            params.check(spec, wrong)


@pytest.mark.parametrize(
    ("comment", "inside", "outside"),
    [
        ("at least 1: passes", [1, 10**12], [0, -1, float("nan"), float("inf")]),
        ("at least 1", [1.0], [0.999]),
        ("above 0: learning rate", [1e-9], [0.0, -0.0]),
        ("at most 1e-3", [-5, 1e-3], [2e-3]),
        ("below -1: cold", [-2], [-1]),
        ("0 to 1: a share", [0, 1, 0.5], [-1e-9, 1.001]),
        ("between 0 and 1: a share", [0.5], [0, 1]),
        ("at least 0, below 1: memory", [0], [1]),
        ("even, at least 2", [2, 4], [0, 3]),
        ("an odd prime: the modulus", [3, 59, 97], [2, 1, 0, -7, 60]),
        ("a prime, at least 11", [11], [7, 12]),
        ("any number: a shift", [-3.5], [float("inf")]),
        ("0 to 4294967295", [4294967295], [4294967296]),
    ],
)
def test_a_comment_may_begin_with_a_range(comment, inside, outside):
    found = params.ranges.read(comment)
    assert all(value in found for value in inside)
    assert not any(value in found for value in outside)


@pytest.mark.parametrize(
    "comment",
    ["", "passes", "at least one: pass", "1 of 3: x", "at least 1 passes", "at least 1 : x"],
)
def test_other_comments_declare_no_range(comment):
    assert params.ranges.read(comment) is None


def test_what_is_out_of_range_is_named_in_one_line():
    spec = params.parse_cell(
        "epochs = 3  # at least 1: passes\nshares = [0.5]  # 0 to 1: of the labels\n"
        "dims = 2  # 2 | 3: slices or volumes"
    )
    for given, message in [
        ("epochs=0", "parameter 'epochs' is 0; allowed: at least 1"),
        ("shares=[0.2, 1.5]", "parameter 'shares' is 1.5; allowed: 0 to 1"),
        ("dims=4", "unknown value of 'dims' '4'"),
    ]:
        with pytest.raises(UsageError, match=message):
            params.parse(spec, [given])
    assert params.parse(spec, ["epochs=1", "shares=[0, 1]", "dims=3"])["dims"] == 3


def test_a_published_name_arrives_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = params.parse_cell('model = "mini"  # mini | open_clip:NAME | hf:NAME: which one')
    for name in ("hf:openai/clip-vit-base-patch32", "open_clip:ViT-B-32/laion2b_s34b_b79k"):
        assert params.parse(spec, [f"model={name}"]) == {"model": name}
    (tmp_path / "mine").mkdir()
    assert params.parse(spec, ["model=hf:mine"]) == {"model": f"hf:{tmp_path / 'mine'}"}
    for wrong in ("hf:", "hf", "open-clip:x", "maxi"):
        with pytest.raises(UsageError, match="value of 'model'"):
            params.parse(spec, [f"model={wrong}"])
