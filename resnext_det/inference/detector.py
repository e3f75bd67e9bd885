"""From a config and weights to a detector that can be run: what `Predictor` is built of."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from torch import nn

from ..config import add_resnext_config, check_keys, head_of, load_config
from ..data.custom import data_of_run
from ..errors import UserError
from ..modeling.build import build_detector
from ..weights import StrictCheckpointer, settings_of


def read_config(config: str | Path | CfgNode, overrides: Sequence[str]) -> CfgNode:
    """Read a config for inference; a run's own data sets become known.

    Args:
        config: see `Predictor`.
        overrides: KEY VALUE words, for a file or a name.

    Returns:
        A config of its own, not frozen, with our keys.

    Raises:
        UserError: for a config that cannot be read, or of a detector that finds no objects in an
            image alone.
    """
    if isinstance(config, CfgNode):
        if overrides:
            raise UserError("overrides go with a config's file or name: change the config itself")
        cfg = config.clone()
        cfg.defrost()
        if "RESNEXT" not in cfg.MODEL:  # made by Detectron2's own get_cfg
            add_resnext_config(cfg)
        check_keys(cfg)
    else:
        for name, data in data_of_run(Path(config).parent).items():
            data.register(name)
        cfg = load_config(str(config), overrides)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT {cfg.INPUT.FORMAT}: a predictor knows RGB and BGR")
    if cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "RetinaNet"):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: a predictor needs one that "
            "detects objects, GeneralizedRCNN or RetinaNet"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError("MODEL.LOAD_PROPOSALS True: this detector needs another one's proposals")
    return cfg


def metadata_of(cfg: CfgNode) -> Metadata:
    """Find the metadata of the data set that the config names, with `thing_classes`.

    Raises:
        UserError: if the classes are not known, or are not as many as the detector's.
    """
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    known = [n for n in names if n in MetadataCatalog.list()]
    found = next((m for m in map(MetadataCatalog.get, known) if m.get("thing_classes")), None)
    if found is None:
        raise UserError(
            f"the classes of {', '.join(names) or 'the config (DATASETS.TEST is empty)'} are not "
            "known here: use the config.yaml in its run's folder, beside datasets.json, or "
            "register the data set's metadata first"
        )
    key = head_of(cfg)
    count = cfg.MODEL[key].NUM_CLASSES
    if count != len(found.thing_classes):
        raise UserError(
            f"dataset {found.name} has {len(found.thing_classes)} classes, MODEL.{key}.NUM_CLASSES "
            f"is {count}: name the data set that the detector was trained for in DATASETS.TEST"
        )
    return found


def load_detector(cfg: CfgNode, folder: Path | None) -> nn.Module:
    """Build the model and load all of it from MODEL.WEIGHTS.

    Args:
        cfg: the whole config.
        folder: the config file's, which may hold a run's weights, to name them in the error.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: if there are no weights, or they are not those of the whole detector.
    """
    hint = "name a trained detector's file"
    if folder is not None:
        kept = [folder / f"model_{name}.pth" for name in ("best", "final")]
        hint += next((f", e.g. {file}" for file in kept if file.is_file()), "")
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"no weights are given, and MODEL.WEIGHTS is empty: {hint}")
    if cfg.MODEL.WEIGHTS.startswith("resnext://"):  # else they would be downloaded to find out
        raise UserError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: a backbone alone; {hint}")
    model = build_detector(cfg).eval()
    checkpointer = StrictCheckpointer(model, settings=settings_of(cfg))
    checkpointer.whole_model = True
    checkpointer.load(cfg.MODEL.WEIGHTS)
    return model
