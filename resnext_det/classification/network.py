"""A network with its classifier, loaded with what its weights expect of an image."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError
from ..modeling import Classifier
from ..modeling.fast import accelerate
from ..weights.catalog import PublishedWeights, by_sha256, find
from ..weights.conventions import NOTHING_SAID
from ..weights.download import local_weights
from ..weights.files import read_file, recipe_in
from ..weights.intake import Input, read_input
from ..weights.network import Network
from ..weights.recipe import Preprocessing
from .record import ClassifierRecord, record_in

_CATALOG = "resnext://"


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier, and what is known of its weights.

    Attributes:
        model: in evaluation mode.
        network: its sizes.
        expected: preprocessing, inside `model` already.
        source: the layout that the weights came in, e.g. "torchvision"; "resnext_det" for a
            network trained here.
        published: the weights' entry of the catalog, None for others.
        record: of the run that they were trained in, None for weights from elsewhere.
    """

    model: Classifier
    network: Network
    expected: Preprocessing
    source: str
    published: PublishedWeights | None
    record: ClassifierRecord | None


def load_classifier(weights: str, device: torch.device | str = "cpu") -> LoadedClassifier:
    """Load all of a classifier, or fail; what it expects of images comes from the file.

    Args:
        weights: `resnext://NAME` of the catalog, a file that this package wrote, or one of a public
            source that `tools/convert_weights.py` would convert.
        device: to put it on.

    Raises:
        UserError: for an unknown name, a file that cannot be read or is no whole ResNeXt, one that
            does not tell its preprocessing, or has no classifier.
    """
    entry = None
    if weights.startswith(_CATALOG):
        entry = find(weights.removeprefix(_CATALOG))
        path = local_weights(entry.name)
    elif "://" in weights:
        raise UserError(f"{weights} is neither a file nor {_CATALOG}NAME")
    else:
        path = Path(weights)
    given = read_input(path, NOTHING_SAID)
    if given.network.num_classes is None:
        raise UserError(
            f"{weights} has no classifier (no layer named linear or fc), so there is nothing to "
            "test: name weights that were not stripped of it"
        )
    source, sha256, record = _origin(given, path)
    if record is None:
        published = entry or by_sha256(sha256)
    else:  # whatever training started from
        source, published = "resnext_det", None
        if len(record.classes) != given.network.num_classes:
            raise UserError(
                f"{weights} has {given.network.num_classes} outputs, and names "
                f"{len(record.classes)} classes: it is damaged"
            )
    expected = given.facts.preprocessing
    network = given.network.build(stride_in_1x1=given.facts.stride_in_1x1)
    tensors = given.renamed.conversion.tensors
    wanted = network.state_dict()  # as it is on the meta device, assigned and not copied to
    network.load_state_dict(
        {name: t.to(wanted[name].dtype) for name, t in tensors.items()}, strict=True, assign=True
    )
    model = Classifier(
        network,
        channel_order=expected.channel_order,
        pixel_mean=expected.pixel_mean,
        pixel_std=expected.pixel_std,
    )
    model.eval().requires_grad_(False)
    accelerate(model)
    return LoadedClassifier(
        model=model.to(device, memory_format=torch.channels_last),
        network=given.network,
        expected=expected,
        source=source,
        published=published,
        record=record,
    )


def _origin(given: Input, path: Path) -> tuple[str, str, ClassifierRecord | None]:
    """Layout and sha256 of the file that the weights first came in, and their run's record."""
    if given.renamed.source != "detectron2":  # what this package writes is in these names
        return given.renamed.source, given.sha256, None
    raw = read_file(path)
    record, recipe = record_in(raw, str(path)), recipe_in(raw, str(path))
    if recipe is None:
        return given.renamed.source, given.sha256, record
    return recipe.source, recipe.source_sha256, record
