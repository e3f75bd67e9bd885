"""An int8 detector: its parts in memory and on disk, tied to the detector that they are of."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..atomic import PREFIX
from ..errors import UserError, one_line
from ..weights.download import sha256_of
from .compiled import optimize, rebuild
from .engines import OpenVINORun, Run
from .optional import import_package, openvino_core
from .options import parse_how
from .parts import Call, Part, PartModule, find_parts

VERSION = 1
_RECORD = "quantized.json"
_MOST_BYTES = 2**20  # of a record


@dataclass(frozen=True)
class Quantized:
    """A detector's parts with int8 weights and activations.

    Attributes:
        models: an `openvino.Model` for the name of each part.
        fingerprint: of the detector that they were made of, see `fingerprint_of`.
    """

    models: Mapping[str, object]
    fingerprint: str

    def detector(self, model: nn.Module, *, streams: int = 1) -> nn.Module:
        """Copy a detector with these parts in the place of its own.

        Args:
            model: the detector that they were made of, with its weights; it is not changed.
            streams: see `optimize`.

        Raises:
            UserError: for a detector with other weights or parts.
        """
        if fingerprint_of(model) != self.fingerprint:
            raise UserError(
                "the int8 model was made of another detector, or other weights: quantise this one, "
                "or name the weights and config that it was made of"
            )

        def build(part: Part, module: PartModule, call: Call) -> Run:
            if part.name not in self.models:
                raise UserError(f"the int8 model lacks the detector's {part.name}: quantise again")
            return OpenVINORun(self.models[part.name], "f32", streams)

        return rebuild(model, build)

    def save(self, folder: Path, record: Mapping) -> None:
        """Write the parts (`NAME.xml`, `NAME.bin`) and `quantized.json`, whole or not at all.

        Args:
            folder: replaced if it holds an int8 model already.
            record: what is known of the model, e.g. its AP; plain values.

        Raises:
            UserError: if the folder cannot be written, or holds anything else.
        """
        openvino = import_package("openvino")
        require_free(folder)
        temporary = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder.parent))
            for name, model in self.models.items():
                openvino.save_model(model, temporary / f"{name}.xml", compress_to_fp16=False)
            files = sorted(temporary.iterdir())
            known = {
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "sha256": {f.name: sha256_of(f) for f in files},
                **record,
            }
            text = json.dumps(known, indent=2, allow_nan=False) + "\n"
            (temporary / _RECORD).write_text(text, encoding="utf-8")
            temporary.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        except (OSError, RuntimeError) as error:  # of OpenVINO, which tells no more of a full disk
            reason = getattr(error, "strerror", None) or one_line(error)
            raise UserError(f"{folder} cannot be written: {reason}") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> "Quantized":
        """Read what `save` wrote. OpenVINO's files hold layers and numbers, and no code.

        Raises:
            UserError: if OpenVINO is absent, or the folder holds no such model.
        """
        core = openvino_core()
        file = folder / _RECORD
        try:
            if file.stat().st_size > _MOST_BYTES:
                raise ValueError("its record is too large")
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["version"] != VERSION:
                raise ValueError(f"version {record['version']!r} is not {VERSION}")
            fingerprint, digests = str(record["fingerprint"]), dict(record["sha256"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{folder} holds no int8 model ({_RECORD}: {reason})") from error
        for name, digest in digests.items():
            _check_file(folder, name, digest)
        parts = sorted(name.removesuffix(".xml") for name in digests if name.endswith(".xml"))
        try:
            return cls({n: core.read_model(folder / f"{n}.xml") for n in parts}, fingerprint)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{folder} cannot be read by this OpenVINO: {reason}") from error


def require_free(folder: Path) -> None:
    """Check that an int8 model may be written into `folder`.

    Raises:
        UserError: if there is something else.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: remove it, or name another OUTPUT_DIR")
    if folder.exists() and not (folder / _RECORD).is_file():
        raise UserError(f"{folder} is in the way: it is no int8 model, remove it first")


def _check_file(folder: Path, name: str, digest: str) -> None:
    if Path(name).name != name:
        raise UserError(f"{folder / _RECORD} names a file {name!r}: files lie in its own folder")
    file = folder / name
    if not file.is_file():
        raise UserError(f"{file} is absent: quantise again")
    if sha256_of(file) != digest:
        raise UserError(f"{file} is damaged, it is not what was written: quantise again")


def fingerprint_of(model: nn.Module) -> str:
    """The sha256 of a detector's tensors, and of what its parts are besides: strides and the like.

    Thresholds and other settings of what is not compiled do not count.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for part in find_parts(model):
        for name, module in part.module(model).named_modules():
            fusion = getattr(module, "_fuse_type", "")  # of FPN
            digest.update(f"{part.name} {name} {module.extra_repr()} {fusion}\n".encode())
    return digest.hexdigest()


def optimize_as(model: nn.Module, how: str) -> nn.Module:
    """Optimise a detector as a command line's `--optimize` says.

    Args:
        model: see `optimize`.
        how: "f32", "bf16", or the folder of an int8 model that was made of `model`.

    Raises:
        UserError: see `parse_how`, `optimize` and `Quantized.load`; for "int8", which needs images.
    """
    precision, folder = parse_how(how, int8=False)
    if folder is not None:
        return Quantized.load(folder).detector(model)
    return optimize(model, precision)
