"""Loading that cannot fail in silence.

Detectron2 skips tensors that are absent from a file or have another shape, with a warning. Here a
network that is only partly loaded is an error. Nothing in a file is executed.
"""

import io
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor, nn

from ..errors import UserError
from ..modeling import convert_form, form_of
from .catalog import save_atomically

logger = logging.getLogger(__name__)

# What ImageNet weights hold; every tensor under these must arrive. FPN's own layers lie beside.
_BODY_PREFIXES = ("backbone.bottom_up.", "backbone.stem.", "backbone.res", "roi_heads.res5.")

# Detectron2's pickles hold dicts, strings and NumPy arrays; these are all they need to be read.
_SAFE_GLOBALS = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _SAFE_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which weights do not need")


def read_pickle(path: Path | str) -> dict:
    """Read a Detectron or Detectron2 weight pickle: dicts, strings and NumPy arrays only.

    Raises:
        UserError: if the file is damaged or refers to anything else.
    """
    try:
        data = _ArrayUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a readable weight pickle: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a dict of weights")
    return data


class StrictCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; refuses a partly loaded network and writes files atomically.

    After `load`, all tensors of the ResNeXt (stem, res2..res5) have come from the file. Heads and
    FPN may be new, as they are when training starts from ImageNet weights, unless `whole_model`.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: object) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.whole_model = False
        self._resuming = False
        self._file = ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """See `Checkpointer.resume_or_load`; a checkpoint of our own must fit wholly."""
        found = resume and self.has_checkpoint()
        self.whole_model = self.whole_model or found
        self._resuming = found and bool(self.checkpointables)
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, *args: object, **kwargs: object) -> dict:
        """Load a checkpoint.

        Raises:
            UserError: if the file is absent or not readable, or if not all of the ResNeXt (with
                `whole_model`: of the model) comes from it.
        """
        self._file = path
        if path and "://" not in path and not Path(path.split("?")[0]).is_file():
            raise UserError(f"MODEL.WEIGHTS {path} does not exist")
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:  # a download, or a file that cannot be opened
            reason = getattr(error, "reason", error)
            raise UserError(
                f"MODEL.WEIGHTS {path} cannot be read ({reason}); name a local file, or set "
                "MODEL.WEIGHTS '' to train from scratch"
            ) from error
        finally:
            self._parsed_url_during_load = None

    def save(self, name: str, **kwargs: object) -> None:
        """See `Checkpointer.save`; a crash leaves the old file or the new one."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **states, **kwargs}
        save_atomically(content, Path(self.save_dir) / f"{name}.pth")
        marker = Path(self.save_dir) / ".last_checkpoint"
        marker.write_text(f"{name}.pth", encoding="utf-8")
        marker.replace(marker.with_name("last_checkpoint"))

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pyth"):
            raise UserError(f"{self._file}: pycls files (.pyth) are not supported")
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        data = read_pickle(filename)
        if "model" in data and "__author__" in data:
            return data
        blobs = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict:
        try:
            content = torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(
                f"{self._file} is not a readable checkpoint: it is damaged, or holds other objects "
                "than tensors, which are not loaded as they could run code"
            ) from error
        if not isinstance(content, dict):
            raise UserError(f"{self._file} holds a {type(content).__name__}, not a dict of weights")
        return content

    def _load_model(self, checkpoint: dict) -> object:
        weights = checkpoint["model"]
        if not isinstance(weights, dict) or not all(hasattr(v, "shape") for v in weights.values()):
            holds = list(weights) if isinstance(weights, dict) else [type(weights).__name__]
            raise UserError(
                f"{self._file} is no dict of tensors (it holds {', '.join(map(str, holds[:5]))}): "
                "convert it to Detectron2's names first"
            )
        if checkpoint.get("__author__") == "Caffe2":
            checkpoint["model"], _ = convert_c2_detectron_names(checkpoint["model"])
            checkpoint["__author__"] = "converted from Caffe2's names"
        self._convert_ndarray_to_tensor(checkpoint["model"])
        form = form_of(self.model.state_dict())
        if form != form_of(checkpoint["model"]):
            if self._resuming:
                raise UserError(
                    f"{self._file} was trained in another MODEL.RESNEXT.FORM than {form}, with "
                    "its optimizer: resume in that form, or start from it as MODEL.WEIGHTS"
                )
            logger.info("converting the weights to the model's form %s of Fig. 3, exactly", form)
            try:
                checkpoint["model"] = convert_form(checkpoint["model"], form)
            except ValueError as error:
                raise UserError(f"{self._file}: {error}") from error
        in_file = {name: tuple(value.shape) for name, value in checkpoint["model"].items()}
        incompatible = super()._load_model(checkpoint)
        missing = {name for name in incompatible.missing_keys if not _is_counter(name)}
        missing |= {name for name, *_ in incompatible.incorrect_shapes}
        self._check(self.model.state_dict(), missing, in_file)
        return incompatible

    def _check_excess(self, body: Iterable[str], in_file: Iterable[str]) -> None:
        """Refuse a file with more in a stage than the model has: deeper, or with shortcuts."""
        known = [_stage_and_name(name) for name in body]
        stages = {found[0] for found in known if found}
        names = {found[1] for found in known if found}
        excess = [
            name
            for name in in_file
            if (found := _stage_and_name(name))
            and not _is_counter(name)
            and found[0] in stages
            and found[1] not in names
        ]
        if excess:
            raise UserError(
                f"{self._file} holds {len(excess)} tensors that the config's network has no place "
                f"for, e.g. {excess[0]}: it is another network (depth, shortcuts, norm)"
            )

    def _check(
        self,
        model: Mapping[str, Tensor],
        missing: set[str],
        in_file: Mapping[str, tuple[int, ...]],
    ) -> None:
        counted = [name for name in model if not _is_counter(name)]
        body = [name for name in counted if is_body(name)]
        self._check_excess(body, in_file)
        heads = [name for name in counted if not is_body(name)]
        required = [*body, *heads] if self.whole_model else body
        absent = [name for name in required if name in missing]
        if absent:
            shown = [_describe(name, model[name], in_file) for name in absent[:5]]
            unused = [name for name in in_file if not _ends_any(name, model)]
            raise UserError(
                f"{self._file}: {len(absent)} of {len(required)} tensors of the "
                f"{'model' if self.whole_model else 'backbone'} did not load: it holds another "
                "network than the config names (depth, NUM_GROUPS, WIDTH_PER_GROUP), or is not in "
                f"Detectron2's names. Not loaded: {'; '.join(shown)}"
                f"{'; ...' if len(absent) > 5 else ''}. "
                f"Unused in the file: {', '.join(unused[:5]) or 'none'}"
            )
        logger.info(
            "weights %s: backbone %d/%d tensors loaded, heads %d/%d",
            self._file,
            len(body),
            len(body),
            sum(name not in missing for name in heads),
            len(heads),
        )


def _stage_and_name(name: str) -> tuple[str, str] | None:
    """E.g. backbone.bottom_up.res4.0.conv1.weight -> (res4, res4.0.conv1.weight)."""
    match = re.search(r"(?:^|\.)((res\d)\.\d+\..+)$", name)
    return match and (match[2], match[1])


def is_body(name: str) -> bool:
    """Whether a detector's tensor belongs to the ResNeXt (stem, res2..res5, a C4 head's res5)."""
    return name.startswith(_BODY_PREFIXES)


def _is_counter(name: str) -> bool:
    """BN's count of batches, which matters to no result and is absent from many files."""
    return name.endswith("num_batches_tracked")


def _ends_any(name: str, names: Iterable[str]) -> bool:
    return any(other == name or other.endswith(f".{name}") for other in names)


def _describe(name: str, tensor: Tensor, in_file: Mapping[str, tuple[int, ...]]) -> str:
    matches = [n for n in in_file if name == n or name.endswith(f".{n}")]
    if not matches:
        return f"{name} (absent)"
    shape = in_file[max(matches, key=len)]
    return f"{name} (file {shape}, model {tuple(tensor.shape)})"
