"""Loading that cannot fail in silence.

Detectron2 skips tensors that are absent from a file or have another shape, with a warning. Here a
network that is only partly loaded is an error. Nothing in a file is executed.
"""

import io
import logging
import pickle
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
        self._file = ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """See `Checkpointer.resume_or_load`; a checkpoint of our own must fit wholly."""
        self.whole_model = self.whole_model or (resume and self.has_checkpoint())
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
        return super().load(path, *args, **kwargs)

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
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        data = read_pickle(filename)
        if "model" in data and "__author__" in data:
            return data
        blobs = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{self._file} is not a readable checkpoint: {reason}") from error

    def _load_model(self, checkpoint: dict) -> object:
        if checkpoint.get("__author__") == "Caffe2":
            checkpoint["model"], _ = convert_c2_detectron_names(checkpoint["model"])
            checkpoint["__author__"] = "converted from Caffe2's names"
        self._convert_ndarray_to_tensor(checkpoint["model"])
        form = form_of(self.model.state_dict())
        if form != form_of(checkpoint["model"]):
            logger.info("converting the weights to the model's form %s of Fig. 3, exactly", form)
            checkpoint["model"] = convert_form(checkpoint["model"], form)
        in_file = {name: tuple(value.shape) for name, value in checkpoint["model"].items()}
        incompatible = super()._load_model(checkpoint)
        missing = {name for name in incompatible.missing_keys if not _is_counter(name)}
        missing |= {name for name, *_ in incompatible.incorrect_shapes}
        self._check(self.model.state_dict(), missing, in_file)
        return incompatible

    def _check(
        self,
        model: Mapping[str, Tensor],
        missing: set[str],
        in_file: Mapping[str, tuple[int, ...]],
    ) -> None:
        counted = [name for name in model if not _is_counter(name)]
        body = [name for name in counted if is_body(name)]
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
