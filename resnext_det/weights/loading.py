"""Loading that cannot fail in silence.

Detectron2 skips tensors that are absent from a file or have another shape, with a warning. Here a
network that is only partly loaded is an error. Nothing in a file is executed.
"""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor, nn

from ..atomic import replacing
from ..errors import UserError
from ..modeling import convert_form, form_of
from .agreement import YAML_WORDS, ConfigWords, require_agreement
from .arrival import Arrival, Shape, body_names, is_counter
from .files import RawFile, read_file, readable, recipe_in, require_plain, save_atomically
from .recipe import Recipe, Settings
from .sources.caffe2 import complete_merged_norms

logger = logging.getLogger(__name__)


class StrictCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; refuses a partly loaded network and writes files atomically.

    After `load`, all tensors of the ResNeXt (stem, res2..res5) have come from the file. Heads and
    FPN may be new, as they are when training starts from ImageNet weights, unless `whole_model`.

    A file that carries a recipe has to agree with the config's `settings`. Checkpoints saved here
    carry the recipe of the weights that training started from, or one made of `settings`.

    Attributes:
        summary: how much of the model came from which file, in words.
        notes: more that each file tells, as plain values.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        settings: Settings | None = None,
        words: ConfigWords = YAML_WORDS,
        **checkpointables: object,
    ) -> None:
        """
        Args:
            model: to load into and save.
            save_dir: where `save` writes.
            settings: what the config says; None leaves recipes unchecked.
            words: how the config says these, for messages.
            **checkpointables: see `Checkpointer`.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.whole_model = False
        self.summary = "none loaded"
        self.recipe = Recipe.of(settings, "resnext_det") if settings else None
        self.notes: dict[str, object] = {}
        self._settings = settings
        self._words = words
        self._found = False  # a checkpoint to resume from, which no config names
        self._resuming = False
        self._file = ""
        self._has_recipe = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """See `Checkpointer.resume_or_load`; a checkpoint of our own must fit wholly."""
        self._found = resume and self.has_checkpoint()
        self.whole_model = self.whole_model or self._found
        self._resuming = self._found and bool(self.checkpointables)
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, *args: object, **kwargs: object) -> dict:
        """Load a checkpoint.

        Raises:
            UserError: if the file is absent or not readable, disagrees with the config, or if not
                all of the ResNeXt (with `whole_model`: of the model) comes from it.
        """
        self._file = path
        try:
            if path and "://" not in path:
                with readable(Path(path.split("?")[0])):
                    pass
            return super().load(path, *args, **kwargs)
        except UserError as error:
            named = "" if self._found else f"{self._words.weights} "
            raise UserError(f"{named}{error}") from error
        except OSError as error:  # a download
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{self._words.weights} {path} cannot be read ({reason}); name a local file, or "
                f"set {self._words.weights} '' to train from scratch"
            ) from error
        finally:
            self._parsed_url_during_load = None

    def save(self, name: str, **kwargs: object) -> None:
        """See `Checkpointer.save`; a crash leaves the old file or the new one."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        self.save_weights(name, self.model.state_dict(), **states, **kwargs)
        with replacing(Path(self.save_dir) / "last_checkpoint") as temporary:
            temporary.write_text(f"{name}.pth", encoding="utf-8")

    def save_weights(self, name: str, weights: Mapping[str, Tensor], **content: object) -> None:
        """Write `save_dir`/name.pth, whole or not at all, without marking it as the last one.

        Raises:
            UserError: if it cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": dict(weights), **self.notes, **content}
        if "stem.conv1.weight" in weights:  # Detectron2 finds a bare backbone in a detector by this
            content["matching_heuristics"] = True
        if self.recipe is not None:
            content["recipe"] = self.recipe.as_dict()
        save_atomically(content, Path(self.save_dir) / f"{name}.pth")

    def _load_file(self, filename: str) -> dict:
        raw = read_file(filename)
        if raw.kind == "t7":
            raise UserError(f"{self._file} is a Torch7 file: {_convert_hint(self._file)}")
        self._check_recipe(raw)
        content = dict(raw.content)
        if "model" not in content:
            content = {"model": content.get("blobs", content)}
        weights = content["model"]
        if not isinstance(weights, dict) or not all(
            isinstance(v, Tensor) for v in weights.values()
        ):
            holds = list(weights) if isinstance(weights, dict) else [type(weights).__name__]
            raise UserError(
                f"{self._file} is no dict of tensors (it holds {', '.join(map(str, holds[:5]))}): "
                f"{_convert_hint(self._file)}"
            )
        require_plain(weights, self._file)
        if raw.kind == "pickle" and content.get("__author__", "Caffe2") == "Caffe2":
            weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
            merged = any("_bn_s" in name for name in weights)
            content["model"], _ = convert_c2_detectron_names(weights)
            if merged:
                complete_merged_norms(content["model"])
            content["matching_heuristics"] = True
        content.pop("__author__", None)
        # a bare backbone's tensors lie deeper in a detector
        if any(name.startswith("stem.") for name in weights):
            content["matching_heuristics"] = True
        query = parse_qs(self._parsed_url_during_load.query if self._parsed_url_during_load else "")
        if query.pop("matching_heuristics", ["False"]) == ["True"]:
            content["matching_heuristics"] = True
        if query:
            raise UserError(f"{self._file}: unknown query {', '.join(query)}")
        return content

    def _check_recipe(self, raw: RawFile) -> None:
        recipe = recipe_in(raw, self._file)
        self._has_recipe = recipe is not None
        if recipe is None:
            if self._settings is not None:
                self.recipe = Recipe.of(self._settings, "unknown")
            return
        if self._settings is not None:
            require_agreement(recipe, self._settings, self._file, self._words)
        self.recipe = recipe

    def _load_model(self, checkpoint: dict) -> object:
        weights = checkpoint["model"]
        form = form_of(self.model.state_dict())
        if form != form_of(weights):
            if self._resuming:
                raise UserError(
                    f"{self._file} was trained in another MODEL.RESNEXT.FORM than {form}, with "
                    "its optimizer: resume in that form, or start from it as MODEL.WEIGHTS"
                )
            logger.info("converting the weights to the model's form %s of Fig. 3, exactly", form)
            try:
                weights = checkpoint["model"] = convert_form(weights, form)
            except ValueError as error:
                raise UserError(f"{self._file}: {error}") from error
        in_file = {name: tuple(value.shape) for name, value in weights.items()}
        model = {
            name: tuple(value.shape)
            for name, value in self.model.state_dict().items()
            if not is_counter(name)
        }
        # before Detectron2 fits names, which prints a warning for each tensor that does not fit
        self._require_whole(Arrival.expected(model, in_file))
        incompatible = super()._load_model(checkpoint)
        lost = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
        self._check_arrival(model, in_file, lost)
        return incompatible

    def _log_incompatible_keys(self, incompatible: object) -> None:
        """Detectron2 prints a line for each tensor of the heads; `load` says it in one."""
        logger.debug("%s", incompatible)

    def _require_whole(self, arrival: Arrival) -> None:
        if not arrival.is_whole:
            raise UserError(f"{self._file}: {arrival.explain(_convert_hint(self._file))}")

    def _check_arrival(
        self, model: Mapping[str, Shape], in_file: Mapping[str, Shape], lost: set[str]
    ) -> None:
        arrival = Arrival.of(model, in_file, lost)
        self._require_whole(arrival)
        body = body_names(model)
        heads = [name for name in model if name not in body]
        absent = [name for name in heads if name in lost]
        if self.whole_model and absent:
            own, other = model.get("linear.weight"), in_file.get("linear.weight")
            if own and other and own[0] != other[0]:
                raise UserError(
                    f"{self._file} tells {other[0]} classes apart, CLASSIFIER.NUM_CLASSES is "
                    f"{own[0]}"
                )
            raise UserError(
                f"{self._file}: {len(absent)} of {len(model)} tensors of the model did not load, "
                f"e.g. {', '.join(absent[:5])}: it holds another detector than the config names, "
                "or a backbone alone"
            )
        if not self._has_recipe:
            logger.warning(
                "%s carries no recipe: whether INPUT.FORMAT, PIXEL_MEAN, PIXEL_STD and "
                "STRIDE_IN_1X1 are its own cannot be checked%s",
                self._file,
                "" if self.whole_model else " (tools/convert_weights.py adds one)",
            )
        logger.info("weights: %s", self._file)
        arrived = len(heads) - len(absent)
        self.summary = (
            f"backbone: {arrival.loaded}/{arrival.total} tensors loaded; heads: "
            f"{arrived}/{len(heads)}"
        )
        note = " (the others start from random values, as they do from ImageNet weights)"
        logger.info("%s%s", self.summary, note if absent else "")


def _convert_hint(file: str) -> str:
    return (
        f"convert it first: python tools/convert_weights.py {shlex.quote(file)} OUT.pth, then "
        "MODEL.WEIGHTS OUT.pth"
    )
