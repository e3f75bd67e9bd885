"""Loading TorchScript files of which nobody knows who wrote them.

`torch.jit.load` runs no Python, but operations of TorchScript, which may write files, and not only
when the module is called: default values of arguments, constants of classes, `__setstate__` and
C++ classes are run while it loads. So the shape of the code is checked before, and each operation
in the graph that PyTorch has made of it before anything is called.
"""

import ast
import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .card import MEMBER
from .untrusted import KNOWN_OPERATIONS, card_in, read_archive

_MEMBERS = re.compile(
    r"version|byteorder|\.data/serialization_id|data\.pkl|constants\.pkl|(?:data|constants)/\d+"
    r"|code/__torch__/[\w/]+\.py|extra/" + re.escape(MEMBER)
)

# What torch.jit.trace writes: no comments, escapes or second kind of quotes, of which Python's
# parser and PyTorch's own could think differently
_QUOTED = re.compile(r'"[\w.\-]*"(?!")', re.ASCII)
_TEXT = re.compile(r"[\w \n(),\-+.:=>\[\]]*", re.ASCII)
_MOST_CODE = 4 * 1024**2  # bytes; deep detectors have a tenth
_NODES = (
    ast.Return, ast.Assign, ast.AnnAssign, ast.Call, ast.keyword, ast.Name, ast.Attribute,
    ast.Subscript, ast.Tuple, ast.List, ast.Constant, ast.UnaryOp, ast.USub, ast.expr_context,
)  # fmt: skip
_TYPE_NODES = (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.Constant, ast.expr_context)
_LISTS = ("__parameters__", "__buffers__", "__annotations__")
_METHOD = re.compile(r"forward\d*")

_OPERATION = re.compile(r"(?:aten|torchvision)::(\w+)")
_PRIMITIVE = re.compile(
    r"prim::(?:Constant|GetAttr|If|NumToTensor|(?:List|Tuple)(?:Construct|Unpack))"
)

Detect = Callable[[Tensor], tuple[Tensor, ...]]


def load_scripted(file: Path) -> tuple[str, Detect]:
    """Load a TorchScript file.

    Returns:
        The text of its card, and the function from an image to its outputs.

    Raises:
        UserError: if it holds anything that an exported detector does not.
    """
    content, reader = read_archive(file, _MEMBERS)
    for name in reader.get_all_records():
        if name.endswith(".pkl") and b"classes" in reader.get_record(name):
            raise UserError(f"{file} is refused: {name} in it names a class of C++")
        if name.endswith(".py") and (reason := _suspect(reader.get_record(name))):
            raise UserError(f"{file} is refused: {name[:80]!r} in it {reason}")
    text = card_in(reader)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of TorchScript's age
        module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    for kind in _kinds(module.inlined_graph):
        operation = _OPERATION.fullmatch(kind)
        is_known = operation is not None and operation[1] in KNOWN_OPERATIONS
        if not is_known and not _PRIMITIVE.fullmatch(kind):
            raise UserError(f"{file} is refused: its code calls {kind[:80]!r}")
    return text, module.forward


def _kinds(block: torch.Graph | torch.Block) -> Iterator[str]:
    """The kinds of all nodes, also within branches and loops."""
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)


def _suspect(code: bytes) -> str | None:
    """Why code is more than classes with types of attributes and methods `forward`; or None."""
    if len(code) > _MOST_CODE:
        return "has more code than any detector"
    text = code.decode("utf-8", "replace")
    if not _TEXT.fullmatch(_QUOTED.sub("", text)):
        return "has characters that the code of no detector has"
    try:
        classes = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "has code that cannot be parsed"
    for each in classes:
        if not isinstance(each, ast.ClassDef) or each.decorator_list or each.keywords:
            return "has more than classes"
        if [ast.dump(base) for base in each.bases] != [ast.dump(ast.Name("Module", ast.Load()))]:
            return f"has a class {each.name[:80]!r} that is no module"
        for statement in each.body:
            if not (_is_method(statement) or _is_declaration(statement)):
                return f"has a class {each.name[:80]!r} of more than plain methods and attributes"
    return None


def _is_method(statement: ast.stmt) -> bool:
    """Whether it is `forward` without default values, and defines nothing within."""
    if not isinstance(statement, ast.FunctionDef) or not _METHOD.fullmatch(statement.name):
        return False
    named = statement.args
    more = named.defaults, named.kwonlyargs, named.vararg, named.kwarg, statement.decorator_list
    return not any(more) and all(_consists_of(line, _NODES) for line in statement.body)


def _is_declaration(statement: ast.stmt) -> bool:
    """Whether it is the type of an attribute, or a list of names."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None and _consists_of(statement.annotation, _TYPE_NODES)
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target, value = statement.targets[0], statement.value
    if isinstance(target, ast.Name):
        is_list = isinstance(value, ast.List) and _consists_of(value, (ast.List, *_TYPE_NODES))
        return target.id in _LISTS and is_list
    # __annotations__["0"] = Tensor
    is_entry = isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name)
    return is_entry and target.value.id == _LISTS[2] and _consists_of(value, _TYPE_NODES)


def _consists_of(tree: ast.AST, kinds: tuple[type, ...]) -> bool:
    return all(isinstance(node, kinds) for node in ast.walk(tree))
