"""Detections as the web demo sends them."""

import json

import torch
from detectron2.structures import Boxes, Instances

from resnext_det.inference.web_images import describe_detections


def instances(**more) -> Instances:
    found = Instances((10, 20))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    found.scores = torch.tensor([0.25, 0.75])
    found.pred_classes = torch.tensor([1, 0])
    for name, value in more.items():
        found.set(name, value)
    return found


def test_each_detection_keeps_what_is_its_own_when_sorted():
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[0, 3, 1:3] = True
    points = torch.tensor([[[1.0, 2, 0.5]], [[5.0, 6, 0.25]]])
    found = describe_detections(instances(pred_masks=masks, pred_keypoints=points), ["cat", "dog"])
    first, second = json.loads(json.dumps(found, allow_nan=False))
    assert (first["name"], first["class"], first["score"]) == ("cat", 0, 0.75)
    assert first["box"] == [5, 6, 7, 8] and first["keypoints"] == [[5, 6, 0.25]]
    assert "mask" not in first  # it is empty
    assert (second["name"], second["score"]) == ("dog", 0.25)
    assert second["box"] == [1, 2, 3, 4] and second["keypoints"] == [[1, 2, 0.5]]
    assert (second["mask"]["x"], second["mask"]["y"]) == (1, 3)


def test_nothing_found_is_an_empty_list():
    masks = torch.zeros(0, 10, 20, dtype=torch.bool)
    assert describe_detections(instances()[:0], ["cat", "dog"]) == []
    none = instances()[torch.zeros(2, dtype=torch.bool)]
    none.pred_masks = masks
    assert describe_detections(none, ["cat", "dog"]) == []
