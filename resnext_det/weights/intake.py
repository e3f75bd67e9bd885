"""A public weight file, read, renamed and checked: everything that comes before the proof."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .catalog import by_sha256
from .conventions import NOTHING_SAID, Facts, Options, convention_of, facts_of
from .download import sha256_of
from .files import RawFile, read_file, recipe_in, require_plain
from .network import Network, check_complete, network_of
from .sources import SOURCES, Conversion, detect
from .sources.prefixes import strip_prefixes, unwrap


@dataclass(frozen=True)
class Renamed:
    """The tensors of a file, in its own names and in Detectron2's.

    Attributes:
        source: a name of `SOURCES`.
        content: by the source's own names, without the prefixes of training programs; for torch7
            the tree of modules.
        conversion: by Detectron2's names, with an account of each tensor by its name in the file.
        wrapper: keys of the checkpoint that led to the tensors, "" for none.
        prefix: taken off every name.
        record: what stands beside the tensors.
    """

    source: str
    content: object
    conversion: Conversion
    wrapper: str = ""
    prefix: str = ""
    record: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """A weight file that is known to be a whole ResNeXt.

    Attributes:
        file: its path.
        sha256: its hash, 64 hexadecimal digits.
        renamed: its tensors.
        network: what they are.
        facts: what they expect.
    """

    file: str
    sha256: str
    renamed: Renamed
    network: Network
    facts: Facts


def read_input(path: Path, options: Options) -> Input:
    """Read a weight file of any source.

    Raises:
        UserError: for a file that cannot be read, has a tensor that no rule explains, is no whole
            ResNeXt, or holds values that are not finite.
    """
    if options.source is not None and options.source not in SOURCES:
        raise UserError(f"source {options.source!r} is not one of {', '.join(SOURCES)}")
    raw = read_file(path)
    sha256 = sha256_of(path)
    entry = by_sha256(sha256)
    renamed = rename_tensors(raw, str(path), options)
    tensors = renamed.conversion.tensors
    if renamed.conversion.unexplained:
        raise UserError(f"{path}: {_unexplained(renamed)}")
    recipe = recipe_in(raw, str(path))
    network = network_of(tensors, str(path), may_lack_shortcuts=recipe is not None)
    check_complete(network, tensors, str(path))
    check_values(tensors, path)
    convention = convention_of(renamed.source, network, renamed.conversion, renamed.record)
    facts = facts_of(options, recipe, entry, convention, str(path))
    return Input(str(path), sha256, renamed, network, facts)


def rename_tensors(raw: RawFile, file: str, options: Options = NOTHING_SAID) -> Renamed:
    """Find the tensors of a file, tell their source, and rename them.

    Raises:
        UserError: if there are none, no source is known for them, or two get one name.
    """
    if raw.kind == "t7":
        if options.source not in (None, "torch7"):
            raise UserError(f"{file} is a Torch7 file, not one of {options.source}")
        try:
            return Renamed("torch7", raw.content, SOURCES["torch7"].convert(raw.content))
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
    tensors, wrapper = unwrap(raw.content, file, options.wrapper)
    require_plain(tensors, file)
    names, prefix, dropped = strip_prefixes(list(tensors))
    content = {short: tensors[name] for short, name in names.items()}
    source = options.source or detect(content)
    if source is None:
        raise UserError(
            f"{file}: no source has such names: {', '.join(list(tensors)[:5])}; known are "
            f"{', '.join(SOURCES)}{_hint(list(tensors))}"
        )
    if source == "torch7":
        raise UserError(f"{file} is no Torch7 file")
    if source == "torchvision" and options.source is None and raw.kind == "safetensors":
        source = "timm"  # the one publisher of such names in that format
    try:
        conversion = SOURCES[source].convert(content)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    conversion.renamed = {names[short]: new for short, new in conversion.renamed.items()}
    conversion.unexplained = [names[short] for short in conversion.unexplained]
    conversion.dropped = {
        reason: [names[short] for short in shorts] for reason, shorts in conversion.dropped.items()
    } | dropped
    record = {k: v for k, v in raw.content.items() if isinstance(v, str | int | float)}
    meta = raw.content.get("meta")
    if isinstance(meta, Mapping):  # OpenMMLab's
        record["config"] = meta.get("config") or meta.get("cfg") or ""
    record["file_name"] = Path(file).name
    return Renamed(source, content, conversion, wrapper, prefix, record)


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that no training makes.

    Raises:
        UserError: for NaN, infinity, a negative variance, or numbers that are not floats.
    """
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not tensor.is_floating_point():
            raise UserError(f"{path}: {name} is of type {tensor.dtype}, not floating point")
        if not torch.isfinite(tensor).all():
            what = "NaN" if torch.isnan(tensor).any() else "infinity"
            raise UserError(f"{path}: {name} holds {what}: the file is damaged or diverged")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{path}: {name} is negative ({float(tensor.min()):g}): no variance")


# What the names of networks near to a ResNeXt have in them
_RELATIVES = (
    (r"\.se(_module|_layer)?\.|\.fc[12]\.|\.attn\.", "squeeze-and-excitation or attention"),
    (r"^conv1\.\d\.|stem\.conv1_\d", "a deep stem (ResNet-C/D)"),
    (r"\.downsample\.2\.", "average-pool shortcuts (ResNet-D)"),
    (r"\.gn\d?\.|^gn1\.", "group norm"),
    (r"scale$|zero_point$|_packed_params", "quantised layers"),
    (r"conv2_offset", "deformable layers"),
)


def _unexplained(renamed: Renamed) -> str:
    names = renamed.conversion.unexplained
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    better = detect(renamed.content) if isinstance(renamed.content, Mapping) else None
    other = f"; the names are {better}'s" if better not in (None, renamed.source) else ""
    return (
        f"{len(names)} tensors that no rule of {renamed.source} explains: {shown}{other}"
        f"{_hint(names)}"
    )


def _hint(names: list[str]) -> str:
    found = [what for pattern, what in _RELATIVES if any(re.search(pattern, n) for n in names)]
    return f"; it has {' and '.join(found)}, and is no plain ResNeXt" if found else ""
