"""Hostile, damaged and strange files: each is refused in one line, quickly, in little memory.

The refusals happen in a forked child, so that a crash, a hang or a gigabyte is a failed test.
"""

import builtins
import codecs
import errno
import gzip
import io
import json
import multiprocessing
import os
import pickle
import resource
import struct
import threading
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from resnext_det.errors import UserError
from resnext_det.weights import StrictCheckpointer
from resnext_det.weights.convert import convert_file
from resnext_det.weights.files import read_file
from tests.helpers import randomise

SECONDS, MEGABYTES = 2, 100
multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray


def _report(pipe, action):
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    try:
        action()
        kind, text = "accepted", ""
    except UserError as error:
        kind, text = "refused", str(error)
    except BaseException:
        kind, text = "a bug", traceback.format_exc()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    pipe.send((kind, text, time.monotonic() - start, grown))
    pipe.close()
    os._exit(0)


def in_a_child(action):
    """Run `action()`; returns what came of it, the message, seconds, and megabytes of growth."""
    forks = multiprocessing.get_context("fork")
    ours, theirs = forks.Pipe(duplex=False)
    child = forks.Process(target=_report, args=(theirs, action))
    child.start()
    theirs.close()
    try:
        assert ours.poll(5 * SECONDS), "it hangs"
        return ours.recv()
    except EOFError:
        child.join()
        pytest.fail(f"the process died: exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()


def refusal(action):
    """The line in which `action()` refuses."""
    kind, text, seconds, grown = in_a_child(action)
    assert kind == "refused", f"{kind} {text}"
    assert text.strip()
    assert "\n" not in text
    assert seconds < SECONDS
    assert grown < MEGABYTES
    return text


def assert_refused(file, folder, *, readable=False):
    """By reading (unless `readable`) and by converting; nothing else appears in `folder`."""
    before = sorted(folder.iterdir())
    actions = [lambda: convert_file(file, folder / "out.pth")]
    if not readable:
        actions.append(lambda: read_file(file))
    lines = [refusal(action) for action in actions]
    for line in lines:
        assert line.count(str(file)) == 1
    assert sorted(folder.iterdir()) == before
    return lines[0]


@pytest.fixture(scope="module")
def state():
    network = ResNet(Bottleneck, [2, 2, 2, 2], groups=8, width_per_group=4, num_classes=10)
    return dict(randomise(network).state_dict())


def legacy_save(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickle_save(content, path):
    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value.numpy() if isinstance(value, torch.Tensor) else value

    path.write_bytes(pickle.dumps(plain(content), protocol=4))


SAVE = {
    "zip.pth": torch.save,
    "legacy.pth": legacy_save,
    "plain.pkl": pickle_save,
    "plain.safetensors": safetensors.torch.save_file,
}
PICKLED = ["zip.pth", "legacy.pth", "plain.pkl"]


@pytest.mark.parametrize("name", PICKLED)
def test_the_child_sees_what_is_acceptable(name, state, tmp_path):
    SAVE[name](state, tmp_path / name)
    assert in_a_child(lambda: read_file(tmp_path / name))[0] == "accepted"
    convert_file(tmp_path / name, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").is_file()


class Call:
    """Pickles as a call of `function` with `arguments`, and a state for the result."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)[: 2 if state is None else 3]

    def __reduce__(self):
        return self.reduced


def empty_array(shape, dtype, data):
    """An array as NumPy pickles it, with a state of our choice."""
    state = (1, shape, dtype, False, data)
    return Call(multiarray._reconstruct, np.ndarray, (0,), b"b", state=state)


def attacks(marker):
    text = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(builtins.eval, text),
        "exec": Call(builtins.exec, text),
        "open": Call(builtins.open, str(marker), "w"),
        "mkdir": Call(os.mkdir, str(marker)),
        "getattr": Call(builtins.getattr, Call(builtins.__import__, "os"), "system"),
        "nested pickle": Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(marker)))),
        "nested torch": Call(torch.storage._load_from_bytes, b"\x80\x02."),
        "numpy.ndarray": Call(np.ndarray, (1 << 28,)),
        "_reconstruct": Call(multiarray._reconstruct, np.ndarray, (1 << 28,), b"f"),
        "array": Call(np.zeros, 1 << 28),
        "bytearray": Call(bytearray, 1 << 28),
        "scalar of bytes": Call(multiarray.scalar, Call(np.dtype, "S300000000")),
        "scalar of void": Call(multiarray.scalar, Call(np.dtype, "V300000000")),
        "scalar of an array": Call(multiarray.scalar, Call(np.dtype, ("f4", (1 << 26,)))),
    }


@pytest.mark.parametrize("name", PICKLED)
@pytest.mark.parametrize("attack", attacks(""))
def test_nothing_in_a_file_is_executed_or_allocated(attack, name, tmp_path):
    marker = tmp_path / "executed"
    evil = attacks(marker)[attack]
    tensors = {"conv1.weight": torch.zeros(3)}
    for content in ({**tensors, "x": evil}, {"state_dict": tensors, "meta": [{"deep": (evil,)}]}):
        SAVE[name](content, tmp_path / name)
        assert_refused(tmp_path / name, tmp_path)
        assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_pickles_of_old_protocols_are_refused_unread(protocol, tmp_path):
    file = tmp_path / "old.pkl"
    file.write_bytes(pickle.dumps({"x": attacks(tmp_path / "executed")["mkdir"]}, protocol))
    assert_refused(file, tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        empty_array((1 << 28,), np.dtype("f4"), b""),
        empty_array((1 << 40, 1 << 40), np.dtype("f4"), b""),
        empty_array((-4,), np.dtype("f4"), b"0000" * 4),
        empty_array((4,), np.dtype("f4"), b"0"),
        empty_array((4,), np.dtype("O"), []),
        empty_array((1 << 25,), np.dtype("O"), []),
        empty_array((2,), np.dtype("O"), [1.0, 2.0]),
        empty_array((1,), Call(np.dtype, "V8"), b"\1" * 8),
        Call(codecs.encode, "0" * 100, "rot13"),
    ],
    ids=["short", "overflow", "negative", "truncated", "O-empty", "O-huge", "O", "void", "codec"],
)
def test_an_array_whose_state_lies_is_refused(array, tmp_path):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({"conv1_w": array, "model": {"conv1_w": array}}, protocol=4))
    assert_refused(file, tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, None]),
        np.array(["conv1", "w"]),
        np.array([b"conv1"]),
        np.array([1 + 2j]),
        np.array([True]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.zeros(3, np.longdouble),
    ],
    ids=lambda a: str(a.dtype),
)
def test_arrays_of_odd_types_are_refused(array, state, tmp_path):
    file = tmp_path / "odd.pkl"
    arrays = {k: v.numpy() for k, v in state.items()}
    file.write_bytes(pickle.dumps({"model": {**arrays, "bn1.bias": array}}, protocol=4))
    assert_refused(file, tmp_path)


@pytest.mark.parametrize("name", PICKLED)
def test_a_dict_that_holds_itself_is_refused(name, tmp_path):
    content = {"note": "x"}
    content["model"] = content["state_dict"] = content
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=4))
    else:
        SAVE[name](content, tmp_path / name)
    assert_refused(tmp_path / name, tmp_path, readable=True)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]" * 100_000 + b"a" * 99_999,
        b"}" + b"X\1\0\0\0a}" * 100_000 + b"s" * 100_000,
        b"}" + b"X\5\0\0\0model}" * 2_000 + b"s" * 2_000,
    ],
    ids=["lists", "dicts", "models"],
)
def test_a_pickle_nested_too_deep_is_refused(opcodes, tmp_path):
    file = tmp_path / "deep.pkl"
    file.write_bytes(b"\x80\x04" + opcodes + b".")
    assert_refused(file, tmp_path, readable=True)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x04}X\xff\xff\xff\x7fabc",
        b"\x80\x04}\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc",
        b"\x80\x04B\xff\xff\xff\x7fabc",
        b"\x80\x04\x96\xff\xff\xff\xff\xff\x00\x00\x00abc",
        b"\x80\x04r\xff\xff\xff\x0f.",
        b"\x80\x04]r\xff\xff\xff\x0f.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        b"\x80\x04\x8b\xff\xff\xff\x7f\x01.",
        b"\x80\xff}.",
        b"\x80\x04Pid\n.",
        b"\x80\x04\x82\x01.",
        b"\x80\x04.",
        b"\x80\x04h\x07.",
        b"\x80\x02" + b"(" * 50 + b"\x81.",
    ],
)
def test_pickle_opcodes_with_absurd_sizes_are_refused(opcodes, tmp_path):
    file = tmp_path / "opcodes.pkl"
    file.write_bytes(opcodes)
    assert_refused(file, tmp_path)


@pytest.mark.parametrize("name", SAVE)
def test_a_truncated_file_is_refused_wherever_it_ends(name, tmp_path):
    file, cut = tmp_path / name, tmp_path / f"cut-{name}"
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer{i}.weight": torch.rand(50, generator=generator) for i in range(8)}
    SAVE[name](tensors, file)
    data = file.read_bytes()
    ends = {*range(40), *range(40, len(data), len(data) // 97), *range(len(data) - 9, len(data))}

    def read_all():
        for end in sorted(ends):
            cut.write_bytes(data[:end])
            try:
                read_file(cut)
            except UserError as error:
                assert str(error).count(str(cut)) == 1, (end, str(error))
                assert "\n" not in str(error), (end, str(error))
            else:
                pytest.fail(f"{end} of {len(data)} bytes are read as a whole file")
        raise UserError("all")

    assert refusal(read_all) == "all"


def test_the_name_of_a_file_says_nothing(state, tmp_path):
    for i, save in enumerate(SAVE.values()):
        for suffix in (".pth", ".pkl", ".safetensors", ".t7", ""):
            file = tmp_path / f"{i}{suffix}"
            save({"fc.bias": state["fc.bias"]}, file)
            kind, text, *_ = in_a_child(lambda file=file: read_file(file))
            assert kind == "accepted", (file, text)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", SAVE)
def test_half_a_network_is_not_converted(name, share, state, tmp_path):
    SAVE[name](state, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    assert_refused(tmp_path / name, tmp_path)


@pytest.mark.parametrize("name", SAVE)
def test_a_file_with_any_byte_changed_is_read_or_refused(name, tmp_path):
    file, changed = tmp_path / name, tmp_path / f"changed-{name}"
    tensors = {f"l{i}.weight": torch.full((3,), float(i)) for i in range(2)}
    SAVE[name](tensors, file)
    data = file.read_bytes()

    def read_all():
        for at in sorted({*range(0, min(300, len(data)), 2), *range(0, len(data), 31)}):
            changed.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                read_file(changed)
            except UserError as error:
                assert "\n" not in str(error), (at, str(error))
        raise UserError("all")

    assert refusal(read_all) == "all"


PAGE = b"\n<!DOCTYPE html>\n<html><body>Quota exceeded</body></html>\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\0" * 1000, "is no weight file"),
        (PAGE, "is a web page"),
        (b'{"error": "not found"}', "is no weight file"),
        ("Gewichte für ResNeXt\n".encode() * 50, "is no weight file"),
        (b"\x80", "pickle"),
        (b"PK\x03\x04", "damaged"),
        (b"PK\x05\x06" + b"\0" * 18, "is no weight file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "is no weight file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "is no weight file"),
        (gzip.compress(b"\x80\x04}." * 100, mtime=0), "is no weight file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is no weight file"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_another_kind_of_file_is_told_by_its_first_bytes(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert says in assert_refused(tmp_path / name, tmp_path)


def test_a_zip_without_weights_is_refused(tmp_path):
    for name, content in (("empty", None), ("photos", b"jpeg"), ("archive/data.pkl", b"\x80\x02.")):
        file = tmp_path / "w.pth"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, content or b"")
        assert_refused(file, tmp_path)


def repacked(content, file, *, level=None, lie=None):
    """torch.save's archive with compressed records, and perhaps a false size in its directory."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(file, "w") as archive:
        for info in plain.infolist():
            with (
                plain.open(info) as record,
                archive.open(_deflated(info.filename, level), "w") as packed,
            ):
                while block := record.read(1 << 20):
                    packed.write(block)
        for info in archive.filelist:
            if lie is not None and info.file_size > lie:
                info.file_size = lie


def _deflated(name, level):
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    setattr(info, "compress_level" if hasattr(info, "compress_level") else "_compresslevel", level)
    return info


@pytest.mark.parametrize("lie", [None, 64], ids=["honest", "false directory"])
def test_a_zip_bomb_is_refused_before_it_unfolds(lie, tmp_path):
    file = tmp_path / "bomb.pth"
    repacked({"conv1.weight": torch.zeros(60 << 20)}, file, level=1, lie=lie)
    assert file.stat().st_size < 5 << 20
    assert_refused(file, tmp_path)


@pytest.mark.parametrize("level", [0, 1, 9])
def test_compressed_records_are_never_taken_for_numbers(level, tmp_path):
    """torch maps records into memory as they lie in the file."""
    file = tmp_path / "packed.pth"
    noise = torch.randint(0, 256, (40_000,), dtype=torch.uint8, generator=torch.Generator())
    tensors = {"a": noise.view(torch.float32)}  # which no compression makes smaller
    repacked(tensors, file, level=level)
    try:
        content = read_file(file).content
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert torch.equal(content["a"].view(torch.uint8), noise)


def safetensors_file(path, header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + text + data)


def entry(shape=(4,), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": entry()}, 1 << 63),
        ({"a": entry()}, (1 << 64) - 1),
        ({"a": entry()}, 1 << 40),
        ({"a": entry()}, 3),
        ({"a": entry()}, 0),
        ({"a": entry((1 << 40,), (0, 1 << 42))}, None),
        ({"a": entry((1 << 63, 1 << 63))}, None),
        ({"a": entry((1 << 40,))}, None),
        ({"a": entry((-4,))}, None),
        ({"a": entry((4,), (16, 0))}, None),
        ({"a": entry((4,), (1 << 62, (1 << 62) + 16))}, None),
        ({"a": entry(), "b": entry()}, None),
        ({"a": entry((2,), (0, 8))}, None),
        ({"a": entry(dtype="F31")}, None),
        ({"a": {"dtype": "F32"}}, None),
        ({"a": [1, 2]}, None),
        ({"__metadata__": {"recipe": {"nested": 1}}, "a": entry()}, None),
        (b"{" * 100_000, None),
        (b'{"a": \xff\xfe}', None),
        (b"{}}}}", None),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(header, length, tmp_path):
    file = tmp_path / "w.safetensors"
    safetensors_file(file, header, length=length)
    assert_refused(file, tmp_path)


def test_a_safetensors_header_may_have_any_length(tmp_path):
    """Whose lowest byte is the file's first: 0x80 begins a pickle too."""
    lengths = set()
    for extra in range(0, 256, 8):
        file = tmp_path / f"{extra}.safetensors"
        tensors = {"a" * (1 + extra): torch.ones(2)}
        safetensors.torch.save_file(tensors, file)
        lengths.add(file.read_bytes()[0])
        kind, text, *_ = in_a_child(lambda file=file: read_file(file))
        assert kind == "accepted", text
    assert 0x80 in lengths


def test_a_torch7_file_with_absurd_sizes_is_refused(tmp_path):
    def text(value):
        return struct.pack("<i", len(value)) + value

    tensor = struct.pack("<2i", 4, 1) + text(b"V 1") + text(b"torch.FloatTensor")
    storage = struct.pack("<2i", 4, 1) + text(b"V 1") + text(b"torch.FloatStorage")
    for content in (
        tensor + struct.pack("<i", 2**31 - 1),
        tensor + struct.pack("<i4q", 2, 1 << 40, 1 << 40, 0, 0) + struct.pack("<q", 1),
        storage + struct.pack("<q", 1 << 62),
        storage + struct.pack("<q", -1),
        struct.pack("<3i", 3, 1, 2**31 - 1) + b"\0" * 8,
        struct.pack("<3i", 4, 1, 2**31 - 1) + b"\0" * 8,
    ):
        (tmp_path / "w.t7").write_bytes(content)
        assert_refused(tmp_path / "w.t7", tmp_path)


def damaged(value, tensor):
    changed = tensor.clone()
    changed.view(-1)[1] = value
    return changed


CONV, VAR = "layer1.0.conv1.weight", "layer1.0.bn1.running_var"
STRANGE = {
    "NaN": (CONV, lambda t: damaged(float("nan"), t)),
    "NaN in a half": (CONV, lambda t: damaged(float("nan"), t.half())),
    "Inf": (CONV, lambda t: damaged(float("inf"), t)),
    "-Inf": (VAR, lambda t: damaged(float("-inf"), t)),
    "NaN in a variance": (VAR, lambda t: damaged(float("nan"), t)),
    "a negative variance": (VAR, lambda t: damaged(-1.0, t)),
    "NaN in the classifier": ("fc.bias", lambda t: damaged(float("nan"), t)),
    "int8": (CONV, lambda t: t.to(torch.int8)),
    "int64": (CONV, lambda t: t.to(torch.int64)),
    "bool": (CONV, lambda t: t > 0),
    "complex": (CONV, lambda t: t.to(torch.complex64)),
    "float8": (CONV, lambda t: t.to(torch.float8_e4m3fn)),
    "quantised": (CONV, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "sparse": (CONV, lambda t: t.to_sparse()),
    "huge sparse": (CONV, lambda t: torch.sparse_coo_tensor(size=(1 << 30, 1 << 30))),
    "a sparse variance": (VAR, lambda t: t.to_sparse()),
    "sparse rows": (CONV, lambda t: t.flatten(1).to_sparse_csr()),
    "without data": (CONV, lambda t: t.to("meta")),
    "a variance without data": (VAR, lambda t: t.to("meta")),
    "expanded": (CONV, lambda t: torch.zeros(1).expand(1 << 20, 1 << 20, 1, 1)),
    "an expanded channel": (VAR, lambda t: torch.ones(1).expand(1 << 40)),
    "an expanded classifier": ("fc.weight", lambda t: torch.zeros(1).expand(1 << 20, 512 * 4)),
    "an expanded extra": ("extra", lambda t: torch.zeros(1).expand(1 << 40)),
    "no dimensions": (CONV, lambda t: torch.tensor(1.0)),
    "no elements": (CONV, lambda t: t[:0]),
    "a parameter of no tensor": (CONV, lambda t: [1.0, 2.0]),
    "None": (CONV, lambda t: None),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", STRANGE)
def test_strange_tensors_are_refused_with_their_name(case, state, tmp_path):
    name, change = STRANGE[case]
    file = tmp_path / "w.pth"
    torch.save({**state, name: change(state.get(name))}, file)
    assert_refused(file, tmp_path, readable=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", ["sparse", "quantised", "without data", "complex", "expanded"])
def test_strange_tensors_do_not_reach_a_network(case, tmp_path):
    model = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict()})
    model["backbone"]["stem"] = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 8, 1, bias=False)})
    name = "backbone.stem.conv1.weight"
    tensor = STRANGE[case][1](model.state_dict()[name])
    torch.save({"model": {name: tensor}}, tmp_path / "w.pth")
    line = refusal(lambda: StrictCheckpointer(model).load(str(tmp_path / "w.pth")))
    assert str(tmp_path / "w.pth") in line


def test_expanded_counters_take_no_memory(state, tmp_path):
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    huge = {name: torch.zeros(1, dtype=torch.int64).expand(1 << 40) for name in counters}
    torch.save({**state, **huge}, tmp_path / "w.pth")
    kind, text, seconds, grown = in_a_child(
        lambda: convert_file(tmp_path / "w.pth", tmp_path / "out.pth")
    )
    assert kind in ("accepted", "refused"), text
    assert seconds < 2 * SECONDS
    assert grown < 8 * MEGABYTES


def load_strictly(path):
    StrictCheckpointer(torch.nn.ModuleDict({"backbone": torch.nn.Linear(1, 1)})).load(str(path))


@pytest.mark.parametrize("read", [read_file, load_strictly])
def test_what_is_no_file_is_refused(read, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    (tmp_path / "nowhere.pth").symlink_to(tmp_path / "absent.pth")
    for path, says in (
        (tmp_path / "folder.pth", "is a directory, not a weight file"),
        (tmp_path / "absent.pth", "does not exist"),
        (tmp_path / "nowhere.pth", "does not exist"),
        (tmp_path / "loop.pth", "cannot be read"),
        (tmp_path / "folder.pth" / "w.pth", "does not exist"),
        (tmp_path / f"{'x' * 300}.pth", "cannot be read"),
    ):
        line = refusal(lambda path=path: read(path))
        assert str(path) in line
        assert says in line


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_refused_without_reading_on(device, tmp_path):
    assert_refused(Path(device), tmp_path)


@pytest.mark.parametrize("read", [read_file, load_strictly])
def test_a_pipe_without_a_writer_does_not_hang(read, tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in refusal(lambda: read(tmp_path / "w.pth"))


def test_a_file_without_permission_is_refused(state, tmp_path, monkeypatch):
    file = tmp_path / "w.pth"
    torch.save(state, file)
    plain = Path.open

    def denied(path, *arguments, **keywords):
        if path == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in assert_refused(file, tmp_path)


def half_written(content, path, error):
    Path(path).write_bytes(b"half of a file")
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("older", [None, b"an older file"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_interrupted_write_leaves_the_older_file(
    suffix, older, error, state, tmp_path, monkeypatch
):
    torch.save(state, tmp_path / "w.pth")
    out = tmp_path / f"out{suffix}"
    if older:
        out.write_bytes(older)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(torch, "save", lambda c, path, *a: half_written(c, path, error))
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda c, path, *a: half_written(c, path, error)
    )
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(kind, match="" if kind is KeyboardInterrupt else str(out)):
        convert_file(tmp_path / "w.pth", out)
    assert sorted(tmp_path.iterdir()) == before
    if older:
        assert out.read_bytes() == older


@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_disk_that_fills_up_is_one_line(suffix, limit, state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"an older file")
    before = sorted(tmp_path.iterdir())

    def convert():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        convert_file(tmp_path / "w.pth", out)

    kind, text, *_ = in_a_child(convert)
    assert sorted(tmp_path.iterdir()) == before
    assert out.read_bytes() == b"an older file"
    assert kind == "refused", text
    assert str(out) in text
    assert "\n" not in text


def test_a_checkpoint_that_does_not_fit_on_the_disk_keeps_the_last_one(tmp_path):
    model = torch.nn.Linear(200, 200)
    checkpointer = StrictCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        checkpointer.save("model_final")

    kind, text, *_ = in_a_child(save)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert kind == "refused", text


def test_a_failed_proof_writes_nothing(state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / "w.pth")
    monkeypatch.setattr("resnext_det.weights.convert.TOLERANCE", -1.0)
    assert "the proof failed" in assert_refused(tmp_path / "w.pth", tmp_path, readable=True)


def test_two_writers_of_one_file_leave_one_whole_file(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    out = tmp_path / "out.pth"
    writers = [
        threading.Thread(target=convert_file, args=(tmp_path / "w.pth", out)) for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert "recipe" in read_file(out).content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "w.pth"]
