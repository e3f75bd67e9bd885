"""Start one process per GPU, or per CPU worker, and report a user's mistake in one line."""

import argparse
import gc
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_argument_parser
from detectron2.engine.launch import DEFAULT_TIMEOUT, _distributed_worker, _find_free_port
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous

from ..deploy.options import add_optimize_argument
from ..errors import UserError, one_line, user_message
from ..evaluation.options import parse_limit, parse_score
from ..quiet import silence_deprecations
from .cluster import Place, place_of_process
from .stopping import StoppedOutsideTraining, StopSignals

logger = logging.getLogger(__name__)

Job = Callable[[argparse.Namespace], object]

# After a process has died: the others notice by themselves, or are told, and then are killed.
_GRACE_SECONDS = 15

_TIMEOUT = timedelta(minutes=30)  # to meet, and of each exchange


def base_parser() -> argparse.ArgumentParser:
    """Detectron2's command-line flags, and ours for a run of any kind.

    A single machine takes a free port unless one is given.
    """
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--auto-scale",
        action="store_true",
        help="scale learning rate, warm-up, steps, iterations and periods to SOLVER.IMS_PER_BATCH, "
        "from the config file's own batch; what the command line says itself is left alone",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="bit-identical results on GPUs too, slower (on CPUs they are so anyway)",
    )
    return parser


def argument_parser() -> argparse.ArgumentParser:
    """The flags of `base_parser`, for evaluation, and for data sets of one's own."""
    parser = base_parser()
    testing = parser.add_argument_group("evaluation, in training too")
    testing.add_argument("--limit", metavar="N", help="the first N images of each test set only")
    testing.add_argument(
        "--score",
        metavar="S",
        help="measure precision and recall of each class at this score (0 to 1; the config's 0.5)",
    )
    testing.add_argument(
        "--tta", action="store_true", help="test-time augmentation as TEST.AUG says, far slower"
    )
    add_optimize_argument(parser.add_argument_group("with --eval-only, on a CPU"), int8=True)
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


def evaluation_settings(args: argparse.Namespace) -> tuple[int | None, float | None, bool]:
    """What `--limit`, `--score` and `--tta` say, None for nothing.

    Raises:
        UserError: if the first is no number of images, or the second no score.
    """
    return (
        parse_limit(getattr(args, "limit", None)),
        parse_score(getattr(args, "score", None)),
        getattr(args, "tta", False),
    )


def run_job(job: Job, args: argparse.Namespace) -> int:
    """Run `job(args)` in as many processes as asked for.

    Under torchrun or srun this process is one of the job's already. Otherwise `--num-gpus`
    processes start on this machine, on CPUs with gloo where there is no GPU. Where one of them
    fails or dies, all end within a minute.

    Returns:
        An exit status: 0, also where a signal stopped training; 1 after a user's mistake or a
        process's death, 128 + N where signal N ended anything but training; after these a line
        went to stderr.
    """
    try:
        place = place_of_process(own_processes=args.num_gpus)
        if place is not None:
            _run_in_cluster(job, args, place)
        else:
            _check_processes(args)
            _start(job, args)
    except StoppedOutsideTraining as stopped:
        return _after_signal(stopped.signal, args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _after_signal(number: signal.Signals, args: argparse.Namespace) -> int:
    """Say that a signal came where no checkpoint is due, and choose the exit status."""
    if getattr(args, "eval_only", True):
        print(f"stopped by {number.name}", file=sys.stderr)
        return 128 + number
    print(
        f"stopped by {number.name}, not while training: no checkpoint was written; start the same "
        "command again",
        file=sys.stderr,
    )
    return 0


def _start(job: Job, args: argparse.Namespace) -> None:
    """Run the job in this process, or in several which die together."""
    processes = args.num_gpus * args.num_machines
    if processes == 1:
        _in_process(job, args)
        return
    url = args.dist_url
    if url == "auto":
        url = f"tcp://127.0.0.1:{_find_free_port()}"
    context = mp.start_processes(
        _distributed_worker,
        nprocs=args.num_gpus,
        args=(
            *(_in_process, processes, args.num_gpus, args.machine_rank, url, (job, args)),
            DEFAULT_TIMEOUT,
        ),
        join=False,
    )
    passed: list[signal.Signals] = []
    try:
        with _passing_signals_on(context, passed):
            while not context.join(grace_period=_GRACE_SECONDS):
                pass
    except mp.ProcessRaisedException as error:
        if "EADDRINUSE" in str(error) or "DistNetworkError" in str(error):
            raise UserError(
                f"the processes cannot meet at {url}: its port is in use, or the address cannot be "
                "reached; name another one, or leave --dist-url out"
            ) from error
        raise
    except mp.ProcessExitedException as error:
        if passed:
            raise StoppedOutsideTraining(passed[0]) from error
        raise UserError(
            f"process {error.error_index} of {args.num_gpus} died ({error}), so the job was ended; "
            "if it was killed for want of memory use smaller batches, and go on with --resume"
        ) from error


@contextmanager
def _passing_signals_on(context: mp.ProcessContext, passed: list[signal.Signals]) -> Iterator[None]:
    """Give SIGTERM and SIGINT to the processes, which stop with a checkpoint, and wait for them.

    Each is noted in `passed`.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.append(signal.Signals(number))
        for process in context.processes:
            if process.is_alive():
                process.terminate()  # a terminal has sent them SIGINT itself

    previous = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _in_process(job: Job, args: argparse.Namespace) -> None:
    if comm.get_world_size() > 1 and not torch.cuda.is_available():
        _share_cores(comm.get_local_size())
    silence_deprecations()
    with StopSignals() as args.signals:
        try:
            job(args)
        except (StoppedOutsideTraining, Exception) as error:
            # C++ that calls Python, as OpenVINO's converter does, makes errors of its own of it
            if not args.signals.ending:
                raise
            stopped = StoppedOutsideTraining(args.signals.received)
            if comm.get_world_size() == 1:
                raise stopped from error
            if comm.is_main_process():
                logger.warning("stopped by %s", stopped.signal.name)
            os._exit(128 + stopped.signal)  # the others wait for this process no more
        if dist.is_initialized():
            _leave_others()


def _share_cores(processes: int) -> None:
    """Give each of our own CPU processes its part of the cores, unless the user has chosen.

    As torchrun does; otherwise every process starts a thread per core and they fight.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def _run_in_cluster(job: Job, args: argparse.Namespace, place: Place) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    if place.rank == 0 and place.url != "env://":  # or else who waits in vain knows not for what
        logger.warning("%d tasks of Slurm meet at %s", place.processes, place.url)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_meet(place),
            rank=place.rank,
            world_size=place.processes,
            timeout=_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(
            f"process {place.rank} of {place.processes} cannot meet the others at {place.url}: "
            f"{reason}"
        ) from error
    comm.create_local_process_group(place.local_processes)
    _in_process(job, args)


def _meet(place: Place) -> dist.Store:
    """The processes' common store, in which nothing is left of an earlier attempt.

    torchrun keeps one store for all its restarts, with the addresses of processes that have died.
    """
    meeting = rendezvous(place.url, place.rank, place.processes, timeout=_TIMEOUT)
    store = next(meeting)[0]
    key = "resnext_det/attempt"
    if place.rank > 0:
        attempt = store.get(key).decode()
        store.add(f"{attempt}/arrived", 1)
        return dist.PrefixStore(attempt, store)
    store.delete_key(key)
    attempt = f"{key}/{uuid.uuid4().hex}"
    store.set(key, attempt)
    end = time.monotonic() + _TIMEOUT.total_seconds()
    while store.add(f"{attempt}/arrived", 0) < place.processes - 1:
        if time.monotonic() > end:
            raise RuntimeError(f"not all came within {_TIMEOUT}")
        time.sleep(0.05)
    store.delete_key(key)
    return dist.PrefixStore(attempt, store)


def _leave_others() -> None:
    """End gloo's threads while Python is there still; one that it meets as it ends crashes it."""
    comm._get_global_gloo_group.cache_clear()
    gc.collect()  # of trainers, whose DDP holds the group
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
