"""Conversion of a public weight file into Detectron2's names, with proof, and back."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ..atomic import replacing
from ..errors import UserError
from .catalog import PublishedWeights
from .conventions import NOTHING_SAID, Options
from .download import sha256_of
from .files import SUFFIXES, read_file, write_weights
from .intake import Input, read_input
from .proof import (
    TOLERANCE,
    largest_differences,
    our_features,
    proof_image,
    source_features,
)
from .recipe import BN_EPS, Recipe
from .sources.rules import rename
from .sources.torchvision import BACK

LIBRARIES = ("torchvision", "timm")


@dataclass
class Report:
    """What was done, for people and as JSON.

    Attributes:
        file: the input.
        file_sha256: its hash.
        source: name of its layout.
        wrapper: keys of the checkpoint that led to the tensors.
        prefix: taken off every name.
        variant: e.g. X-50-32x4d.
        num_classes: of the classifier, None without one.
        converted: the file's names to the output's.
        dropped: for each reason the file's names.
        preprocessing_from: who says what the images must be like.
        notes: changes of values.
        recipe: of the output.
        reference: the source's network that the proof ran.
        differences: at res2..res5 and linear, relative to the largest feature.
        output: the file written.
        output_sha256: its hash.
    """

    file: str
    file_sha256: str
    source: str
    wrapper: str
    prefix: str
    variant: str
    num_classes: int | None
    converted: dict[str, str]
    dropped: dict[str, list[str]]
    preprocessing_from: str
    notes: list[str]
    recipe: dict
    reference: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    output: str = ""
    output_sha256: str = ""

    @property
    def counts(self) -> dict:
        """How many tensors of the file were converted, dropped by which rule, and unexplained."""
        dropped = {reason: len(names) for reason, names in self.dropped.items()}
        return {
            "in_file": len(self.converted) + sum(dropped.values()),
            "converted": len(self.converted),
            "dropped": dropped,
            "unexplained": 0,  # one would have been an error
        }

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        return {**asdict(self), "counts": self.counts, "tolerance": TOLERANCE}


def convert_file(
    path: Path,
    out: Path,
    options: Options = NOTHING_SAID,
    *,
    channel_order: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Convert a weight file into Detectron2's names and prove it.

    Args:
        path: of a public source; see `SOURCES`.
        out: `.pth` or `.safetensors`.
        options: see `Options`.
        channel_order: "RGB" or "BGR", of the images that the output expects; by default the
            input's. Another one than the input's permutes the first layer.
        say: is called with a line for each step.

    Raises:
        UserError: for a file that cannot be read or is no ResNeXt, for tensors that no rule
            explains, for values that are not finite, or if the proof fails. Nothing is written.
    """
    check_output(path, out)
    say(f"reading {path}")
    given = read_input(path, options)
    report = _report(given, channel_order or given.facts.preprocessing.channel_order)
    where = f" in {report.wrapper}" if report.wrapper else ""
    say(f"found {report.source} {report.variant}{where}; {_counted(report)}")
    network, stride = given.network, given.facts.stride_in_1x1
    order = report.recipe["channel_order"]
    images = proof_image(network, given.facts.preprocessing)
    source, report.reference = source_features(
        report.source, given.renamed.content, network, stride_in_1x1=stride
    )
    say(f"proof: {report.reference} and this package's network on the same image")
    theirs = source(images)
    if order != given.facts.preprocessing.channel_order:
        images = images.flip(1)
    with replacing(out) as temporary:
        write_weights(temporary, _for_order(given, order), Recipe(**report.recipe))
        del given, source  # their memory, before the file that was written is read
        content = read_file(temporary).content
        ours = our_features(network, content.get("model", content), stride_in_1x1=stride)
        _prove(report, theirs, ours(images), temporary, out)
    return report


def export_file(
    path: Path,
    out: Path,
    library: str = "torchvision",
    options: Options = NOTHING_SAID,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Turn a trained backbone back into torchvision's names, which timm shares, and prove it.

    Args:
        path: a detector's checkpoint or a backbone in Detectron2's names, in any form of Fig. 3.
        out: `.pth` or `.safetensors`, a bare state dict. It expects RGB images, as all of
            torchvision's networks: the first layer of a network of BGR images is permuted.
        library: "torchvision" or "timm", whose class the proof runs.
        options: see `Options`.
        say: is called with a line for each step.

    Raises:
        UserError: as `convert_file`, and for a network that the library cannot build.
    """
    check_output(path, out)
    if options.source not in (None, "detectron2"):
        raise UserError(f"export needs a file in Detectron2's names, not in {options.source}'s")
    say(f"reading {path}")
    given = read_input(path, replace(options, source="detectron2"))
    if given.network.is_cifar:
        raise UserError(f"{path}: {library} has no CIFAR network such as {given.network.name}")
    if not given.network.residual:
        raise UserError(f"{path}: {library} has no network without shortcuts")
    report = _report(given, "RGB")
    report.converted = {old: rename(new, BACK) for old, new in report.converted.items()}
    say(f"found {report.variant}; {_counted(report)}")
    tensors = {rename(name, BACK): tensor for name, tensor in _for_order(given, "RGB").items()}
    network, stride = given.network, given.facts.stride_in_1x1
    images = proof_image(network, given.facts.preprocessing)
    source, _ = source_features("detectron2", given.renamed.content, network, stride_in_1x1=stride)
    ours = source(images)
    if given.facts.preprocessing.channel_order != "RGB":
        images = images.flip(1)
    with replacing(out) as temporary:
        write_weights(temporary, tensors, None)
        del given, source, tensors
        theirs, report.reference = source_features(
            library, read_file(temporary).content, network, stride_in_1x1=stride
        )
        say(f"proof: {report.reference} and this package's network on the same image")
        _prove(report, ours, theirs(images), temporary, out)
    return report


def convert_published(original: Path, entry: PublishedWeights, out: Path) -> None:
    """Convert a file of the catalog, whose entry says what the file cannot.

    Raises:
        UserError: as `convert_file`, and if the file holds another variant than the entry says.
    """
    expected = entry.preprocessing
    options = Options(
        source=entry.source,
        input_order=expected.channel_order,
        pixel_mean=expected.pixel_mean,
        pixel_std=expected.pixel_std,
        stride_in_1x1=entry.stride_in_1x1,
        licence=entry.licence,
    )
    with replacing(out) as temporary:
        report = convert_file(original, temporary, options)
        if report.variant != entry.variant:
            raise UserError(f"{original} holds {report.variant}, not {entry.variant}")


def check_output(path: Path, out: Path) -> None:
    """Refuse an output that could not be written, before any work.

    Raises:
        UserError: for an unknown suffix, an absent folder, or the input itself.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: the output must end in {' or '.join(SUFFIXES)}")
    if out.is_dir():
        raise UserError(f"{out} is a directory: name a file in it")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    if out.exists() and path.exists() and out.samefile(path):
        raise UserError(f"{out} is the input: write to another file")


def _report(given: Input, channel_order: str) -> Report:
    expected = given.facts.preprocessing.reordered(channel_order)
    recipe = Recipe(
        variant=given.network.name,
        channel_order=channel_order,
        pixel_mean=expected.pixel_mean,
        pixel_std=expected.pixel_std,
        stride_in_1x1=given.facts.stride_in_1x1,
        bn_eps=BN_EPS,
        source=given.renamed.source,
        source_sha256=given.sha256,
        licence=given.facts.licence,
    )
    return Report(
        file=given.file,
        file_sha256=given.sha256,
        source=given.renamed.source,
        wrapper=given.renamed.wrapper,
        prefix=given.renamed.prefix,
        variant=given.network.name,
        num_classes=given.network.num_classes,
        converted=dict(given.renamed.conversion.renamed),
        dropped=given.renamed.conversion.dropped,
        preprocessing_from=given.facts.told_by,
        notes=given.renamed.conversion.notes,
        recipe=recipe.as_dict(),
    )


def _for_order(given: Input, channel_order: str) -> dict[str, Tensor]:
    """The tensors for images of `channel_order`; the first layer's input channels are permuted."""
    tensors: Mapping[str, Tensor] = given.renamed.conversion.tensors
    if channel_order == given.facts.preprocessing.channel_order:
        return dict(tensors)
    return {**tensors, "stem.conv1.weight": tensors["stem.conv1.weight"].flip(1)}


def _counted(report: Report) -> str:
    counts = report.counts
    dropped = "".join(f", {n} dropped ({why})" for why, n in counts["dropped"].items())
    return (
        f"{counts['in_file']} tensors in the file: {counts['converted']} converted{dropped}, "
        "0 unexplained"
    )


def _prove(
    report: Report,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    temporary: Path,
    out: Path,
) -> None:
    """Raise a UserError if features differ; else record what is about to be in place."""
    report.differences = largest_differences(expected, found)
    name, worst = max(report.differences.items(), key=lambda item: item[1])
    if not worst <= TOLERANCE:
        raise UserError(
            f"{report.file}: the proof failed: {name} differs from {report.reference} by "
            f"{worst:.2g} of the largest feature, more than {TOLERANCE:g}; nothing was written"
        )
    report.output, report.output_sha256 = str(out), sha256_of(temporary)
