"""Loading files of torch.export of which nobody knows who wrote them.

`torch.export.load` says itself that it unpickles; it also evaluates sizes as Python expressions and
calls any function below `torch` by its name. So everything in a file is looked at first, through
PyTorch's own reader, and what no exported detector needs is refused.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from .card import MAX_LENGTH, MEMBER
from .optional import quiet

# Operations of detectors, without those that reach beyond tensors (aten has from_file and save)
_OPERATIONS = """
    __and__ _convolution _to_copy Int ScalarImplicit add add_ all amax arange argsort as_tensor
    avg_pool2d batch_norm cat clamp clone contiguous conv2d conv_transpose2d copy_ detach detach_
    device div div_ empty eq exp expand expm1 eye flatten flip floor floor_ floor_divide full ge
    gelu group_norm gt index index_put_ index_select is_floating_point isfinite layer_norm le
    leaky_relu lift_fresh_copy linear log log2 logical_and logical_not lt masked_select matmul max
    max_pool2d maximum mean min minimum mul neg ne new_zeros nms nonzero NumToTensor ones ones_like
    pad permute pow relu relu_ remainder repeat reshape roi_align roi_pool rsub select sigmoid silu
    size slice softmax sort split sqrt squeeze stack sub sum sym_size tensor to topk transpose
    unbind unsqueeze upsample_bilinear2d upsample_nearest2d view where zeros zeros_like
"""
KNOWN_OPERATIONS = frozenset(_OPERATIONS.split())
_TENSOR = re.compile(r"torch\.ops\.(?:aten|torchvision)\.(\w+)\.\w+")
_PYTHON = re.compile(
    r"_operator\.(?:add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge)"
    r"|torch\.sym_(?:min|max|not|float|int)"
)

# The symbols of sizes, e.g. "FloorDiv(Add(Symbol('s1', positive=True), Integer(-1)), Integer(2))"
_WORDS = """
    Symbol positive integer nonnegative True False Integer Add Mul Pow Min Max Mod PythonMod
    FloorDiv CeilDiv CleanDiv IntTrueDiv ModularIndexing Eq Ne Lt Le Gt Ge And Or Not
"""
_KNOWN_WORDS = frozenset(_WORDS.split())
_SIZE = re.compile(r"[A-Za-z_]\w*|-?\d+|[(), =]|'")
_SYMBOL = re.compile(r"[su]\d+")

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json"
    r"|data/(?:weights|constants)/(?:model_(?:weights|constants)_config\.json|\w+)"
    r"|data/sample_inputs/model\.pt|extra/" + re.escape(MEMBER)
)
_FORBIDDEN_KEYS = ("custom_obj", "as_graph", "as_operator", "opaque")
_FIELDS = frozenset(("stack_trace", "nn_module_stack", "torch_fn"))
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def load_exported(file: Path) -> tuple[str, nn.Module]:
    """Load a .pt2 file.

    Returns:
        The text of its card, and the module.

    Raises:
        UserError: if it holds anything that an exported detector does not.
    """
    content, reader = read_archive(file, _MEMBERS)
    _check_program(json.loads(reader.get_record("models/model.json")), file)
    for kind in ("weights", "constants"):
        entries = json.loads(reader.get_record(f"data/{kind}/model_{kind}_config.json"))["config"]
        for name, entry in entries.items():
            path = entry["path_name"]
            plain = re.fullmatch(r"(?:weight|tensor)_\d+", path)
            if entry["use_pickle"] is not False or not plain:
                raise UserError(f"{file} is refused: {name[:80]!r} in it is a pickle")
    try:
        torch.load(io.BytesIO(reader.get_record("data/sample_inputs/model.pt")), weights_only=True)
    except Exception as error:
        raise UserError(f"{file} is refused: its sample inputs are more than tensors") from error
    text = card_in(reader)
    with quiet():  # it logs tracebacks of damaged files
        return text, torch.export.load(io.BytesIO(content)).module()


def read_archive(file: Path, members: re.Pattern) -> tuple[bytes, torch._C.PyTorchFileReader]:
    """Read a file once, so that what is checked is what is loaded, and open it as an archive.

    Raises:
        UserError: if it has a member whose name is none of `members`, or is compressed, which
            PyTorch's writer does not do and which could fill the memory.
    """
    content = file.read_bytes()
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    size = 0
    for name in reader.get_all_records():
        if not members.fullmatch(name):
            raise UserError(f"{file} is refused: it holds {name[:80]!r}")
        size += reader.get_record_size(name)
    if size > len(content):
        raise UserError(f"{file} is refused: what it holds is larger than itself")
    return content, reader


def card_in(reader: torch._C.PyTorchFileReader) -> str:
    """The text of an archive's card; empty where there is none."""
    name = f"extra/{MEMBER}"
    if name not in reader.get_all_records():
        return ""
    return reader.get_record(name)[: 4 * MAX_LENGTH].decode("utf-8", "replace")


def _check_program(program: dict, file: Path) -> None:
    """Refuse what loading would evaluate, import or call beyond operations on tensors."""
    graph_module = program["graph_module"]
    if program["guards_code"] or graph_module["treespec_namedtuple_fields"]:
        raise UserError(f"{file} is refused: it holds Python code")
    for name in program["range_constraints"]:
        if not _SYMBOL.fullmatch(name):
            raise UserError(f"{file} is refused: it names a size {name[:80]!r}")
    for node in graph_module["graph"]["nodes"]:
        _check_target(node["target"], file)
        if not set(node["metadata"]) <= _FIELDS:
            raise UserError(f"{file} is refused: a node has fields {sorted(node['metadata'])}")
    for key, value in _walk(program):
        if any(word in key for word in _FORBIDDEN_KEYS) and value:
            raise UserError(f"{file} is refused: it holds an object of kind {key[:80]!r}")
        if key == "expr_str":
            _check_size(value, file)
        if key in ("in_spec", "out_spec") and isinstance(value, str):
            _check_tree(json.loads(value), file)


def _check_target(target: str, file: Path) -> None:
    operation = _TENSOR.fullmatch(target)
    if operation:
        is_known = operation[1] in KNOWN_OPERATIONS
    else:
        is_known = _PYTHON.fullmatch(target) is not None
    if not is_known:
        raise UserError(f"{file} is refused: it calls {target[:80]!r}")


def _check_size(text: str, file: Path) -> None:
    """Sizes are evaluated as Python: only sums, products and the like of whole numbers may be."""
    tokens = _SIZE.findall(text)
    words = [token for token in tokens if token[0].isalpha() or token[0] == "_"]
    known = all(word in _KNOWN_WORDS or _SYMBOL.fullmatch(word) for word in words)
    if "".join(tokens) != text or not known:
        raise UserError(f"{file} is refused: it holds a size {text[:80]!r}")


def _check_tree(tree: object, file: Path) -> None:
    for key, value in _walk(tree):
        if key == "type" and value not in _TREE_TYPES:
            raise UserError(f"{file} is refused: its inputs or outputs have type {value!r}")
        if key == "context":  # null, or the keys of a dict
            keys = json.loads(value or "null") or []
            if not isinstance(keys, list) or not all(isinstance(name, str) for name in keys):
                raise UserError(f"{file} is refused: its outputs are made by {value[:80]!r}")


def _walk(value: object) -> Iterator[tuple[str, object]]:
    """All keys with their values in nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
