"""Reading Python configs (Detectron2's LazyConfig): overrides, mistyped keys, and checks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config import config_dir, suggest
from ..data import require_registered
from ..errors import UserError, one_line
from ..evaluation.coco import check_test_sets
from ..variants import Variant
from ..weights.agreement import ConfigWords, variant_of
from ..weights.recipe import Recipe, Settings

_BACKBONES = ("model.backbone.bottom_up", "model.backbone")
_CHANNEL_ORDERS = (
    "model.input_format",
    "dataloader.train.mapper.image_format",
    "dataloader.test.mapper.image_format",
)
_KEYS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


def load_lazy_config(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a Python config and apply `key=value` overrides; `+key=value` adds a key.

    Args:
        config_file: a path, or the name of a shipped one, e.g. "lazy/faster_rcnn_X50_32x4d".
        overrides: in Hydra's grammar, e.g. ["optimizer.lr=0.01"].

    Raises:
        UserError: for a file that is absent, not Python or not a whole config, or an override that
            is not of this form, names an unknown key or does not fit its place.
    """
    path = Path(config_file)
    shipped = config_dir() / f"{config_file.removesuffix('.py')}.py"
    if not path.is_file():
        if not shipped.is_file():
            names = [str(p.relative_to(config_dir()))[:-3] for p in config_dir().rglob("*.py")]
            names = [name for name in names if "/common/" not in name]
            raise UserError(
                f"config file {config_file!r} does not exist{suggest(config_file, names)}"
            )
        path = shipped
    if path.suffix != ".py":
        raise UserError(f"{path} is not a Python config: tools/train_net.py reads YAML")
    try:
        cfg = LazyConfig.load(str(path))
    except SyntaxError as error:
        raise UserError(f"{path}: {error.__cause__ or error}") from error
    absent = [key for key in _KEYS if key not in cfg]
    if absent:
        raise UserError(f"{path} does not define {', '.join(absent)}")
    _check_overrides(cfg, overrides)
    try:
        return LazyConfig.apply_overrides(cfg, list(overrides))
    except (OmegaConfBaseException, KeyError, NotImplementedError) as error:
        raise UserError(f"{' '.join(overrides)}: {one_line(error)}") from error


def check_lazy_config(cfg: DictConfig) -> None:
    """Refuse what could only fail later or give wrong results.

    Raises:
        UserError: for mixed precision on a CPU, a batch that the processes cannot share, an unknown
            data set, another number of classes than the data has, or annotations of the test set
            that cannot be evaluated.
    """
    processes = comm.get_world_size()
    batch = cfg.dataloader.train.total_batch_size
    if batch % processes:
        raise UserError(
            f"dataloader.train.total_batch_size {batch} cannot be shared by {processes} processes: "
            f"use a multiple of {processes}"
        )
    if cfg.train.amp.enabled and cfg.train.device == "cpu":
        raise UserError("train.amp.enabled=True needs a GPU: set it to False on the CPU")
    configured = OmegaConf.select(cfg, "model.roi_heads.num_classes")
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        names = loader.dataset.names
        for name in [names] if isinstance(names, str) else names:
            require_registered([name])
            classes = MetadataCatalog.get(name).get("thing_classes")
            if classes is not None and configured not in (None, len(classes)):
                raise UserError(
                    f"dataset {name} has {len(classes)} classes, model.roi_heads.num_classes is "
                    f"{configured}: set model.roi_heads.num_classes={len(classes)}"
                )
    evaluator = cfg.dataloader.evaluator
    names = cfg.dataloader.test.dataset.names
    check_test_sets(
        [names] if isinstance(names, str) else names,
        evaluator.get("tasks") or ("bbox",),
        evaluator.get("kpt_oks_sigmas") or (),
    )


def lazy_settings(cfg: DictConfig) -> tuple[Settings | None, ConfigWords]:
    """What a Python config says of the fields that weights depend on, and how it says them.

    Returns:
        The settings, None if the backbone is no ResNeXt; and the config's words for them.

    Raises:
        UserError: if the loaders and the model take images of different channel orders.
    """
    key = next((k for k in _BACKBONES if "cardinality" in (OmegaConf.select(cfg, k) or ())), None)
    orders = {name: OmegaConf.select(cfg, name) for name in _CHANNEL_ORDERS}
    orders = {name: order for name, order in orders.items() if order is not None}
    words = _words(key, list(orders))
    if key is None:
        return None, words
    if len(set(orders.values())) != 1:
        found = ", ".join(f"{name}={order}" for name, order in orders.items())
        raise UserError(f"the model and its loaders differ in channel order: {found}")
    node = OmegaConf.select(cfg, key)
    settings = Settings(
        variant=str(Variant(node.depth, node.cardinality, node.width)),
        channel_order=next(iter(orders.values())),
        pixel_mean=tuple(map(float, cfg.model.pixel_mean)),
        pixel_std=tuple(map(float, cfg.model.pixel_std)),
        stride_in_1x1=bool(node.get("stride_in_1x1", False)),
    )
    return settings, words


def _words(backbone: str | None, orders: Sequence[str]) -> ConfigWords:
    def lines(recipe: Recipe, differ: Sequence[str]) -> str:
        values: dict[str, object] = {}
        if "channel_order" in differ:
            values.update(dict.fromkeys(orders, recipe.channel_order))
        for name in ("pixel_mean", "pixel_std"):
            if name in differ:
                values[f"model.{name}"] = list(getattr(recipe, name))
        if "variant" in differ and (variant := variant_of(recipe)):
            for name in ("depth", "cardinality", "width"):
                values[f"{backbone}.{name}"] = getattr(variant, name)
        if "stride_in_1x1" in differ:
            values[f"{backbone}.stride_in_1x1"] = recipe.stride_in_1x1
        return "\n".join(f"{key} = {value!r}" for key, value in values.items())

    keys = {
        "channel_order": " and ".join(orders),
        "pixel_mean": "model.pixel_mean",
        "pixel_std": "model.pixel_std",
        "variant": str(backbone),
        "stride_in_1x1": f"{backbone}.stride_in_1x1",
        "bn_eps": "the epsilon of batch norms",
    }
    return ConfigWords("train.init_checkpoint", keys, lines)


def _check_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    known = set(_keys(cfg))
    for word in overrides:
        if word.startswith("--"):
            raise UserError(f"{word} stands after the key=value overrides: put flags before them")
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise UserError(f"override {word!r} is not of the form key=value") from error
        key = override.key_or_group
        if not override.is_add() and key not in known:
            raise UserError(f"unknown config key {key!r} (+{word} adds it){suggest(key, known)}")


def _keys(node: DictConfig | ListConfig, prefix: str = "") -> Iterable[str]:
    names = range(len(node)) if isinstance(node, ListConfig) else node
    for name in names:
        yield f"{prefix}{name}"
        # an interpolation, and an argument without a value yet, has no keys below it
        if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
            child = node[name]
            if OmegaConf.is_config(child):
                yield from _keys(child, f"{prefix}{name}.")


def without_sync_bn_in(node: DictConfig) -> bool:
    """Replace every SyncBN below `node` by BN, in place.

    Returns:
        Whether there was any.
    """
    keys = [key for key in _keys(node) if OmegaConf.select(node, key) == "SyncBN"]
    for key in keys:
        OmegaConf.update(node, key, "BN")
    return bool(keys)
