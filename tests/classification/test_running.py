"""Running a classifier over images, against loops that are written out."""

import numpy as np
import pytest
import torch
import torchvision
from torchvision import transforms

from resnext_det.classification import Errors, Protocol, load_classifier, read_tree, run_test
from resnext_det.classification.testing import mean_logits
from resnext_det.errors import UserError
from tests.classification.classifiers import CLASSES, converted, make_tree, small_resnext

NORMALISE = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
SMALL = {"size": 64, "resize": 72}


class Recording(Errors):
    """Errors that keep the logits."""

    def add(self, logits, labels):
        self.seen = [*getattr(self, "seen", []), logits]
        super().add(logits, labels)

    def logits(self):
        return torch.cat(self.seen)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("running")
    network = small_resnext()
    model = load_classifier(str(converted(network, folder / "w.pth"))).model
    return network, model, make_tree(folder / "val")


def logits_of(case, protocol, **options):
    _, model, root = case
    errors = Recording()
    outcome = run_test(model, read_tree(root), protocol, {"all": errors}, **options)
    assert outcome.images == 2 * len(CLASSES)
    return errors


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@torch.no_grad()
def test_one_crop_is_a_plain_loop_over_torchvisions_model(case):
    network, _, root = case
    preset = transforms.Compose([transforms.Resize(72), transforms.CenterCrop(64), NORMALISE])
    data = torchvision.datasets.ImageFolder(str(root), preset)
    theirs = torch.cat([network(x[None]) for x, _ in data])
    labels = torch.tensor([label for _, label in data])
    errors = logits_of(case, Protocol(**SMALL), batch=4)
    assert_close(errors.logits(), theirs)
    wrong = (theirs.argmax(1) != labels).float().mean()
    assert errors.top1 == pytest.approx(100 * float(wrong))
    wrong5 = 1 - (theirs.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert errors.top5 == pytest.approx(100 * float(wrong5))


@torch.no_grad()
def test_ten_crops_logits_are_averaged(case):
    network, _, root = case
    ten = transforms.Compose([transforms.Resize(72), transforms.TenCrop(64)])
    data = torchvision.datasets.ImageFolder(str(root), ten)
    theirs = [network(torch.stack([NORMALISE(crop) for crop in c])).mean(0) for c, _ in data]
    errors = logits_of(case, Protocol(**SMALL, crops="10"), batch=32)  # 3 images at once
    assert_close(errors.logits(), torch.stack(theirs))


@torch.no_grad()
def test_dense_testing_averages_the_maps_of_logits_over_places_sizes_and_mirror_images(case):
    network, _, root = case
    scales = (64, 96)
    theirs = []
    for image, _ in torchvision.datasets.ImageFolder(str(root)):
        maps = []
        for scale in scales:
            for flipped in (False, True):
                view = transforms.functional.resize(image, scale)
                x = NORMALISE(transforms.functional.hflip(view) if flipped else view)[None]
                for layer in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
                    x = getattr(network, layer)(x)
                x = network.layer4(x)
                # the classifier as a 1 x 1 convolution at every place
                weight, bias = network.fc.weight[:, :, None, None], network.fc.bias
                maps.append(torch.nn.functional.conv2d(x, weight, bias).mean((0, 2, 3)))
        theirs.append(torch.stack(maps).mean(0))
    errors = logits_of(case, Protocol(crops="dense", scales=scales), batch=1)
    assert_close(errors.logits(), torch.stack(theirs))


def test_neither_batches_nor_workers_change_anything(case):
    protocol = Protocol(**SMALL, crops="10")
    expected = logits_of(case, protocol)
    for options in ({"batch": 1}, {"batch": 7}, {"workers": 2}):
        found = logits_of(case, protocol, **options)
        assert_close(found.logits(), expected.logits())
        assert (found.wrong1, found.wrong5) == (expected.wrong1, expected.wrong5)


def test_views_are_averaged_image_by_image():
    def model(views):  # one logit: the value of the view
        return views[:, 0, 0, :1].float()

    def group(*values):
        return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)

    groups = [group(1, 3, 10, 20), group(2, 40)]  # images of 2 + 1 views
    found = mean_logits(model, groups, 2, 3, "cpu")
    np.testing.assert_allclose(found, [[2], [70 / 3]], rtol=1e-6)


def broken_tree(tmp_path, broken):
    root = make_tree(tmp_path / "val")
    for name in broken:
        (root / name).write_bytes(b"no image")
    return read_tree(root)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(case, tmp_path, workers):
    images = broken_tree(tmp_path, ["bee/1.png"])
    with pytest.raises(UserError, match=r"cannot read image .*bee/1.png: it is none .*--skip N"):
        run_test(case[1], images, Protocol(**SMALL), {"all": Errors()}, workers=workers)


@pytest.mark.parametrize("crops", ["1", "dense"])
def test_some_are_left_out_and_the_others_counted(case, tmp_path, crops):
    images = broken_tree(tmp_path, ["ant/0.png", "ant/1.png"])
    protocol = Protocol(**SMALL, crops=crops, scales=(64,))
    outcome = run_test(case[1], images, protocol, {"all": Errors()}, batch=2, skip=2)
    assert outcome.images == 12 and len(outcome.unreadable) == 2
    whole = Recording()
    run_test(case[1], read_tree(case[2]), protocol, {"all": whole})
    rest = Errors()
    rest.add(whole.logits()[2:], torch.from_numpy(images.labels[2:]))
    found = outcome.errors["all"]
    assert (found.wrong1, found.wrong5) == (rest.wrong1, rest.wrong5)


def test_no_more_than_allowed_are_left_out(case, tmp_path):
    images = broken_tree(tmp_path, ["ant/0.png", "cat/0.png"])
    with pytest.raises(UserError, match=r"2 images cannot be read, more than --skip 1: .*ant/0"):
        run_test(case[1], images, Protocol(**SMALL), {"all": Errors()}, skip=1)


def test_nothing_but_broken_images_is_an_error(case, tmp_path):
    images = broken_tree(tmp_path, [f"{name}/{n}.png" for name in CLASSES for n in range(2)])
    with pytest.raises(UserError, match="no image could be read, e.g. cannot read image"):
        run_test(case[1], images, Protocol(**SMALL), {"all": Errors()}, skip=100)
