"""The wrappers and prefixes that training programs put round a network's tensors."""

from collections.abc import Mapping

from torch import Tensor

from ...errors import UserError

# Where a checkpoint keeps its tensors. An average of the weights (EMA) comes first, as in timm's
# own loader: it is what the publisher evaluates.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "blobs")

# On every tensor: DataParallel, torch.compile, and attributes that hold the network
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "encoder.")
# Two networks in one file, of which the first is the trained one (MoCo v1 and v2, v3, SimSiam)
_PAIRS = (
    ("encoder_q.", "encoder_k."),
    ("base_encoder.", "momentum_encoder."),
    ("encoder.", "predictor."),  # SimSiam
)
_PAIR_EXTRAS = ("queue", "predictor.")
# torch.optim.swa_utils.AveragedModel, beside `module.`
_AVERAGES = "n_averaged"


def unwrap(content: Mapping, file: str, wrapper: str | None = None) -> tuple[dict, str]:
    """Find the tensors in what a file holds.

    Args:
        content: names to tensors, or a dict that holds such a dict.
        file: for the messages.
        wrapper: the key to use, e.g. "state_dict" where there is "state_dict_ema" too.

    Returns:
        Names to tensors, and the keys that led there, "" for a bare dict.

    Raises:
        UserError: if there is no such dict, or it holds anything but tensors.
    """
    path = []
    while not any(isinstance(value, Tensor) for value in content.values()):
        keys = [k for k in WRAPPERS if isinstance(content.get(k), Mapping) and content[k]]
        if wrapper is not None and not path:
            if not isinstance(content.get(wrapper), Mapping):
                raise UserError(f"{file} has no {wrapper!r}; it holds {_shown(content)}")
            keys = [wrapper]
        if not keys or len(path) == 3:
            raise UserError(f"{file} holds no dict of tensors; it holds {_shown(content)}")
        path.append(keys[0])
        content = content[keys[0]]
    strange = [k for k, v in content.items() if not isinstance(v, Tensor)]
    if strange:
        kind = type(content[strange[0]]).__name__
        raise UserError(f"{file}: {strange[0]} is a {kind}, not a tensor")
    return {str(name): tensor for name, tensor in content.items()}, ".".join(path)


def strip_prefixes(names: list[str]) -> tuple[dict[str, str], str, dict[str, list[str]]]:
    """Take the prefixes of training programs off.

    Returns:
        The remaining names, stripped, to the names in the file; the prefix that was taken off; and
        the names that belong to a second network in the file, by reason.
    """
    stripped = {name: name for name in names}
    dropped: dict[str, list[str]] = {}
    prefix = ""
    if _AVERAGES in stripped:
        dropped["the count of an average of weights"] = [stripped.pop(_AVERAGES)]
    while found := _common_prefix(stripped):
        main, second = found
        if second:
            others = [n for n in stripped if n.startswith((second, *_PAIR_EXTRAS))]
            if others:
                reason = "the second network of contrastive learning"
                dropped.setdefault(reason, []).extend(stripped.pop(n) for n in others)
        if not all(name.startswith(main) for name in stripped):
            break
        stripped = {name.removeprefix(main): old for name, old in stripped.items()}
        prefix += main
    return stripped, prefix, dropped


def _common_prefix(names: Mapping[str, str]) -> tuple[str, str] | None:
    for main, second in _PAIRS:
        if any(name.startswith(main) for name in names):
            return main, second
    for main in _PREFIXES:
        if names and all(name.startswith(main) for name in names):
            return main, ""
    return None


def _shown(content: Mapping) -> str:
    keys = [str(key) for key in content]
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "") or "nothing"
