"""The paper's detector in two steps: an RPN, its proposals, and a Fast R-CNN trained on them.

Appendix B trains both apart, each from ImageNet weights and without shared features.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..errors import UserError
from .proposals import is_whole, proposal_stamp, write_proposals
from .resumable import on_main, refuse_old_run, train_or_skip
from .setup import read_config, set_up_logs

logger = logging.getLogger(__name__)

_STEPS = {"RPN": "rpn", "FAST": "fast_rcnn"}  # prefix of an override, folder
_PROPOSALS = "proposals"


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `run_job` reads, `--resume` and the overrides, as `train_net.py` has."""
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs (or CPU processes) a machine")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="tcp://ADDRESS_OF_MACHINE_0:PORT")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, at the end"
    )


def two_step_parser() -> argparse.ArgumentParser:
    """The command line of `tools/train_two_step.py`."""
    parser = argparse.ArgumentParser(
        description="Train the paper's detector in two steps: an RPN, Fast R-CNN on its proposals.",
        epilog="An override KEY VALUE holds for both steps, RPN:KEY or FAST:KEY for one of them.",
    )
    for flag, example in (("--rpn-config", "rpn"), ("--fast-rcnn-config", "fast_rcnn")):
        parser.add_argument(
            flag,
            required=True,
            metavar="FILE",
            help=f"a path or the name of a shipped config, e.g. paper/{example}_X50_32x4d",
        )
    add_launch_flags(parser)
    return parser


def train_two_step(args: argparse.Namespace) -> dict:
    """Train both steps in `OUTPUT_DIR`; with `resume` do only what is not done yet.

    | folder       | holds                                                                   |
    |--------------|-------------------------------------------------------------------------|
    | `rpn/`       | the RPN's run                                                           |
    | `proposals/` | `<dataset>.pkl` for every training and test set, and what it depends on |
    | `fast_rcnn/` | the Fast R-CNN's run; its `results.json` is that of the detector        |

    Args:
        args: parsed by `two_step_parser()`.

    Returns:
        On the main process the detector's results, as `train_or_evaluate`; elsewhere an empty dict.

    Raises:
        UserError: for a mistake in the configs, the data or the weights, for a folder that holds a
            run already (without `resume`), or a Fast R-CNN half trained on other proposals.
    """
    rpn, fast = (
        argparse.Namespace(config_file=file, opts=overrides_for(step, args.opts), eval_only=False)
        for step, file in (("RPN", args.rpn_config), ("FAST", args.fast_rcnn_config))
    )
    rpn_cfg, fast_cfg = (read_config(step.config_file, step.opts)[0] for step in (rpn, fast))
    _check_steps(args, rpn_cfg, fast_cfg)
    root = Path(fast_cfg.OUTPUT_DIR)
    folders = {step: root / name for step, name in _STEPS.items()}
    if not args.resume:
        refuse_old_run(root, (*folders.values(), root / _PROPOSALS))

    rpn.opts += ["OUTPUT_DIR", str(folders["RPN"])]
    set_up_logs(str(root))
    logger.info("step 1 of 3: training the RPN in %s", folders["RPN"])
    train_or_skip(rpn, needs_results=False)

    set_up_logs(str(root))
    logger.info("step 2 of 3: writing proposals into %s", root / _PROPOSALS)
    files, stamps = _make_proposals(rpn_cfg, fast_cfg, root)
    for kind in ("TRAIN", "TEST"):
        chosen = tuple(str(files[name]) for name in fast_cfg.DATASETS[kind])
        fast.opts += [f"DATASETS.PROPOSAL_FILES_{kind}", repr(chosen)]

    fast.opts += ["OUTPUT_DIR", str(folders["FAST"])]
    logger.info("step 3 of 3: training Fast R-CNN in %s", folders["FAST"])
    on_main(lambda: _tie_to_proposals(folders["FAST"], stamps))
    return train_or_skip(fast)


def overrides_for(step: str, words: Sequence[str]) -> list[str]:
    """Choose the overrides of one step: those without a prefix and those with its own.

    Args:
        step: "RPN" or "FAST".
        words: keys and values in turn, a key such as "SOLVER.MAX_ITER" or "RPN:SOLVER.MAX_ITER".
    """
    chosen = []
    for i in range(0, len(words), 2):
        prefix, colon, key = words[i].partition(":")
        if not (colon and prefix in _STEPS):
            chosen += words[i : i + 2]
        elif prefix == step:
            chosen += [key, *words[i + 1 : i + 2]]
    return chosen


def _check_steps(args: argparse.Namespace, rpn: CfgNode, fast: CfgNode) -> None:
    if rpn.MODEL.META_ARCHITECTURE != "ProposalNetwork":
        raise UserError(
            f"--rpn-config {args.rpn_config}: MODEL.META_ARCHITECTURE is "
            f"{rpn.MODEL.META_ARCHITECTURE}, not ProposalNetwork"
        )
    if not fast.MODEL.LOAD_PROPOSALS or fast.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
        raise UserError(
            f"--fast-rcnn-config {args.fast_rcnn_config} does not load proposals: it needs "
            "MODEL.LOAD_PROPOSALS True and MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals"
        )
    if rpn.OUTPUT_DIR != fast.OUTPUT_DIR:
        raise UserError(
            f"both steps must have the same OUTPUT_DIR, not {rpn.OUTPUT_DIR} and {fast.OUTPUT_DIR}"
        )


def _make_proposals(
    rpn: CfgNode, fast: CfgNode, root: Path
) -> tuple[dict[str, Path], dict[str, dict]]:
    """Write the proposals of each data set of `fast` that lacks them; return files and stamps."""
    folder, checkpoint = root / _PROPOSALS, root / _STEPS["RPN"] / "model_final.pth"
    files, stamps = {}, {}
    for name in dict.fromkeys((*fast.DATASETS.TRAIN, *fast.DATASETS.TEST)):
        training = name in fast.DATASETS.TRAIN
        path = files[name] = folder / f"{name}.pkl"
        stamp = on_main(
            lambda name=name, training=training: proposal_stamp(
                rpn, checkpoint, name, training=training
            )
        )
        stamps[name] = stamp
        if on_main(lambda path=path, stamp=stamp: is_whole(path, stamp)):
            logger.info("%s is finished: skipped", path)
            continue
        on_main(lambda: folder.mkdir(exist_ok=True))
        write_proposals(rpn, checkpoint, stamp, path)
        logger.info("%s: at most %d proposals an image", path, stamp["post_nms_topk"])
    return files, stamps


def _tie_to_proposals(folder: Path, stamps: dict) -> None:
    """Note what proposals the Fast R-CNN in `folder` is trained on; it must go on with the same."""
    note = folder / "proposals.json"
    if (folder / "last_checkpoint").is_file():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before != stamps:
            raise UserError(
                f"{folder} was trained on other proposals than the RPN makes now: remove the "
                "folder to train it anew"
            )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".proposals.json"
    temporary.write_text(json.dumps(stamps, indent=2) + "\n", encoding="utf-8")
    temporary.replace(note)
