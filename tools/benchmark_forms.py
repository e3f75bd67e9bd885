#!/usr/bin/env python
"""Time a training step of the three forms of Fig. 3, in turn in one process, and their memory.

python tools/benchmark_forms.py --variant X-50-32x4d --batch 4 --size 224
"""

import argparse
import statistics
import time

import torch
from tabulate import tabulate

from resnext_det import ResNeXt, Variant, convert_form
from resnext_det.modeling.blocks import FORMS
from resnext_det.quiet import silence_deprecations


def training_step(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Run forward and backward; return the seconds."""
    start = time.perf_counter()
    model.zero_grad()
    sum(output.mean() for output in model(images).values()).backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Bytes of activations that one step keeps for its backward pass, weights excluded."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images)
        total = sum(storages.values())
    del outputs
    return total


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--variant", type=Variant.parse, default=Variant(50, 32, 4))
    parser.add_argument("--batch", type=int, default=4, help="images a step (default 4)")
    parser.add_argument("--size", type=int, default=224, help="sides in pixels (default 224)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps a form (default 5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if min(args.batch, args.size, args.rounds) < 1:
        parser.error("--batch, --size and --rounds must be at least 1")
    silence_deprecations()

    variant = args.variant
    weights = ResNeXt(variant.depth, variant.cardinality, variant.width).state_dict()
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    models = {}
    for form in FORMS:
        model = ResNeXt(variant.depth, variant.cardinality, variant.width, form=form)
        model.load_state_dict(convert_form(weights, form))
        models[form] = model.to(args.device).train()
        training_step(models[form], images)  # warm-up
    seconds = {form: [] for form in FORMS}
    for _ in range(args.rounds):
        for form, model in models.items():
            seconds[form].append(training_step(model, images))
    times = {form: statistics.median(values) for form, values in seconds.items()}
    memory = {form: saved_bytes(model, images) / 2**20 for form, model in models.items()}
    rows = [
        (
            form,
            f"{1000 * times[form]:.0f}",
            f"{times[form] / times['c']:.2f}",
            f"{memory[form]:.0f}",
            f"{memory[form] / memory['c']:.2f}",
        )
        for form in FORMS
    ]
    print(
        f"{variant}, {args.batch} x 3 x {args.size} x {args.size}, {args.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"median of {args.rounds} training steps"
    )
    headers = ["form", "ms a step", "ratio to c", "activations (MiB)", "ratio to c"]
    print(tabulate(rows, headers, disable_numparse=True, stralign="right"))


if __name__ == "__main__":
    main()
