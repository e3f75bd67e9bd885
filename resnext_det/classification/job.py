"""The whole of a test: from the name of some weights to their errors beside the published ones."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..data.formats import write_json
from ..errors import UserError
from .image_set import ImageSet
from .imagenet5k import ClassList, read_class_list, require_writable, way_of_all
from .network import LoadedClassifier, load_classifier
from .options import EvaluationOptions, find_device, protocol_for
from .protocols import Protocol
from .published import VALIDATION_IMAGES, PublishedErrors, errors_table, published_errors
from .reading import read_images
from .record import is_text_order_of_numbers, require_same_classes
from .testing import Outcome, run_test
from .topk import Errors


def evaluate_weights(
    weights: str,
    data: Path,
    options: EvaluationOptions,
    *,
    report: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Test weights on a tree of images.

    Args:
        weights: see `load_classifier`.
        data: see `read_images`, of whose splits the test one is taken.
        options: see `EvaluationOptions`.
        report: JSON file to write the results to.
        say: is called with lines for people.

    Returns:
        What was tested, how, on how many images; for each way of counting its errors in percent and
        the published ones.

    Raises:
        UserError: for weights, images or options that cannot be used or do not go together.
    """
    if report is not None:
        require_writable(report)
    known = None if options.classes is None else read_class_list(options.classes)
    images = read_images(data, "test", known and known.classes_1k)
    device = find_device(options.device)
    loaded = load_classifier(weights, device)
    protocol = protocol_for(loaded, options)
    errors = _ways_of_counting(weights, loaded.network.num_classes, images, options.classes, known)
    if loaded.record is not None:
        listed = images.classes if known is None else known.classes
        require_same_classes(loaded.record.classes, listed, str(options.classes or images.root))
    elif is_text_order_of_numbers(images.classes):
        say(
            f"{images.root}: folders named by numbers are taken in the order of text, "
            f"{', '.join(images.classes[:3])}, as ImageFolder does; give them leading zeros if the "
            "weights count otherwise"
        )
    images = images.limited(options.limit)
    say(
        f"{weights}: {loaded.network.name}, {loaded.network.num_classes} classes, "
        f"{loaded.expected.channel_order} images"
    )
    say(f"{data}: {len(images)} images of {len(images.classes)} classes; {protocol}")
    outcome = run_test(
        loaded.model,
        images,
        protocol,
        errors,
        device=device,
        batch=options.batch,
        workers=options.workers_beside(device),
        skip=options.skip,
    )
    results = _results(weights, data, loaded, protocol, outcome)
    say(format_results(results))
    if report is not None:
        write_json(results, report)
    return results


def format_results(results: dict) -> str:
    """A table of errors in percent, measured and published, and what was left out."""
    rows = []
    for way, found in results["errors"].items():
        rows.append((f"measured, {way}", found["top1"], found["top5"]))
        rows += [PublishedErrors(**published).row for published in found["published"]]
    speed = results["images"] / results["seconds"]
    lines = [
        errors_table(rows),
        f"{results['images']} images in {results['seconds']:.1f} s, {speed:.1f} a second",
    ]
    if results["unreadable"]:
        lines.append(f"{len(results['unreadable'])} images could not be read and were left out")
    is_published = any(found["published"] for found in results["errors"].values())
    if is_published and results["images"] != VALIDATION_IMAGES:
        lines.append(
            f"published errors are of all {VALIDATION_IMAGES} validation images of ImageNet"
        )
    return "\n".join(lines)


def _ways_of_counting(
    weights: str, outputs: int, images: ImageSet, list_file: Path | None, known: ClassList | None
) -> dict[str, Errors]:
    """For 5K classes Section 5.2's two: "a 5K-way classification task (all labels predicted to be
    the other 4K classes are automatically erroneous) or [...] a 1K-way classification task (softmax
    is applied only on the 1K classes)", whose order softmax leaves as it is.

    Raises:
        UserError: if the network has another number of outputs than there are classes.
    """
    if known is None:
        count = len(images.classes)
        if count != outputs:
            hint = " (--classes says which are which after training on ImageNet-5K)"
            raise UserError(
                f"{images.root} has {count} classes, {weights} has {outputs}"
                + (hint if count < outputs else "")
            )
        return {way_of_all(outputs): Errors()}
    count = len(known.classes)
    if count != outputs:
        raise UserError(f"{list_file} lists {count} classes, {weights} has {outputs}")
    all_classes, first = known.ways
    return {all_classes: Errors(), first: Errors(first=known.first)}


def _results(
    weights: str, data: Path, loaded: LoadedClassifier, protocol: Protocol, outcome: Outcome
) -> dict:
    variant = loaded.network.name
    return {
        "weights": weights,
        "variant": variant,
        "catalog": loaded.published.name if loaded.published else None,
        "data": str(data),
        "protocol": {**asdict(protocol), "said": str(protocol)},
        "images": outcome.images,
        "unreadable": outcome.unreadable,
        "seconds": outcome.seconds,
        "errors": {
            way: {
                "top1": errors.top1,
                "top5": errors.top5,
                "published": [
                    asdict(p)
                    for p in published_errors(
                        variant,
                        loaded.published,
                        protocol,
                        way,
                        residual=loaded.network.residual,
                    )
                ],
            }
            for way, errors in outcome.errors.items()
        },
    }
