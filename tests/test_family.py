"""The rest of Detectron2's detectors on ResNeXt, group and synchronised norms, and freezing."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

import resnext_det
from resnext_det import ResNeXt
from resnext_det.data import NamingDatasetMapper
from resnext_det.data.coco_splits import KEYPOINT_SPLITS, SPLITS, find_split
from resnext_det.engine import Trainer, argument_parser, prepare
from resnext_det.engine.setup import without_sync_bn
from tests.helpers import TINY_COCO, needs_tiny_coco, randomise

STAGES = ("stem", "res2", "res3", "res4", "res5")
FAMILY = {  # our config: Detectron2's config with the same values
    "faster_rcnn_X50_32x4d_DC5": "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml",
    "retinanet_X50_32x4d_FPN": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "cascade_rcnn_X50_32x4d_FPN": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint_rcnn_X50_32x4d_FPN": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "mask_rcnn_X50_32x4d_FPN_gn": "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml",
    "mask_rcnn_X50_32x4d_FPN_syncbn": "Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml",
}
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "26", "MODEL.WEIGHTS", ""),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", "128"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "128"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DETECTIONS_PER_IMAGE", "5"),
]


@pytest.fixture
def tiny_coco(tmp_path, monkeypatch):
    (tmp_path / "coco").symlink_to(TINY_COCO, target_is_directory=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


def samples(cfg, count=2):
    """The first images that have what the model learns, as the trainer reads them."""
    key = "keypoints" if cfg.MODEL.KEYPOINT_ON else "bbox"
    found = []
    for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]):
        if sum(bool(a.get(key) and any(a[key])) for a in record["annotations"]) > 1:
            found.append(record)
    torch.manual_seed(0)
    return [NamingDatasetMapper(cfg, True)(record) for record in found[:count]]


@needs_tiny_coco
@pytest.mark.parametrize("name", [*FAMILY, "mask_rcnn_X50_32x4d"])
def test_every_detector_trains_a_step_and_detects(name, tiny_coco):
    cfg = resnext_det.get_cfg(name)
    cfg.merge_from_list(SMALL)
    without_sync_bn(cfg)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = samples(cfg)

    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    assert all(p.isfinite().all() for p in model.parameters())
    untouched = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untouched == []
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    assert ("loss_keypoint" in losses) == cfg.MODEL.KEYPOINT_ON
    assert any("stage2" in key for key in losses) == name.startswith("cascade")

    with torch.no_grad():
        (output,) = model.eval()(batch[:1])
    instances = output["instances"]
    assert len(instances) > 0
    assert instances.pred_boxes.tensor.isfinite().all()
    if cfg.MODEL.MASK_ON:
        assert instances.pred_masks.shape[1:] == (batch[0]["height"], batch[0]["width"])
    if cfg.MODEL.KEYPOINT_ON:
        assert instances.pred_keypoints.shape[1:] == (17, 3)


@pytest.mark.parametrize(("name", "theirs"), FAMILY.items())
def test_the_values_are_detectron2s(name, theirs):
    ours, theirs = resnext_det.get_cfg(name), model_zoo.get_config(theirs)
    for node in ("RPN", "FPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD"):
        assert ours.MODEL[node] == theirs.MODEL[node], node
    for node in ("ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD", "RETINANET", "ANCHOR_GENERATOR"):
        assert ours.MODEL[node] == theirs.MODEL[node], node
    for key in ("NORM", "OUT_FEATURES", "RES5_DILATION"):
        assert ours.MODEL.RESNETS[key] == theirs.MODEL.RESNETS[key]
    for key in ("META_ARCHITECTURE", "KEYPOINT_ON"):
        assert ours.MODEL[key] == theirs.MODEL[key]
    assert ours.MODEL.BACKBONE.FREEZE_AT == theirs.MODEL.BACKBONE.FREEZE_AT
    for key in ("IMS_PER_BATCH", "BASE_LR", "STEPS", "MAX_ITER", "WARMUP_ITERS", "WEIGHT_DECAY"):
        assert ours.SOLVER[key] == theirs.SOLVER[key]
    assert ours.INPUT.MIN_SIZE_TRAIN == theirs.INPUT.MIN_SIZE_TRAIN
    assert ours.TEST.PRECISE_BN == theirs.TEST.PRECISE_BN


@pytest.mark.parametrize(("norm", "layer"), [("gn", nn.GroupNorm), ("syncbn", nn.SyncBatchNorm)])
def test_every_norm_of_a_norm_config_is_of_its_kind(norm, layer):
    cfg = resnext_det.get_cfg(f"mask_rcnn_X50_32x4d_FPN_{norm}")
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    norms = {n: m for n, m in model.named_modules() if n.endswith(".norm")}
    assert all(type(m) is layer for m in norms.values())
    for part in ("bottom_up.stem", "bottom_up.res5", "fpn_output5", "box_head", "mask_head"):
        assert any(part in name for name in norms), part


def test_sync_bn_stays_where_several_gpus_share_a_batch(monkeypatch):
    monkeypatch.setattr("resnext_det.engine.setup.comm.get_world_size", lambda: 2)
    cfg = resnext_det.get_cfg("mask_rcnn_X50_32x4d_FPN_syncbn")
    assert without_sync_bn(cfg) == []
    assert cfg.MODEL.FPN.NORM == "SyncBN"
    cfg.MODEL.DEVICE = "cpu"
    assert len(without_sync_bn(cfg)) == 4


@needs_tiny_coco
def test_sync_bn_without_company_becomes_bn_and_is_said_once(tiny_coco, tmp_path, capsys):
    options = [*SMALL, "OUTPUT_DIR", str(tmp_path)]
    command = ["--config-file", "mask_rcnn_X50_32x4d_FPN_syncbn", *options]
    cfg = prepare(argument_parser().parse_args(command))
    nodes = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    assert [cfg.MODEL[node].NORM for node in nodes] == ["BN"] * 4
    (line,) = [line for line in capsys.readouterr().out.split("\n") if "SyncBN" in line]
    assert all(f"MODEL.{node}.NORM" in line for node in nodes)


@needs_tiny_coco
@pytest.mark.parametrize("name", list(KEYPOINT_SPLITS))
def test_keypoint_splits_have_the_images_and_keypoints_of_their_files(name, tiny_coco, caplog):
    records = DatasetCatalog.get(name)
    boxes = DatasetCatalog.get(name.removeprefix("keypoints_"))
    assert [r["file_name"] for r in records] == [r["file_name"] for r in boxes]
    persons = [a for r in records for a in r["annotations"]]
    assert persons
    assert all(len(a["keypoints"]) == 51 and a["category_id"] == 0 for a in persons)
    full = SPLITS[name.removeprefix("keypoints_")].num_images
    assert f"{name} has 50 images here, not the {full} of the full split" in caplog.text


@pytest.mark.parametrize("name", list(KEYPOINT_SPLITS))
def test_keypoint_splits_have_cocos_keypoint_metadata(name):
    metadata = MetadataCatalog.get(name)
    reference = MetadataCatalog.get("keypoints_coco_2017_val")
    assert metadata.thing_classes == ["person"]
    assert len(metadata.keypoint_names) == 17
    for key in ("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules"):
        assert metadata.get(key) == reference.get(key)
    assert metadata.evaluator_type == "coco"


@pytest.mark.parametrize(
    ("name", "folders", "files"),
    [
        ("trainval35k", ["train2014", "val2014"], ["train2014", "valminusminival2014"]),
        ("minival", ["val2014"], ["minival2014"]),
        ("trainval35k", ["train2017"], ["train2017"]),
        ("minival", ["val2017"], ["val2017"]),
    ],
)
def test_keypoint_splits_are_found_on_either_layout(name, folders, files, tmp_path):
    for name_of_folder in (*folders, "annotations"):
        (tmp_path / name_of_folder).mkdir()
    for file in files:
        (tmp_path / f"annotations/person_keypoints_{file}.json").touch()
    pairs = find_split(f"keypoints_coco_{name}", tmp_path)
    assert [images.name for images, _ in pairs] == folders
    assert [file.name for _, file in pairs] == [f"person_keypoints_{f}.json" for f in files]


@pytest.mark.parametrize("form", ["a", "b", "c"])
@pytest.mark.parametrize("freeze_at", range(6))
def test_training_moves_every_stage_but_the_frozen_ones(freeze_at, form):
    network = ResNeXt(
        26, 4, 2, norm="BN", form=form, freeze_at=freeze_at, stem_out_channels=8,
        res2_out_channels=16, num_classes=3,
    )  # fmt: skip
    randomise(network).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randn(4, 3, 64, 64, generator=generator)
        loss = network(images)["linear"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    after = network.state_dict()
    for index, stage in enumerate(STAGES, start=1):
        values = [k for k in after if k.startswith(f"{stage}.") and not k.endswith("_tracked")]
        assert any(k.endswith("running_mean") for k in values)
        for key in values:
            same = torch.equal(before[key], after[key])
            assert same == (index <= freeze_at), key


@pytest.mark.parametrize("norm", ["GN", "SyncBN"])
def test_freezing_holds_for_other_norms(norm):
    network = ResNeXt(
        26, 32, 4, norm=norm, freeze_at=2, stem_out_channels=32, out_features=["res5"]
    )
    for index, stage in enumerate(STAGES, start=1):
        parameters = list(getattr(network, stage).parameters())
        if norm == "SyncBN" and index <= 2:  # frozen BN's values are buffers
            assert not any(
                isinstance(m, nn.SyncBatchNorm) for m in getattr(network, stage).modules()
            )
        assert all(p.requires_grad == (index > 2) for p in parameters)


@pytest.mark.parametrize("freeze_at", [4, 5])
def test_freeze_at_5_freezes_a_c4_heads_res5_as_well(freeze_at):
    cfg = resnext_det.get_cfg("faster_rcnn_X50_32x4d")
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", freeze_at])
    cfg.MODEL.RESNETS.DEPTH = 26
    res5, _ = resnext_det.ResNeXtRes5ROIHeads._build_res5_block(cfg)
    assert all(p.requires_grad == (freeze_at < 5) for p in res5.parameters())
    assert any(isinstance(m, nn.BatchNorm2d) for m in res5.modules()) == (freeze_at < 5)
