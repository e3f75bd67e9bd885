"""What a classifier is trained and tested on: batches, seeds, crops and colours."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from resnext_det import get_cfg
from resnext_det.classification.augmentation import crop_and_flip
from resnext_det.classification.imagenet5k import ClassList
from resnext_det.classification.topk import Errors
from resnext_det.classification.trainer import ClassifierTrainer, ErrorsEvaluator
from resnext_det.classification.training_data import (
    build_test_loader,
    build_train_loader,
    hold,
    protocol_of,
    read_set,
)
from resnext_det.config import load_config
from resnext_det.data.skipping import SkippedImages
from resnext_det.data.stream import BatchStream
from resnext_det.engine.replay import pack_batch, unpack_batch
from resnext_det.errors import UserError
from resnext_det.modeling import ImageBatch
from tests.classification.classifiers import make_tree
from tests.classification.training_jobs import CIFAR, IMAGENET, THREE, WORDS, colour_data
from tests.helpers import randomise

BOTH = pytest.mark.parametrize("config", [CIFAR, IMAGENET], ids=["crop", "imagenet"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of various sizes, all larger than those that the networks see."""
    root = tmp_path_factory.mktemp("data")
    make_tree(root / "train", THREE, each=5)
    make_tree(root / "val", THREE, each=7)
    return root


def config_of(data, config, *words):
    name = repr((str(data),))
    own = (*WORDS[config], "DATASETS.TRAIN", name, "DATASETS.TEST", name, *words)
    cfg = load_config(config, [*own, "MODEL.DEVICE", "cpu"])
    cfg.OUTPUT_DIR = str(data)
    return cfg


def first_batches(cfg, count, start=0):
    loader = build_train_loader(cfg)
    loader.batch_sampler.start = start
    return list(itertools.islice(loader, count))


def items_of(batches):
    return [item for batch in batches for item in batch]


def assert_same_items(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(value, other[key]), key


def expected_view(file, size, shorter):
    """torchvision's on a PIL image, (H, W, 3)."""
    bicubic = transforms.InterpolationMode.BICUBIC
    preset = transforms.Compose([transforms.Resize(shorter, bicubic), transforms.CenterCrop(size)])
    return np.asarray(preset(Image.open(file).convert("RGB")))


@pytest.mark.parametrize(("config", "shorter"), [(CIFAR, 32), (IMAGENET, 36)])
def test_test_images_are_torchvisions_centre_crops_in_order(config, shorter, data):
    batches = list(build_test_loader(config_of(data, config)))
    assert [len(batch) for batch in batches] == [8, 8, 5]
    folder = ImageFolder(str(data / "val")).samples
    assert [name for batch in batches for name in batch.names] == [file for file, _ in folder]
    assert [n for batch in batches for n in batch.labels.tolist()] == [n for _, n in folder]
    for item, (file, _) in zip(items_of(batches), folder, strict=True):
        np.testing.assert_array_equal(
            item["image"].permute(1, 2, 0), expected_view(file, 32, shorter)
        )
    assert all(batch.colour is None for batch in batches)
    assert all(batch.images.dtype == torch.uint8 for batch in batches)


def test_processes_share_the_test_images(data, monkeypatch):
    """21 images, of which each is evaluated once."""
    shares = []
    for rank in range(2):
        place = "detectron2.data.samplers.distributed_sampler.comm"
        monkeypatch.setattr(f"{place}.get_world_size", lambda: 2)
        monkeypatch.setattr(f"{place}.get_rank", lambda rank=rank: rank)
        batches = build_test_loader(config_of(data, CIFAR))
        shares.append([name for batch in batches for name in batch.names])
    assert abs(len(shares[0]) - len(shares[1])) == 1
    assert shares[0] + shares[1] == [file for file, _ in ImageFolder(str(data / "val")).samples]


@BOTH
def test_each_pass_over_the_training_images_has_all_of_them(config, data):
    batches = first_batches(config_of(data, config), 15)  # of 8: eight passes over 15 images
    assert all(len(batch) == 8 for batch in batches)
    names = [name for batch in batches for name in batch.names]
    files = sorted(file for file, _ in ImageFolder(str(data / "train")).samples)
    passes = [names[i : i + 15] for i in range(0, len(names), 15)]
    assert all(sorted(each) == files for each in passes)
    assert passes[0] != passes[1]
    labels = dict(ImageFolder(str(data / "train")).samples)
    for batch in batches:
        assert batch.labels.tolist() == [labels[name] for name in batch.names]


def test_a_cropped_item_is_crop_and_flip_of_the_held_image_with_the_streams_seed(data):
    cfg = config_of(data, CIFAR)
    loader = build_train_loader(cfg)
    files = [file for file, _ in ImageFolder(str(data / "train")).samples]
    places = list(itertools.islice(loader.batch_sampler, 3))
    for batch, place in zip(loader, places, strict=False):
        held = np.stack([expected_view(files[index], 32, 32) for _, index in place])
        expected = crop_and_flip(held, [seed for seed, _ in place], 4, (125, 123, 114))
        np.testing.assert_array_equal(batch.images, expected)
        assert batch.names == [files[index] for _, index in place]


def test_crops_of_an_image_differ_from_pass_to_pass(data):
    batches = first_batches(config_of(data, CIFAR), 15)
    views = {}
    for item in items_of(batches):
        views.setdefault(item["file_name"], []).append(item["image"])
    assert all(len(each) == 8 for each in views.values())
    assert all(len({v.numpy().tobytes() for v in each}) > 4 for each in views.values())


def test_padding_is_an_eighth_of_the_size_in_the_mean_colour(data):
    colours = ("INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", "(1.0, 2.0, 3.0)")
    cfg = config_of(data, CIFAR, "CLASSIFIER.SIZE", "40", *colours)
    loader = build_train_loader(cfg)
    (place,) = itertools.islice(loader.batch_sampler, 1)
    held = hold(read_set(cfg, "train"), protocol_of(cfg), SkippedImages(data / "none.jsonl", 0))[1]
    seeds = [seed for seed, _ in place]
    expected = crop_and_flip(held[[index for _, index in place]], seeds, 5, (3, 2, 1))
    np.testing.assert_array_equal(next(iter(loader)).images, expected)


@BOTH
def test_what_an_image_becomes_depends_on_its_seed_and_index_alone(config, data):
    whole = items_of(first_batches(config_of(data, config), 4))
    cut = config_of(data, config, "SOLVER.ACCUM_STEPS", "4")
    assert_same_items(items_of(first_batches(cut, 16)), whole)
    np.random.seed(5)  # what the process has drawn before is of no account
    later = items_of(first_batches(config_of(data, config), 2, start=2))
    assert_same_items(later, whole[16:])
    other = items_of(first_batches(config_of(data, config, "SEED", "2"), 4))
    with pytest.raises(AssertionError):
        assert_same_items(other, whole)


@BOTH
def test_the_same_place_of_the_stream_in_other_company_is_the_same_item(config, data):
    dataset = build_train_loader(config_of(data, config))
    collate, dataset = dataset.collate_fn, dataset.dataset
    places = [(11, 3), (12, 0), (13, 3)]

    def batch(chosen):
        many = getattr(dataset, "__getitems__", lambda each: [dataset[place] for place in each])
        return collate(many(chosen))

    together = batch(places)
    for index, place in enumerate(places):
        assert_same_items([batch([place])[0]], [together[index]])
    assert not torch.equal(together.images[0], together.images[2])  # another seed


@BOTH
def test_processes_train_on_parts_of_the_same_batches(config, data, monkeypatch):
    whole = items_of(first_batches(config_of(data, config), 3))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("resnext_det.data.stream.comm.get_world_size", lambda: 2)
        monkeypatch.setattr("resnext_det.data.stream.comm.get_rank", lambda rank=rank: rank)
        parts.append(first_batches(config_of(data, config), 3))
    assert_same_items(items_of(itertools.chain(*zip(*parts, strict=True))), whole)


def test_images_that_cannot_be_read_give_their_places_to_others(tmp_path):
    data = colour_data(tmp_path)
    (data / "train/ant/3.png").write_bytes(b"nothing")
    for config in (CIFAR, IMAGENET):
        cfg = config_of(data, config, "DATALOADER.MAX_SKIPPED_IMAGES", "1")
        batches = first_batches(cfg, 3)
        names = [name for batch in batches for name in batch.names]
        assert len(names) == 24
        assert len(set(names)) == 23
        for item in items_of(batches):
            # ants are red, bees green and cats blue, before a batch is recoloured
            assert item["image"].float().mean((1, 2)).argmax() == item["label"]
            assert THREE[item["label"]] in item["file_name"]


def test_a_set_without_a_readable_image_is_refused(tmp_path):
    data = colour_data(tmp_path, train=1)
    for file in (data / "train").rglob("*.png"):
        file.write_bytes(b"nothing")
    for config in (CIFAR, IMAGENET):
        cfg = config_of(data, config, "DATALOADER.MAX_SKIPPED_IMAGES", "9")
        with pytest.raises(UserError, match="no image"):
            first_batches(cfg, 1)


def test_more_images_than_memory_should_hold_are_refused_before_any_is_read(data):
    cfg = config_of(data, CIFAR, "CLASSIFIER.SIZE", "4096")
    images = read_set(cfg, "train").taken(np.zeros(200, int))
    with pytest.raises(UserError, match=r"200 of 4096 pixels take 9 GiB; use .* imagenet"):
        hold(images, protocol_of(cfg), SkippedImages(data / "none.jsonl", 0))


def _model(cfg):
    torch.manual_seed(0)
    return randomise(ClassifierTrainer.build_model(cfg))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@torch.no_grad()
def test_the_network_sees_recoloured_normalised_images(order, data):
    cfg = config_of(data, IMAGENET, "INPUT.FORMAT", order)
    model = _model(cfg).eval()
    (batch,) = first_batches(cfg, 1)
    mean, std = (np.array(cfg.MODEL[f"PIXEL_{n}"])[:, None, None] for n in ("MEAN", "STD"))
    inputs = []
    for image, colour in zip(batch.images.numpy(), batch.colour.numpy(), strict=True):
        pixels = [[colour[:, :3] @ x + colour[:, 3] for x in row] for row in image.astype(float)]
        planes = np.array(pixels).transpose(2, 0, 1)
        inputs.append((planes[::-1] if order == "BGR" else planes) - mean)
    x = torch.from_numpy(np.stack(inputs) / std).float()
    expected = model.network(x)["linear"]
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
    plain = model(ImageBatch(batch.images, batch.labels, batch.names))
    assert (plain - expected).abs().max() > 1e-2


@BOTH
def test_the_loss_is_the_mean_cross_entropy_and_a_kept_batch_gives_it_again(config, data):
    cfg = config_of(data, config, "MODEL.RESNETS.NORM", "FrozenBN")
    model = _model(cfg)
    (batch,) = first_batches(cfg, 1)
    with torch.no_grad():
        losses = model.train()(batch)
        again = model(unpack_batch(pack_batch(batch)))
        logits = model.eval()(batch).double()
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = -probabilities[torch.arange(8), batch.labels].log().mean()
    assert losses.keys() == {"loss_cls"}
    assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert again["loss_cls"].item() == losses["loss_cls"].item()


def test_a_batch_is_a_sequence_of_its_images(data):
    (batch,) = first_batches(config_of(data, IMAGENET), 1)
    again = ImageBatch.of(list(batch))
    for name in ("images", "labels", "colour"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
    assert again.names == batch.names
    assert [item["image"].shape for item in batch] == [(3, 32, 32)] * 8


def test_errors_of_all_processes_are_counted_together(monkeypatch):
    """Of 7 + 4 images, with eight classes of which the first three compete in the second task."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.permuted(np.tile(np.arange(8.0), (11, 1)), axis=1))
    labels = torch.from_numpy(rng.integers(0, 3, 11))
    logits[range(2, 11, 3), labels[2::3]] = 9  # these are right
    logits[0, :3], logits[0, labels[0]] = 0, 1  # and this among the first three alone
    known = ClassList(tuple("abcdefgh"), 3, (1,) * 8)
    parts = []
    for part in (slice(0, 7), slice(7, 11)):
        evaluator = ErrorsEvaluator(known)
        evaluator.reset()
        images = torch.zeros(len(labels[part]), 2, 2, 3, dtype=torch.uint8)
        evaluator.process(ImageBatch(images, labels[part], ["x"] * 11), logits[part])
        parts.append(evaluator)
    counted = [evaluator._errors for evaluator in parts]
    assert all(isinstance(errors["classification"], Errors) for errors in counted)
    monkeypatch.setattr("resnext_det.classification.trainer.comm.gather", lambda _: counted)
    found = parts[0].evaluate()
    wrong1 = (logits.argmax(1) != labels).sum().item()
    wrong5 = 11 - (logits.topk(5).indices == labels[:, None]).sum().item()
    first = (logits[:, :3].argmax(1) != labels).sum().item()
    assert 0 < wrong5 < first < wrong1 < 11
    assert found["classification"]["top1_error"] == pytest.approx(100 * wrong1 / 11)
    assert found["classification"]["top5_error"] == pytest.approx(100 * wrong5 / 11)
    assert found["classification"]["accuracy"] == pytest.approx(100 - 100 * wrong1 / 11)
    assert found["classification_1k"]["top1_error"] == pytest.approx(100 * first / 11)
    assert np.isnan(found["classification_1k"]["top5_error"])
    monkeypatch.setattr("resnext_det.classification.trainer.comm.is_main_process", lambda: False)
    assert parts[1].evaluate() is None


def test_the_embedded_crops_are_a_data_set_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(
        "resnext_det.classification.training_data.shape_crops_folder",
        lambda: colour_data(tmp_path / "crops"),
    )
    cfg = get_cfg("classification/quick/X26_8x4d_shapes")
    cfg.CLASSIFIER.NUM_CLASSES = 3
    assert len(read_set(cfg, "train")) == 24


def test_the_train_loader_streams_by_seed(data):
    loader = build_train_loader(config_of(data, CIFAR, "SEED", "7"))
    assert isinstance(loader.batch_sampler, BatchStream)
    assert loader.batch_sampler.seed == 7
