"""Detectron2's config with our few keys, the shipped config files, and errors for mistyped keys."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.config.defaults import _C as DETECTRON2_DEFAULTS

from .errors import UserError

# Keys that Detectron2 lacks, with their defaults. At its default a key stays out of a saved
# config.yaml, so that a plain run's file holds Detectron2's keys alone. These steer training and
# evaluation only:
TRAINING_KEYS = {
    "SOLVER.OPTIMIZER": "SGD",  # or "AdamW"
    "SOLVER.ACCUM_STEPS": 1,  # parts that a process's share of IMS_PER_BATCH is cut into
    "SOLVER.AMP.DTYPE": "float16",  # or "bfloat16", which CPUs have too
    "SOLVER.EMA_DECAY": 0.0,  # of an average of the weights, e.g. 0.9998; 0 for none
    "SOLVER.EARLY_STOP_PATIENCE": 0,  # evaluations without a better one; 0 never stops early
    "DATALOADER.MAX_SKIPPED_IMAGES": 10,  # broken ones in training; 0 stops at the first
    "TEST.COCO_EVALUATOR": "hotcoco",  # or "pycocotools": the same figures, far slower
    "TEST.SCORE": 0.5,  # at which precision and recall of each class are measured
    "TEST.NUM_IMAGES": 0,  # of each test set, its first; 0 for all
    # "auto" is channels_last on CPUs, where it was measured to be faster, or "contiguous"
    "MODEL.MEMORY_FORMAT": "auto",
    # faster convolutions with frozen BN and RoIAlign on CPUs, the same results up to rounding
    "MODEL.FAST_LAYERS": True,
}

# These change the network, so that stock Detectron2 must not skip them: there, only
# `resnext_det.get_cfg()` or `add_resnext_config` makes a config that can hold them.
NETWORK_KEYS = {
    "MODEL.RESNEXT.FORM": "c",  # "a", "b" or "c" of Fig. 3
    "MODEL.RESNEXT.RESIDUAL": True,  # False: no shortcuts (Section 5.1)
    "MODEL.RESNEXT.CHECKPOINT": False,  # True: less memory in training, slower, the same results
}

# These are of classifiers alone (MODEL.META_ARCHITECTURE ImageClassifier).
CLASSIFIER_KEYS = {
    "CLASSIFIER.NETWORK": "imagenet",  # or "cifar": three stages, for small images (Appendix A)
    "CLASSIFIER.NUM_CLASSES": 1000,
    "CLASSIFIER.CLASSES": "",  # list of ImageNet-5K's classes, of tools/prepare_imagenet5k.py
    "CLASSIFIER.AUGMENTATION": "imagenet",  # or "crop": zero-padded, cropped, flipped (Appendix A)
    "CLASSIFIER.SIZE": 224,  # side of the images that the network sees, in pixels
    "CLASSIFIER.RESIZE": 256,  # shorter side in tests, before the centre crop
    "CLASSIFIER.INTERPOLATION": "bicubic",  # or "bilinear"
    "CLASSIFIER.JITTER": 0.4,  # of brightness, contrast and saturation; with "imagenet"
    "CLASSIFIER.LIGHTING": 0.1,  # standard deviation of PCA lighting; with "imagenet"
}

_OWN_KEYS = {**TRAINING_KEYS, **NETWORK_KEYS, **CLASSIFIER_KEYS}

_PACKAGE = Path(__file__).resolve().parent
_OF_CLASSIFIERS = "classification/"
_NOT_SAID = "<not said>"  # of MODEL.WEIGHTS, whose default "" means training from nothing


def register_training_keys() -> None:
    """Let stock `detectron2.config.get_cfg()` read a config.yaml that sets one of our keys.

    There the key is skipped with a warning by yacs: it would have no effect on the model.
    """
    for key in TRAINING_KEYS:
        if key not in vars(DETECTRON2_DEFAULTS)[CfgNode.DEPRECATED_KEYS]:
            DETECTRON2_DEFAULTS.register_deprecated_key(key)


def add_resnext_config(cfg: CfgNode) -> None:
    """Add our keys, with their defaults, to a config made by Detectron2's `get_cfg()`."""
    cfg.MODEL.RESNEXT = CfgNode()
    cfg.CLASSIFIER = CfgNode()
    for key, default in _OWN_KEYS.items():
        vars(cfg)[CfgNode.DEPRECATED_KEYS].discard(key)  # else an override would be skipped
        node, leaf = _locate(cfg, key)
        node[leaf] = default


def get_cfg(name: str | None = None) -> CfgNode:
    """Return a new config, Detectron2's defaults plus ours.

    Args:
        name: a shipped config, e.g. "faster_rcnn_X50_32x4d" or
            "quick/faster_rcnn_X26_8x4d_FPN"; None for the defaults alone.

    Raises:
        UserError: (a ValueError) if no shipped config has that name.
    """
    cfg = get_detectron2_cfg()
    add_resnext_config(cfg)
    if name is not None:
        cfg.merge_from_file(str(config_path(name)))
    return cfg


def config_dir() -> Path:
    """The folder of the shipped configs: inside a wheel, or at the top of a checkout."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Names of all shipped configs of detectors, for `get_cfg`."""
    return [name for name in _all_names() if not name.startswith(_OF_CLASSIFIERS)]


def classifier_config_names() -> list[str]:
    """Names of all shipped configs of classifiers, for `get_cfg`."""
    return [name for name in _all_names() if name.startswith(_OF_CLASSIFIERS)]


def _all_names() -> list[str]:
    root = config_dir()
    files = sorted(p for p in root.rglob("*.yaml") if not p.name.startswith("Base-"))
    return [p.relative_to(root).with_suffix("").as_posix() for p in files]


def config_path(name: str) -> Path:
    """Find a shipped config by name, with or without `.yaml`.

    Raises:
        UserError: (a ValueError) if there is none, with the nearest names.
    """
    name = name.removesuffix(".yaml")
    known = _all_names()
    if name not in known:
        raise UserError(f"no shipped config is named {name!r}{suggest(name, known)}")
    return config_dir() / f"{name}.yaml"


def load_config(
    config_file: str, overrides: Sequence[str] = (), *, needs_weights: bool = False
) -> CfgNode:
    """Read a config file and apply `KEY VALUE` overrides from a command line.

    Args:
        config_file: a path, or the name of a shipped config.
        overrides: keys and values in turn, e.g. ["SOLVER.BASE_LR", "0.01"].
        needs_weights: refuse a config that nowhere says MODEL.WEIGHTS; to start from nothing has to
            be said as "".

    Raises:
        UserError: for a file that is absent or not readable as a config, an unknown key (with the
            nearest one), a value of the wrong type, or a command-line flag among the overrides.
    """
    path = Path(config_file)
    if not path.is_file():
        try:
            path = config_path(config_file)
        except UserError as error:
            raise UserError(f"config file {config_file!r} does not exist, and {error}") from None
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = _NOT_SAID  # till the file or an override says it
    try:
        _refuse_unclear_keys(path)
        cfg.merge_from_file(str(path), allow_unsafe=False)  # YAML tags could run code
    except RecursionError as error:
        raise UserError(f"{path}: its _BASE_ files name each other in a circle") from error
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{path}: {_explain(error, cfg)}") from error
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"{path}: {_explain(error, cfg)}") from error
    _apply_overrides(cfg, overrides)
    if cfg.MODEL.WEIGHTS == _NOT_SAID:
        if needs_weights:
            raise UserError(
                f"{path} does not say MODEL.WEIGHTS: name weights, e.g. MODEL.WEIGHTS "
                'resnext://torchvision/X-50-32x4d, or start from nothing with MODEL.WEIGHTS ""'
            )
        cfg.MODEL.WEIGHTS = ""
    return cfg


def _refuse_unclear_keys(path: Path) -> None:
    """YAML keeps the last of two equal keys: pasted lines would hide a whole MODEL block above."""
    nodes = [yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{key.value} stands in line {lines[key.value]} and again in line "
                    f"{line}: YAML would keep only the second; put what is below them together"
                )
            if key.value == "WEIGHT":  # Detectron2 would take the file for one of another version
                raise UserError(f"line {line}: there is no key MODEL.WEIGHT; write WEIGHTS")
            lines[key.value] = line
            nodes.append(value)


def head_of(cfg: CfgNode) -> str:
    """The block of `cfg.MODEL` that has the classes and the thresholds of detections."""
    return "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"


def check_keys(cfg: CfgNode, known: CfgNode | None = None) -> None:
    """Refuse keys that nobody reads: yacs lets Python assign to any name, in any place.

    Args:
        cfg: e.g. with `cfg.MODEL_WEIGHTS = ...` in place of `cfg.MODEL.WEIGHTS = ...`.
        known: a config that has all legal keys; None for Detectron2's and ours.

    Raises:
        UserError: for the first unknown key, with the nearest one.
    """
    legal = list(_leaf_keys(known or get_cfg()))
    for key in _leaf_keys(cfg):
        if key in legal:
            continue
        same_leaf = [k for k in legal if k.split(".")[-1] == key.split(".")[-1]]
        same_words = [k for k in legal if k.replace(".", "_") == key.replace(".", "_")]
        found = same_words or same_leaf[:3]
        hint = f"; did you mean {' or '.join(found)}?" if found else suggest(key, legal)
        raise UserError(f"config key {key!r} is set, and nothing reads it{hint}")


def dump_config(cfg: CfgNode) -> str:
    """Print `cfg` as YAML without those of our keys that are at their defaults."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, default in _OWN_KEYS.items():
        node, leaf = _locate(cfg, key)
        if node[leaf] == default:
            del node[leaf]
    if not cfg.MODEL.RESNEXT:
        del cfg.MODEL["RESNEXT"]
    if not cfg.CLASSIFIER:
        del cfg["CLASSIFIER"]
    return cfg.dump()


def _apply_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    if overrides and not re.search("[A-Za-z]", overrides[0]):
        raise UserError(f"{overrides[0]!r} is no config key: overrides are KEY VALUE pairs, last")
    for word in overrides:
        if word.startswith("--"):
            raise UserError(f"{word} stands after the KEY VALUE overrides: put flags before them")
    if len(overrides) % 2:
        raise UserError(f"override {overrides[-1]!r} has no value: write KEY VALUE pairs")
    known = set(_leaf_keys(cfg))
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key not in known:
            raise UserError(f"unknown config key {key!r}{suggest(key, known)}")
        node, leaf = _locate(cfg, key)
        if isinstance(node[leaf], float) and re.fullmatch(r"[+-]?\d+", value):
            value += ".0"  # yacs takes no whole number for a float
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise UserError(f"config key {key}: {_explain(error, cfg)}") from error


def _explain(error: Exception, cfg: CfgNode) -> str:
    # str() of a KeyError quotes the message
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    prefix = "Non-existent config key: "
    if text.startswith(prefix):
        key = text.removeprefix(prefix)
        if key in set(_leaf_keys(cfg)):  # only overrides name keys so
            group, _, leaf = key.rpartition(".")
            return f"{key!r} is no key in YAML: write {leaf} below {group}:"
        return f"unknown config key {key!r}{suggest(key, _leaf_keys(cfg))}"
    return text


def _locate(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    *parents, leaf = key.split(".")
    for parent in parents:
        cfg = cfg[parent]
    return cfg, leaf


def _leaf_keys(cfg: CfgNode, prefix: str = "") -> Iterable[str]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode) and value:
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def suggest(word: str, known: Iterable[str]) -> str:
    """End an error message with the known words nearest to `word`, if any is near."""
    spelt = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(word.lower(), list(spelt), n=3, cutoff=0.5)
    nearest = [spelt[each] for each in nearest]
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""
