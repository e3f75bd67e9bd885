import io
import struct
import time
import tracemalloc

import numpy as np
import pytest
import torch
import torchfile
import torchvision

from resnext_det import ResNeXt
from resnext_det.errors import UserError
from resnext_det.modeling.classifier import CifarResNeXt
from resnext_det.weights.sources.torch7 import from_torch7
from resnext_det.weights.t7 import read_t7
from resnext_det.weights.t7_tree import run_t7
from tests.weights.t7_files import (
    FUNCTION,
    NIL,
    STRING,
    TABLE,
    TORCH,
    Builder,
    Module,
    T7Writer,
    modules_of,
    parameters_of,
    write_resnext_t7,
    write_t7,
)

SMALL = dict(depth=26, cardinality=4, width=8, num_classes=10)
CIFAR = dict(depth=29, cardinality=2, width=8, num_classes=10, cifar=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A released layout's file and its tree."""
    path = tmp_path_factory.mktemp("t7") / "small.t7"
    return path, write_resnext_t7(path, **SMALL)


def images(size=224, count=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same_features(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.std() > 1e-3, name  # a network that computes zeros would prove nothing
        atol = 1e-4 * tensor.abs().max().item()
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=atol, msg=name)


def detectron2_features(tensors, x, *, depth, cardinality, width, num_classes, cifar=False):
    """Features of our network with the converted tensors, every one of which has its place."""
    network = (CifarResNeXt if cifar else ResNeXt)(
        depth, cardinality, width, num_classes=num_classes
    )
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    stages = ["res2", "res3", "res4"] if cifar else ["res2", "res3", "res4", "res5"]
    network._out_features = [*stages, "linear"]
    with torch.no_grad():
        return network.eval()(x)


def assert_converts(path, **variant):
    """Tree and converted network agree; returns the account."""
    root = read_t7(path)
    conversion = from_torch7(root)
    assert conversion.unexplained == []
    x = images(32 if variant.get("cifar") else 224)
    assert_same_features(
        detectron2_features(conversion.tensors, x, **variant),
        run_t7(root, x),
    )
    return conversion


def torchvision_features(tree, x):
    """Features of torchvision's ResNeXt-50 (32x4d), whose state dict has the tree's order."""
    network = torchvision.models.resnext50_32x4d(weights=None).eval()
    names = [n for n in network.state_dict() if not n.endswith("num_batches_tracked")]
    network.load_state_dict(
        dict(zip(names, parameters_of(tree).values(), strict=True)), strict=False
    )
    features = {}
    for index in range(1, 5):
        getattr(network, f"layer{index}").register_forward_hook(
            lambda m, i, output, name=f"res{index + 1}": features.__setitem__(name, output)
        )
    with torch.no_grad():
        features["linear"] = network(x)
    return {name: features[name] for name in ("res2", "res3", "res4", "res5", "linear")}


def test_the_released_layout_computes_what_torchvisions_resnext_50_does(tmp_path):
    tree = write_resnext_t7(tmp_path / "x.t7")
    root, x = read_t7(tmp_path / "x.t7"), images()
    expected = torchvision_features(tree, x)
    assert_same_features(run_t7(root, x), expected)
    conversion = from_torch7(root)
    variant = dict(depth=50, cardinality=32, width=4, num_classes=1000)
    assert_same_features(detectron2_features(conversion.tensors, x, **variant), expected)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(nested=False),
        dict(form="b"),
        dict(form="b", nested=False, layers="mm"),
        dict(cuda=True),
        dict(layers="nn"),
    ],
    ids=str,
)
def test_every_layout_of_an_imagenet_network_converts(options, tmp_path):
    write_resnext_t7(tmp_path / "x.t7", **SMALL, **options)
    conversion = assert_converts(tmp_path / "x.t7", **SMALL)
    assert conversion.stride_in_1x1 is False
    assert conversion.notes == []


@pytest.mark.parametrize("form", ["b", "c"])
def test_a_cifar_network_converts(form, tmp_path):
    write_resnext_t7(tmp_path / "x.t7", form=form, nested=False, **CIFAR)
    assert_converts(tmp_path / "x.t7", **CIFAR)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (dict(eps=1e-3), "eps 0.001 became 1e-05"),
        (dict(running_std=True), "running_std"),
        (dict(running_std=True, eps=1e-3), "running_std"),
    ],
    ids=str,
)
def test_another_eps_and_an_old_deviation_arrive_in_the_variance(options, note, tmp_path):
    tree = write_resnext_t7(tmp_path / "x.t7", **CIFAR, **options)
    conversion = assert_converts(tmp_path / "x.t7", **CIFAR)
    assert len(conversion.notes) == 1
    assert note in conversion.notes[0]
    norm = dict(modules_of(tree))["1"].fields
    if "running_var" in norm:
        expected = norm["running_var"].double() + norm["eps"]
    else:
        expected = norm["running_std"].double() ** -2
    found = conversion.tensors["stem.conv1.norm.running_var"].double() + 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_values_arrive_bit_by_bit_under_the_expected_names(small):
    path, tree = small
    conversion = from_torch7(read_t7(path))
    written = parameters_of(tree)
    assert list(conversion.renamed) == list(written)
    assert len(conversion.tensors) == len(written)
    for name, new_name in conversion.renamed.items():
        torch.testing.assert_close(conversion.tensors[new_name], written[name], rtol=0, atol=0)
    for name, new_name in {
        "0.weight": "stem.conv1.weight",
        "1.running_var": "stem.conv1.norm.running_var",
        "4.0.0.0.0.0.weight": "res2.0.conv1.weight",
        "4.0.0.0.0.4.bias": "res2.0.conv2.norm.bias",
        "4.0.0.0.1.weight": "res2.0.conv3.weight",
        "7.1.0.0.2.running_mean": "res5.1.conv3.norm.running_mean",
        "4.0.0.1.0.weight": "res2.0.shortcut.weight",
        "5.0.0.1.1.weight": "res3.0.shortcut.norm.weight",
        "10.bias": "linear.bias",
    }.items():
        assert conversion.renamed[name] == new_name


def test_the_paths_of_form_b_share_one_name(tmp_path):
    tree = write_resnext_t7(tmp_path / "x.t7", form="b", nested=False, **CIFAR)
    conversion = from_torch7(read_t7(tmp_path / "x.t7"))
    assert set(conversion.renamed) == set(parameters_of(tree))
    for path in ("3.0.0.0.0.0.0.weight", "3.0.0.0.0.1.0.weight"):
        assert conversion.renamed[path] == "res2.0.conv1.weight"
    first, second = (parameters_of(tree)[f"3.0.0.0.0.{i}.3.weight"] for i in (0, 1))
    merged = torch.cat([first, second])
    torch.testing.assert_close(conversion.tensors["res2.0.conv2.weight"], merged, rtol=0, atol=0)


def test_every_tensor_is_counted_once(small):
    path, tree = small
    conversion = from_torch7(read_t7(path))
    account = [*conversion.renamed, *conversion.unexplained]
    account += [name for names in conversion.dropped.values() for name in names]
    in_tree = [
        f"{module_path}.{name}".lstrip(".")
        for module_path, module in modules_of(tree)
        for name, value in module.fields.items()
        if isinstance(value, torch.Tensor) or name == "size"
    ]
    assert sorted(account) == sorted(in_tree)
    gradients = [name for name in in_tree if ".grad" in name and "gradInput" not in name]
    assert sorted(conversion.dropped["gradients"]) == sorted(gradients)


def test_double_precision_stays(tmp_path):
    tree = Builder().network([1, 1, 1], 2, 4, "c", True, 10)
    conv = dict(modules_of(tree))["0"].fields
    conv["weight"] = conv["weight"].double() / 3
    write_t7(tmp_path / "x.t7", tree)
    found = from_torch7(read_t7(tmp_path / "x.t7")).tensors["stem.conv1.weight"]
    torch.testing.assert_close(found, conv["weight"], rtol=0, atol=0)


def test_the_stride_in_the_first_1x1_layer_is_noticed(tmp_path):
    tree = Builder().network([1, 1, 1], 2, 4, "c", False, 10)
    modules = dict(modules_of(tree))
    for stage in (4, 5):
        for layer, stride in ((0, 2), (3, 1)):
            modules[f"{stage}.0.0.0.{layer}"].fields.update(dW=stride, dH=stride)
    write_t7(tmp_path / "x.t7", tree)
    assert from_torch7(read_t7(tmp_path / "x.t7")).stride_in_1x1 is True


def tiny(tmp_path, change, wrap=lambda tree: tree):
    """The root of a tiny CIFAR network whose modules `change` has changed."""
    tree = Builder().network([1, 1, 1], 2, 4, "c", False, 10)
    change(dict(modules_of(tree)))
    write_t7(tmp_path / "tiny.t7", wrap(tree))
    return read_t7(tmp_path / "tiny.t7")


def checkpoint(tree):
    """A table that also refers to itself."""
    table = {"model": tree, "step": torch.ones(3)}
    table["again"] = table
    return table


@pytest.mark.parametrize(
    "wrap",
    [
        checkpoint,
        lambda tree: Module("nn.DataParallelTable", {"modules": [tree], "flat": torch.ones(3)}),
    ],
    ids=["table", "DataParallelTable"],
)
def test_wrappers_are_taken_off(wrap, tmp_path):
    plain = from_torch7(tiny(tmp_path, lambda modules: None))
    root = tiny(tmp_path, lambda modules: None, wrap)
    wrapped = from_torch7(root)
    assert wrapped.renamed == plain.renamed
    assert len(wrapped.dropped["outside of the network"]) == 1
    assert run_t7(root, images(32))["linear"].shape == (1, 10)


def test_zero_biases_of_convolutions_are_dropped_and_others_are_unexplained(tmp_path):
    def change(modules):
        modules["0"].fields["bias"] = torch.zeros(64)
        modules["3.0.0.0.0"].fields["bias"] = torch.ones(8)
        modules["2"].fields["slope"] = torch.ones(2)

    conversion = from_torch7(tiny(tmp_path, change))
    assert conversion.dropped["zero biases of convolutions"] == ["0.bias"]
    assert sorted(conversion.unexplained) == ["2.slope", "3.0.0.0.0.bias"]


def test_buffers_of_the_training_step_are_dropped(tmp_path):
    shared = [torch.ones(2), torch.ones(3)]

    def change(modules):
        modules["0"].fields["finput"] = torch.ones(4)
        modules["3.0.0"].fields["output"] = shared
        modules["3.0.1"].fields["input"] = modules["3.0.1"]  # a reference to itself

    buffers = from_torch7(tiny(tmp_path, change)).dropped["buffers of the training step"]
    assert buffers == ["0.finput", "3.0.0.output.1", "3.0.0.output.2"]


def swap(path, kind):
    return lambda modules: setattr(modules[path], "kind", kind)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap("2", "nn.Tanh"), "module 2 is a nn.Tanh"),
        (swap("3.0.0.0.3", "nn.SpatialDilatedConvolution"), "module 3.0.0.0.3 "),
        (swap("3.0.0.1.0", "nn.MulConstant"), "module 3.0.0.1.0 is a nn.MulConstant"),
        (lambda m: m["3.0.0.0"].fields["modules"].pop(0), "module 3.0.0.0.0 "),
        (lambda m: m["3.0.0.0"].fields["modules"].pop(), "branch 3.0.0.0 ends without"),
        (lambda m: m[""].fields["modules"].append(m["2"]), "module 9 "),
        (lambda m: m["3"].fields.update(modules=[]), "module 3 is a stage without blocks"),
        (lambda m: m["3"].fields["modules"].append(m["3"]), "module 3.1 .* occurs twice"),
        (lambda m: m["3.0.0.0.3"].fields.update(padW=0), "module 3.0.0.0.3 .* padW = 0"),
        (lambda m: m["0"].fields.update(kH=torch.ones(4)), "module 0 .* kH = ndarray"),
        (lambda m: m["4.0.0.0.0"].fields.update(dW=torch.ones(4)), "module 4.0.0.0.0 .* dW"),
        (swap("2", "nn.Tanh\n\n"), "module 2 is a nn.Tanh"),
        (lambda m: m["3"].fields.update(modules=torch.ones(4)), "module 3 is a stage without"),
        (lambda m: m["4.0.0.1.0"].fields.update(dH=1), "module 4.0.0.1.0 .* dH = 1"),
        (lambda m: m["1"].fields.pop("weight"), "module 1 .* has no weight"),
        (lambda m: m["1"].fields.pop("eps"), "module 1 .*no eps"),
        (lambda m: m[""].fields["modules"].__setitem__(2, 7.0), "has no module 2"),
    ],
)
def test_what_is_no_resnext_is_refused_by_the_modules_name(change, named, tmp_path):
    with pytest.raises(UserError, match=named) as caught:
        from_torch7(tiny(tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap("2", "nn.Tanh"), "module 2 is a nn.Tanh"),
        (lambda m: m["0"].fields.pop("kW"), "module 0 .* does not run"),
        (lambda m: m["0"].fields.update(weight=3), "module 0 .* does not run"),
        (lambda m: m["7"].fields.update(size=torch.ones(4)), "module 7 .* does not run"),
        (lambda m: m["8"].fields.update(weight=torch.ones(4)), "module 8 .* does not run"),
        (lambda m: m["3"].fields["modules"].append(m["3"]), "occurs twice"),
    ],
)
def test_a_tree_that_cannot_be_computed_names_the_module(change, named, tmp_path):
    with pytest.raises(UserError, match=named):
        run_t7(tiny(tmp_path, change), images(32))


@pytest.mark.parametrize("root", [None, 3.0, {"epoch": 1}, Module("nn.Linear", {}), "text"])
def test_a_file_without_a_network_is_refused(root, tmp_path):
    write_t7(tmp_path / "x.t7", root)
    for read in (from_torch7, lambda root: run_t7(root, images(32))):
        with pytest.raises(UserError, match="holds no network"):
            read(read_t7(tmp_path / "x.t7"))


@pytest.mark.parametrize("cuda", [False, True])
def test_torchfile_itself_reads_the_files_of_these_tests(cuda, tmp_path):
    tree = write_resnext_t7(tmp_path / "x.t7", form="b", cuda=cuda, **CIFAR)
    theirs = torchfile.load(str(tmp_path / "x.t7"))

    def same(module, other):
        assert other.torch_typename().decode() == module.kind
        for name, value in module.fields.items():
            if isinstance(value, torch.Tensor):
                np.testing.assert_array_equal(other[name.encode()], value.numpy())
            elif isinstance(value, int | float):
                assert other[name.encode()] == value
        for child, other_child in zip(
            module.fields.get("modules", []), other.modules or [], strict=True
        ):
            same(child, other_child)

    same(tree, theirs)
    ours = from_torch7(read_t7(tmp_path / "x.t7"))
    for name, tensor in from_torch7(theirs).tensors.items():
        torch.testing.assert_close(ours.tensors[name], tensor, rtol=0, atol=0)


def test_arrays_are_writable_views_of_one_storage(small):
    conversion = from_torch7(read_t7(small[0]))
    weight, bias = (conversion.tensors[f"linear.{name}"] for name in ("weight", "bias"))
    assert weight.numpy().flags.writeable
    assert weight.data_ptr() + weight.nbytes == bias.data_ptr()


def written(*steps):
    """The bytes that calls of `T7Writer`, (method, *arguments), write."""
    file = io.BytesIO()
    writer = T7Writer(file)
    for method, *arguments in steps:
        getattr(writer, method)(*arguments)
    return file.getvalue()


def torch_object(kind, *steps):
    return written(("ints", TORCH, 1), ("chars", "V 1"), ("chars", kind), *steps)


def tensor(size, stride, offset, storage=4, element="Float", claim=None):
    storage = [
        ("ints", TORCH, 2),
        ("chars", "V 1"),
        ("chars", f"torch.{element}Storage"),
        ("longs", storage if claim is None else claim),
        ("ints", *range(storage)),
    ]
    header = [("ints", len(size)), ("longs", *size, *stride, offset)]
    return torch_object("torch.FloatTensor", *header, *storage)


DAMAGED = {
    "empty": b"",
    "no Torch7 file": b"PK\x03\x04 and so on",
    "negative type": written(("ints", -1)),
    "type 9": written(("ints", 9, 1)),
    "a negative string": written(("ints", STRING, -5)),
    "a huge string": written(("ints", STRING, 2**31 - 1)),
    "a negative table": written(("ints", TABLE, 1, -1)),
    "a huge table": written(("ints", TABLE, 1, 2**31 - 1)),
    "a table as key": written(("ints", TABLE, 1, 1), ("ints", TABLE, 2, 0), ("ints", NIL)),
    "a negative function": written(("ints", FUNCTION, 1, -1)),
    "a huge function": written(("ints", FUNCTION, 1, 2**31 - 1)),
    "storage of 2**40": tensor([4], [1], 1, claim=2**40),
    "storage of 2**62": tensor([4], [1], 1, claim=2**62),
    "a negative storage": tensor([4], [1], 1, claim=-4),
    "size beyond the storage": tensor([5], [1], 1),
    "offset beyond the storage": tensor([4], [1], 2),
    "offset before the storage": tensor([4], [1], 0),
    "stride beyond the storage": tensor([2, 2], [3, 1], 1),
    "a negative stride": tensor([4], [-1], 4),
    "a negative size": tensor([-4], [1], 1),
    "more elements than the storage": tensor([2**40], [0], 1),
    "another type of storage": tensor([4], [1], 1, element="Int"),
    "a huge count of dimensions": torch_object("torch.FloatTensor", ("ints", 2**31 - 1)),
    "a negative count of dimensions": torch_object("torch.FloatTensor", ("ints", -1)),
    "70 dimensions": tensor([1] * 70, [1] * 70, 1),
    "a tensor that is its own storage": torch_object(
        "torch.FloatTensor", ("ints", 1), ("longs", 2, 1, 1), ("ints", TORCH, 1)
    ),
    "a tensor in place of a storage": torch_object(
        "torch.FloatTensor",
        *[("ints", 1), ("longs", 4, 1, 1)],
        *[("ints", TORCH, 3), ("chars", "V 1"), ("chars", "torch.FloatTensor")],
        *[("ints", 1), ("longs", 4, 0, 4)],
        *[("ints", TORCH, 2), ("chars", "V 1"), ("chars", "torch.FloatStorage")],
        *[("longs", 4), ("ints", 1, 2, 3, 4)],
    ),
    "a tensor without its storage": torch_object(
        "torch.FloatTensor", ("ints", 1), ("longs", 2, 1, 1), ("ints", NIL)
    ),
    "half precision": torch_object("torch.HalfTensor", ("ints", 0), ("longs", 1), ("ints", NIL)),
    "a module without fields": torch_object("nn.Linear", ("ints", NIL)),
    "a module that is its own fields": torch_object("nn.Linear", ("ints", TORCH, 1)),
    "a class that is no text": torch_object(b"\xff\xfe\n\n", ("ints", NIL)),
    "deep nesting": b"".join(struct.pack("<4i", TABLE, i, 1, 0)[:12] for i in range(1, 50_000)),
    "deep nesting of values": b"".join(
        struct.pack("<3iid", TABLE, i, 1, 1, 1.0) for i in range(1, 50_000)
    ),
}


def assert_refused(path):
    """One line, at once, without allocation."""
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            read_t7(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path} is not a readable Torch7 file: ")
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 1
    assert peak < path.stat().st_size * 1.1 + 2**20


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(damage, tmp_path):
    path = tmp_path / "damaged.t7"
    path.write_bytes(DAMAGED[damage])
    assert_refused(path)


@pytest.mark.parametrize("share", [0.00001, 0.001, 0.3, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused_in_one_line(share, small, tmp_path):
    data = small[0].read_bytes()
    path = tmp_path / "truncated.t7"
    path.write_bytes(data[: int(share * len(data))])
    assert_refused(path)


def test_a_file_with_any_byte_changed_reads_or_is_refused(tmp_path):
    write_t7(tmp_path / "x.t7", Builder().layer("Linear", weight=torch.ones(2, 3), n={1: True}))
    data = (tmp_path / "x.t7").read_bytes()
    for at in range(len(data)):
        for value in (0, 1, 127, 255):
            (tmp_path / "x.t7").write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                read_t7(tmp_path / "x.t7")
            except UserError as error:
                assert "\n" not in str(error)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.t7", tmp_path):
        with pytest.raises(UserError, match="does not exist or is no file"):
            read_t7(path)


def test_reading_takes_about_the_files_size(small):
    tracemalloc.start()
    root = read_t7(small[0])
    peak = tracemalloc.get_traced_memory()[1]
    conversion = from_torch7(root)
    after = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(conversion.tensors) > 100
    assert max(peak, after) < 1.2 * small[0].stat().st_size


def test_functions_are_kept_as_bytes_and_not_run(tmp_path):
    steps = [("ints", FUNCTION, 1), ("chars", b"os.exit()"), ("ints", NIL)]
    (tmp_path / "x.t7").write_bytes(written(*steps))
    assert read_t7(tmp_path / "x.t7").dumped == b"os.exit()"
