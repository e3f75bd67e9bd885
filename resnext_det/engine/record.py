"""What a run was: `run.json` in its folder, an entry for each start."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..atomic import replacing
from ..weights.download import sha256_of

_FILE = "run.json"
_PACKAGES = ("torch", "torchvision", "detectron2", "fvcore", "pycocotools", "numpy", "pillow")


def describe_start(
    datasets: Mapping[str, dict],
    *,
    seed: int,
    device: str,
    changes: Sequence[str] = (),
    launchers: Sequence[str] = (),
) -> dict:
    """Describe this start of a run.

    Args:
        datasets: what it trains and evaluates on, by name, each with what tells it from others.
        seed: the run's.
        device: the config's.
        changes: of the config since the last start.
        launchers: see `launcher_of_process`, of all processes.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "processes": comm.get_world_size(),
        "device": _device_name(device),
        "seed": seed,
        "config_changes": list(changes),
        "launchers": list(launchers),
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        "datasets": dict(datasets),
    }


def add_start(folder: Path, start: dict, *, resumed: bool) -> None:
    """Write `run.json`, a list of starts; a new run begins a new one."""
    file = folder / _FILE
    starts = _read_starts(folder) if resumed else []
    with replacing(file) as temporary:
        temporary.write_text(json.dumps([*starts, start], indent=1) + "\n", encoding="utf-8")


def _read_starts(folder: Path) -> list[dict]:
    """The entries of `run.json`; none if it is absent or damaged, as no result depends on it."""
    try:
        starts = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return starts if isinstance(starts, list) else []


def last_launchers(folder: Path) -> list[str]:
    """What launched the last start of `folder`'s run, see `launcher_of_process`."""
    starts = _read_starts(folder)
    return starts[-1].get("launchers", []) if starts else []


def versions() -> dict[str, str]:
    """Versions of Python and the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("resnext_det", *_PACKAGES):
        for distribution in (name, f"sal-{name}"):
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    found["cuda"] = torch.version.cuda or "none"
    return found


def git_state(folder: Path) -> dict | None:
    """Commit of the checkout that holds `folder`, and whether it is changed; None without git."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no").splitlines()
        return {"commit": ask("rev-parse", "HEAD"), "changed": [c.split()[-1] for c in changed]}
    except (OSError, subprocess.SubprocessError):
        return None


def fingerprint(name: str) -> dict:
    """The sha256 of a data set's annotation file, or of its records if it has not one file.

    Images are not read.
    """
    known = MetadataCatalog.get(name)
    if not Path(known.get("json_file") or "").is_file():
        records = DatasetCatalog.get(name)  # loading a split finds its file
    file = Path(known.get("json_file") or "")
    if file.is_file():
        return {"annotation_file": str(file), "sha256": sha256_of(file)}
    text = json.dumps(records, sort_keys=True, default=str)
    return {"images": len(records), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _device_name(device: str) -> str:
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return (
        f"{device}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    )
