"""Start one process per GPU, or per CPU worker, and report a user's mistake in one line."""

import argparse
import logging
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from ..errors import UserError, user_message
from ..quiet import silence_deprecations

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command-line flags, and ours for data sets of one's own.

    A single machine takes a free port unless one is given.
    """
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    own = parser.add_argument_group(
        "your own data in COCO's format (repeatable; NUM_CLASSES is set to fit)"
    )
    for split, purpose in (("train", "to train on"), ("val", "to evaluate on")):
        own.add_argument(
            f"--{split}-json", action="append", default=[], metavar="FILE", help=purpose
        )
        own.add_argument(
            f"--{split}-images", action="append", default=[], metavar="DIR", help="its images"
        )
    return parser


def custom_pairs(args: argparse.Namespace) -> dict[str, list[tuple[str, str]]]:
    """The (annotation file, image folder) pairs of the command line, for "train" and "val".

    Raises:
        UserError: if there are not as many folders as files.
    """
    pairs = {}
    for split in ("train", "val"):
        files, folders = (getattr(args, f"{split}_{kind}", []) for kind in ("json", "images"))
        if len(files) != len(folders):
            raise UserError(
                f"{len(files)} --{split}-json and {len(folders)} --{split}-images: each file needs "
                "the folder of its images"
            )
        pairs[split] = list(zip(files, folders, strict=True))
    return pairs


def run_job(job: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run `job(args)` in as many processes as asked for.

    Under torchrun (`RANK` is set) this process is one of the job's already. Otherwise
    `--num-gpus` processes start on this machine, on CPUs with gloo where there is no GPU.

    Returns:
        An exit status: 0, or 1 after a user's mistake, whose one line went to stderr.
    """
    try:
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            _run_under_torchrun(job, args)
        else:
            _check_processes(args)
            detectron2_launch(
                _in_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(job, args),
            )
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _in_process(job: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    if comm.get_world_size() > 1 and not torch.cuda.is_available():
        _share_cores(comm.get_local_size())
    silence_deprecations()
    job(args)


def _share_cores(processes: int) -> None:
    """Give each of our own CPU processes its part of the cores, unless the user has chosen.

    As torchrun does; otherwise every process starts a thread per core and they fight.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def _run_under_torchrun(
    job: Callable[[argparse.Namespace], object], args: argparse.Namespace
) -> None:
    on_gpu = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        _in_process(job, args)
    finally:
        dist.destroy_process_group()


def _check_processes(args: argparse.Namespace) -> None:
    if args.num_gpus < 1 or args.num_machines < 1:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}: both must be at least "
            "1 (without a GPU, --num-gpus counts CPU processes)"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} is not in 0..{args.num_machines - 1} "
            f"(--num-machines {args.num_machines})"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError("--num-machines > 1 needs --dist-url tcp://ADDRESS_OF_MACHINE_0:PORT")
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()} GPUs"
        )
