"""Whether all tensors of a backbone came from a file, and why not."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .sources import detect

Shape = tuple[int, ...]

# What ImageNet weights hold; every tensor under these must arrive. FPN's own layers lie beside.
_BODY = re.compile(r"^(?:backbone\.bottom_up|backbone|roi_heads)\.((?:stem|res\d)\..+)$")
_BARE = re.compile(r"^(?:.*\.)?((?:stem|res\d)\..+)$")
_OFFSETS = ".conv2_offset."  # of deformable layers; Detectron2 starts them from zeros


def body_names(model: Iterable[str]) -> dict[str, str]:
    """The tensors of the ResNeXt (stem, res2..res5, a C4 head's res5) among a model's.

    Offsets of deformable layers are left out: they may be new, as heads may.

    Args:
        model: names of a detector's tensors, or of a bare network's.

    Returns:
        Name -> name in a bare backbone.
    """
    return {name: short for name, short in _all_names(model).items() if _OFFSETS not in name}


def _all_names(model: Iterable[str]) -> dict[str, str]:
    """As `body_names`, and the offsets."""
    names = list(model)
    names = [n for n in names if _BODY.match(n)] or [n for n in names if backbone_name(n)]
    return {name: backbone_name(name) for name in names}


def backbone_name(name: str) -> str | None:
    """A tensor's name in a bare backbone, e.g. res4.0.conv1.weight; None if it is in none."""
    match = _BARE.match(name)
    return match and match[1]


def is_counter(name: str) -> bool:
    """BN's count of batches, which matters to no result and is absent from many files."""
    return name.endswith("num_batches_tracked")


@dataclass(frozen=True)
class Arrival:
    """What became of the tensors of a model's backbone, by their names in a bare backbone.

    Attributes:
        total: number of them in the model, without offsets of deformable layers.
        missing: in the model and not in the file, which offsets need not be.
        unused: in the file, in the stem or a stage that the model has, and not in the model.
        wrong: of another shape: name -> (shape in the file, shape in the model).
        file: all of the file's tensors, by its own names.
        model: the backbone's.
    """

    total: int
    missing: list[str]
    unused: list[str]
    wrong: dict[str, tuple[Shape, Shape]]
    file: Mapping[str, Shape]
    model: Mapping[str, Shape]

    @classmethod
    def of(
        cls, model: Mapping[str, Shape], file: Mapping[str, Shape], lost: Iterable[str]
    ) -> "Arrival":
        """Compare.

        Args:
            model: the detector's tensors and their shapes, counters excepted.
            file: the file's.
            lost: the detector's tensors that did not load.
        """
        lost = set(lost)
        names = _all_names(model)
        in_model = {short: model[name] for name, short in names.items()}
        in_file = _in_backbone(file)
        not_loaded = [short for name, short in names.items() if name in lost]
        wrong = {
            short: (in_file[short], in_model[short])
            for short in not_loaded
            if short in in_file and in_file[short] != in_model[short]
        }
        stages = {short.split(".")[0] for short in in_model}
        unused = [
            short
            for short in in_file
            if short.split(".")[0] in stages and short not in in_model and not is_counter(short)
        ]
        body = body_names(model)
        missing = [s for name, s in body.items() if name in lost and s not in wrong]
        return cls(len(body), missing, unused, wrong, file, in_model)

    @classmethod
    def expected(cls, model: Mapping[str, Shape], file: Mapping[str, Shape]) -> "Arrival":
        """What would load if each tensor of the file found its place."""
        in_file = _in_backbone(file)
        lost = [n for n, short in _all_names(model).items() if in_file.get(short) != model[n]]
        return cls.of(model, file, lost)

    @property
    def loaded(self) -> int:
        """Number of the model's tensors that came from the file."""
        return self.total - len(self.missing) - len(self.wrong)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.unused or self.wrong)

    def explain(self, convert_hint: str) -> str:
        """One line: how much arrived, up to five names of each kind of failure, the likely cause.

        Args:
            convert_hint: what to do about a file in another source's names.
        """
        wrong = [f"{name} (file {a}, model {b})" for name, (a, b) in self.wrong.items()]
        unused = self.unused
        if self.loaded == 0 and not unused:
            unused = [name for name in self.file if not is_counter(name)]
        parts = [
            f"{title}: {_first_five(names)}"
            for title, names in (
                ("Missing", self.missing),
                ("Unused in the file", unused),
                ("Of another shape", wrong),
            )
            if names
        ]
        return (
            f"backbone: {self.loaded}/{self.total} tensors loaded. {'. '.join(parts)}. "
            f"Likely cause: {self._cause(convert_hint)}"
        )

    def _cause(self, convert_hint: str) -> str:
        source = detect(self.file)
        if source not in (None, "detectron2"):
            return f"the file is in {source}'s names; {convert_hint}"
        in_file = _in_backbone(self.file)
        if not in_file:
            return "the file holds no ResNeXt backbone"
        for stage in sorted({name.split(".")[0] for name in self.model}):
            theirs, ours = _blocks(in_file, stage), _blocks(self.model, stage)
            if theirs != ours:
                return (
                    f"another depth: {stage} has {theirs} blocks in the file and {ours} in the "
                    "config's network (MODEL.RESNETS.DEPTH)"
                )
        theirs, ours = _template(in_file), _template(self.model)
        if theirs and ours and theirs != ours:
            return (
                f"the file holds a {theirs[0]}x{theirs[1]}d network and the config names "
                f"{ours[0]}x{ours[1]}d: set MODEL.RESNETS.NUM_GROUPS {theirs[0]}, "
                f"MODEL.RESNETS.WIDTH_PER_GROUP {theirs[1]}"
            )
        odd = [*self.missing, *self.unused]
        if odd and all(".shortcut." in name for name in odd):
            return "one of them has shortcuts, the other none (MODEL.RESNEXT.RESIDUAL)"
        if odd and all(_OFFSETS in name for name in odd):
            return "the file has deformable layers (MODEL.RESNETS.DEFORM_ON_PER_STAGE)"
        if odd and all(".norm." in name for name in odd):
            return "another MODEL.RESNETS.NORM than the file's"
        return "another network: shortcuts, stem or channels differ"


def _in_backbone(tensors: Mapping[str, Shape]) -> dict[str, Shape]:
    return {short: shape for name, shape in tensors.items() if (short := backbone_name(name))}


def _first_five(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _blocks(names: Iterable[str], stage: str) -> int:
    return len({name.split(".")[1] for name in names if name.startswith(f"{stage}.")})


def _template(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    """(C, d) of res2's blocks, told from the grouped layer."""
    shape = shapes.get("res2.0.conv2.weight", ())
    return (shape[0] // shape[1], shape[1]) if len(shape) == 4 and shape[1] else None
