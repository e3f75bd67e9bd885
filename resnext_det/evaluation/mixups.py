"""Right boxes of wrong classes."""

from collections.abc import Mapping

import hotcoco
import numpy as np

from .evidence import Evidence, Finding

MATCH_IOU = 0.5  # as of AP50
# Objects that must have a detection on them before classes are compared: fewer say nothing, or
# little if no class at all is right.
MIN_MATCHES, MIN_ALL_WRONG = 10, 4
MIN_CLASS_MATCHES = 3  # the same for one class
# A class is taken for another where this share of its matches says so: no usual confusion is so
# one-sided in both directions.
DOMINANT_SHARE = 0.7
# Class-agnostic AP that is so much above AP means wrong classes; for a healthy detector it is near
# or below, as the boxes of other classes count as false positives then.
AGNOSTIC_FACTOR, AGNOSTIC_POINTS = 2, 10
MAX_SHOWN = 5  # classes in a message


def find_mixup(
    evidence: Evidence,
    truth: hotcoco.COCO,
    found: hotcoco.COCO,
    task: str,
    figures: Mapping[str, float],
) -> Finding | None:
    """Look for right boxes of wrong classes.

    Args:
        evidence: of `truth` and `found`.
        truth: ground truth.
        found: detections.
        task: "bbox" or "segm".
        figures: with `AP`, percent.

    Returns:
        A finding "classes_permuted" where classes stand for each other, or "classes_confused".
    """
    counts = _matched_classes(evidence)
    total = sum(counts.values())
    right = sum(n for (true, predicted), n in counts.items() if true == predicted)
    if total < (MIN_MATCHES if right else MIN_ALL_WRONG):
        return None
    mapping = _dominant(counts)
    wrong = {true: predicted for true, predicted in mapping.items() if true != predicted}
    cycles = _cycles(wrong)
    mostly_wrong = right < total / 2
    if not mostly_wrong and not cycles:
        return None
    ap, agnostic = figures["AP"], agnostic_ap(truth, found, task)
    if not cycles and not agnostic >= max(AGNOSTIC_FACTOR * ap, ap + AGNOSTIC_POINTS):
        return None
    start = (
        f"boxes are right and classes wrong: AP is {ap:.1f}, and {agnostic:.1f} with classes "
        f"ignored; {total - right} of {total} detected objects have the wrong class"
    )
    explained = sum(n for pair, n in counts.items() if pair in wrong.items())
    injective = len(set(mapping.values())) == len(mapping)
    if not mostly_wrong:
        wrong = cycles
    elif not wrong or not injective or explained < (total - right) / 2:
        return Finding(
            "classes_confused",
            f"{start}, {'in no consistent way' if total >= MIN_MATCHES else 'too few to compare'}",
            "the boxes are learned before the classes: train longer; if training is finished, "
            "compare the labels of training and evaluation (python tools/visualize_data.py)",
        )
    pairs = [
        f"predicted {evidence.name(predicted)} -> truth {evidence.name(true)}"
        for true, predicted in list(wrong.items())[:MAX_SHOWN]
    ]
    more = f", ... ({len(wrong)} in all)" if len(wrong) > MAX_SHOWN else ""
    return Finding(
        "classes_permuted",
        f"{start}: {', '.join(pairs)}{more}{_pattern(evidence, wrong)}",
        "train and evaluate with the same categories, in ids and in names (python "
        "tools/check_data.py TRAIN VAL), or correct category_id in the results",
    )


def _matched_classes(evidence: Evidence) -> dict[tuple[int, int], int]:
    """Count (true, predicted) class of each object and the best scored detection on it."""
    counts: dict[tuple[int, int], int] = {}
    for found, truth, iou in evidence.pairs():
        if not iou.size:
            continue
        on = iou >= MATCH_IOU
        objects = np.flatnonzero(on.any(0))
        true = evidence.truth.category[truth][objects]
        predicted = evidence.found.category[found][on.argmax(0)[objects]]
        for pair in zip(true.tolist(), predicted.tolist(), strict=True):
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def _dominant(counts: Mapping[tuple[int, int], int]) -> dict[int, int]:
    """True to predicted class, where one clearly prevails; those with most matches first."""
    matches: dict[int, int] = {}
    for (true, _), n in counts.items():
        matches[true] = matches.get(true, 0) + n
    mapping = {}
    for (true, predicted), n in sorted(counts.items(), key=lambda item: -item[1]):
        if matches[true] >= MIN_CLASS_MATCHES and n >= DOMINANT_SHARE * matches[true]:
            mapping[true] = predicted
    return mapping


def _cycles(wrong: Mapping[int, int]) -> dict[int, int]:
    """Those of `wrong` that lead back to themselves: classes that only swap names."""
    kept = dict(wrong)
    while kept.keys() != (both := kept.keys() & set(kept.values())):
        kept = {true: kept[true] for true in kept if true in both and kept[true] in kept}
    return kept


def agnostic_ap(truth: hotcoco.COCO, found: hotcoco.COCO, task: str) -> float:
    """AP in percent where a detection may be of any class."""
    evaluator = hotcoco.COCOeval(truth, found, task)
    evaluator.params.use_cats = False
    evaluator.params.area_rng, evaluator.params.area_rng_lbl = [[0, 1e10]], ["all"]
    evaluator.params.max_dets = [100]
    evaluator.evaluate()
    evaluator.accumulate()
    return 100 * float(np.mean(evaluator.eval["precision"]))


def _pattern(evidence: Evidence, wrong: Mapping[int, int]) -> str:
    """Name a numbering mistake that explains all of `wrong`, true to predicted; or nothing."""
    if len(wrong) < 2:
        return ""
    place = {category: index for index, category in enumerate(evidence.names)}
    if all(predicted - true == -1 for true, predicted in wrong.items()):
        return "; each id is one too low: numbered from 0 where the data set begins at 1"
    if all(predicted - true == 1 for true, predicted in wrong.items()):
        return "; each id is one too high, as if the background were class 0"
    if all(predicted == place[true] for true, predicted in wrong.items()):
        return "; the ids are the classes' places, 0 to K - 1, and not the data set's ids"
    steps = {(place[p] - place[true]) % len(place) for true, p in wrong.items() if p in place}
    if len(place) > 2 and set(wrong.values()) <= set(place):
        if steps == {1}:
            return "; each class is taken for the next one of the list"
        if steps == {len(place) - 1}:
            return "; each class is taken for the previous one of the list"
    return ""
