"""The module of tensors finds what Detectron2's own code finds, and each format what it finds."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes

from resnext_det.deploy import selection
from resnext_det.deploy.exported import ExportedRCNN
from resnext_det.deploy.formats import write
from resnext_det.deploy.runtimes import SUFFIXES, open_model
from resnext_det.deploy.support import require_exportable
from tests.deploy.exports import SIZES, answer, assert_same, config, detector, picture

KINDS = ("fpn", "bgr", "agnostic", "resnet", "c4", "c4_pool", "dc5")
CARD = (
    '{"class_names": ["a", "b", "c", "d", "e"], "min_size": 0, "max_size": 1333, "masks": true, '
    '"image_format": "RGB", "pixel_mean": [1, 2, 3], "pixel_std": [1, 1, 1], '
    '"size_divisibility": 32, "detections_per_image": 100, '
    '"score_threshold": 0.1, "variant": "X-26-8x4d", "licence": "CC0", "source": "torchvision", '
    '"weights_sha256": "", "made_by": "a test", "version": 1}'
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_finds_what_detectron2_finds(kind):
    model = detector(kind)
    require_exportable(model)
    image_format = config(kind).INPUT.FORMAT
    module = ExportedRCNN(model, image_format)
    for size in SIZES:
        image = picture(*size)
        expected = answer(model, image, image_format)
        assert len(expected[0]) > 3
        with torch.no_grad():
            found = [out.numpy() for out in module(torch.from_numpy(image))]
        assert_same(found, expected)


@pytest.mark.parametrize("seed", range(5))
def test_proposals_of_levels_are_those_of_detectron2(seed):
    """Among them boxes beyond the image, thin ones, infinite ones, and more than the top-k."""
    generator = torch.Generator().manual_seed(seed)
    counts = (900, 300, 40, 1)
    boxes, scores = [], []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 120 - 20
        size = torch.rand(count, 2, generator=generator) * 60
        size[::7, 0] = 0.5
        level = torch.cat((corner, corner + size), dim=1)
        level[::11, 2] = float("inf")
        boxes.append(level)
        scores.append(torch.randn(count, generator=generator))
    expected = find_top_rpn_proposals(
        [level[None] for level in boxes], [s[None] for s in scores], [(90, 110)],
        nms_thresh=0.6, pre_nms_topk=500, post_nms_topk=150, min_box_size=1.0, training=False,
    )[0]  # fmt: skip
    kept = []
    for level, score in zip(boxes, scores, strict=True):
        index = selection.top(score, 500)
        kept.append(
            selection.proposals_of_level(
                level[index], score[index], height=90, width=110, min_size=1.0, iou=0.6
            )
        )
    found = selection.best(*zip(*kept, strict=True), 150)
    assert len(found) == 150
    torch.testing.assert_close(found, expected.proposal_boxes.tensor)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("count", [-1, 0, 7])
def test_detections_are_those_of_detectron2(classes, count):
    generator = torch.Generator().manual_seed(classes)
    corner = torch.rand(200, 4, 2, generator=generator) * 90 - 20
    boxes = torch.cat((corner, corner + 30), dim=2)[:, :classes].reshape(200, -1)
    boxes[3, 1] = float("nan")
    scores = torch.rand(200, 5, generator=generator).softmax(dim=1)
    scores[9, 2] = float("inf")
    limits = (0.2, 0.5, count)
    expected, _ = fast_rcnn_inference_single_image(boxes.clone(), scores, (80, 70), *limits)
    found = selection.detections(
        boxes, scores, height=80, width=70, score=0.2, iou=0.5, count=count
    )
    assert (len(expected) > 7) == (count < 0)
    torch.testing.assert_close(found[0], expected.pred_boxes.tensor)
    torch.testing.assert_close(found[1], expected.scores)
    assert torch.equal(found[2], expected.pred_classes)


def test_boxes_go_to_the_levels_that_detectron2_gives_them():
    side = torch.linspace(1, 2000, 500)
    boxes = torch.stack((side * 0, side * 0, side, side * 1.3), dim=1)
    found = selection.levels_of(boxes, 2, 5, 224, 4)
    assert torch.equal(found, assign_boxes_to_levels([Boxes(boxes)], 2, 5, 224, 4))
    assert set(found.tolist()) == {0, 1, 2, 3}


def write_detector(kind: str, format: str, folder, score: float | None = None):
    module = ExportedRCNN(detector(kind), "RGB")
    if score is not None:
        module.heads.limits["score"] = score
    file = folder / f"{kind}{SUFFIXES[format]}"
    names = ("boxes", "scores", "classes", "masks")[: 3 + config(kind).MODEL.MASK_ON]
    write(module, torch.from_numpy(picture(*SIZES[0])), names, CARD, format, file)
    return file


SLOW = ("onnx", "torch_export")
FILES = [
    ("agnostic", "torchscript"),
    *(
        pytest.param(("fpn", format), marks=pytest.mark.slow if format in SLOW else ())
        for format in SUFFIXES
    ),
    *(("c4_pool", format) for format in SUFFIXES),
]


@pytest.fixture(scope="module", params=FILES, ids="-".join)
def file(request, tmp_path_factory):
    """A file of a detector, and which one."""
    return request.param[0], write_detector(*request.param, tmp_path_factory.mktemp("file"))


def test_a_file_of_each_format_finds_the_same_at_other_sizes(file):
    kind, path = file
    card, run = open_model(path)
    assert (card.licence, card.class_names) == ("CC0", ("a", "b", "c", "d", "e"))
    for size in SIZES:
        image = picture(*size, seed=1)
        assert_same(list(run(image)), answer(detector(kind), image))
    content = b"".join(each.read_bytes() for each in path.parent.iterdir())
    assert b"site-packages" not in content  # no paths of the machine that wrote it
    assert picture(*SIZES[0])[0].tobytes() not in content  # nor its pictures


def test_threads_may_share_a_file_of_each_format(file):
    run = open_model(file[1])[1]
    images = [picture(*SIZES[seed % 3], seed=seed) for seed in range(6)]
    expected = [run(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, images * 5))
    for each, single in zip(found, expected * 5, strict=True):
        assert_same(each, single)


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_file_of_each_format_may_find_one_thing_or_nothing(format, tmp_path):
    kind = "c4_pool" if format in SLOW else "fpn"  # the smaller graph
    images = [picture(*SIZES[seed % 3], seed=seed) for seed in range(4)]
    expected = [answer(detector(kind), image) for image in images]
    best, second = sorted((s for found in expected for s in found[1]), reverse=True)[:2]
    score = float(best + second) / 2
    _, run = open_model(write_detector(kind, format, tmp_path, score=score))
    counts = []
    for image, found in zip(images, expected, strict=True):
        count = int((found[1] > score).sum())
        assert_same(list(run(image)), [out[:count] for out in found])
        counts.append(count)
    assert sorted(counts) == [0, 0, 0, 1]
