"""Python configs build the same detectors as the YAML ones, and train."""

import json
import re
import subprocess
import sys
import zipfile

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

import resnext_det
from resnext_det.config import config_dir
from resnext_det.data import NamingDatasetMapper, shapes
from resnext_det.data.custom import CustomData
from resnext_det.engine import Trainer, argument_parser, run_job
from resnext_det.engine.lazy import train_or_evaluate_lazy
from resnext_det.engine.lazy_config import load_lazy_config
from resnext_det.errors import UserError
from tests.helpers import REPO, randomise
from tests.test_packaging import run as run_python
from tests.test_packaging import wheel  # noqa: F401

LAZY = config_dir() / "lazy"
NAMES = sorted(
    str(p.relative_to(LAZY))[:-3] for p in LAZY.rglob("*.py") if p.parent.name != "common"
)
QUICK = "lazy/quick/faster_rcnn_X26_8x4d_FPN"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")


def lazy_config(name):
    return LazyConfig.load(str(LAZY / f"{name}.py"))


def training_image(classes):
    """One random 96x128 image with two objects."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8)
    instances = Instances((96, 128))
    boxes = torch.tensor([[8.0, 8.0, 72.0, 80.0], [40.0, 20.0, 120.0, 90.0]])
    masks = torch.zeros(2, 96, 128, dtype=torch.bool)
    masks[0, 8:80, 8:72] = masks[1, 20:90, 40:120] = True
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor([1, classes - 1])
    instances.gt_masks = BitMasks(masks)
    return [{"image": image, "instances": instances, "height": 96, "width": 128}]


@pytest.mark.parametrize("name", NAMES)
def test_a_python_config_builds_the_yaml_configs_model(name):
    cfg = resnext_det.get_cfg(name)
    cfg.MODEL.DEVICE = "cpu"
    in_yaml = randomise(build_model(cfg))
    in_python = instantiate(lazy_config(name).model)
    shapes_of = [{k: v.shape for k, v in m.state_dict().items()} for m in (in_yaml, in_python)]
    assert shapes_of[0] == shapes_of[1]
    assert list(shapes_of[0]) == list(shapes_of[1])
    frozen = [
        [k for k, p in m.named_parameters() if not p.requires_grad] for m in (in_yaml, in_python)
    ]
    assert frozen[0] == frozen[1]
    in_python.load_state_dict(in_yaml.state_dict())
    in_python.roi_heads.box_predictor.test_score_thresh = 0.0  # random weights detect nothing
    in_yaml.roi_heads.box_predictor.test_score_thresh = 0.0

    inputs = training_image(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    losses, detections = [], []
    for model in (in_yaml, in_python):
        torch.manual_seed(0)  # training samples anchors and proposals
        with EventStorage(), torch.no_grad():
            losses.append(model.train()(inputs))
    in_python.load_state_dict(in_yaml.state_dict())  # training moved BN's statistics
    for model in (in_yaml, in_python):
        with torch.no_grad():
            detections.append(model.eval()(inputs)[0]["instances"].get_fields())
    assert list(losses[0]) == list(losses[1])
    assert ("loss_mask" in losses[0]) == name.startswith("mask_rcnn")
    for key, value in losses[0].items():
        assert torch.isfinite(value)
        torch.testing.assert_close(losses[1][key], value, rtol=0, atol=0)
    assert len(detections[0]["scores"]) > 0
    for key in detections[0]:
        ours, theirs = (getattr(d[key], "tensor", d[key]) for d in detections)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_python_config_trains_as_the_yaml_config(name):
    cfg, lazy = resnext_det.get_cfg(name), lazy_config(name)
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert (lazy.dataloader.train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (lazy.dataloader.test.dataset.names,) == cfg.DATASETS.TEST

    cfg.MODEL.DEVICE = "cpu"
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    theirs = Trainer.build_optimizer(cfg, net)
    lazy.optimizer.params.model = net
    ours = instantiate(lazy.optimizer)
    assert type(ours) is type(theirs)
    for mine, reference in zip(per_parameter(ours), per_parameter(theirs), strict=True):
        assert mine == reference

    scheduler = build_lr_scheduler(cfg, theirs)
    multiplier = instantiate(lazy.lr_multiplier)
    for step in (0, 1, 50, 999, 1000, 30_000, 60_000, 80_000, 120_000, cfg.SOLVER.MAX_ITER - 1):
        if step < cfg.SOLVER.MAX_ITER:
            where = step / cfg.SOLVER.MAX_ITER
            assert multiplier(where) == pytest.approx(scheduler._multiplier(where), rel=1e-9)


def per_parameter(optimizer):
    """The settings of each parameter, in the model's order."""
    keys = ("lr", "weight_decay", "momentum", "nesterov", "betas")
    return [
        {key: group[key] for key in keys if key in group}
        for group in optimizer.param_groups
        for _ in group["params"]
    ]


def settings(augmentations):
    """Each augmentation's class and arguments; one length alone leaves nothing to draw."""
    found = []
    for augmentation in augmentations.augs:
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(augmentation).items()}
        if len(set(values.get("short_edge_length", ()))) == 1:
            values["short_edge_length"] = values["short_edge_length"][:1]
            del values["sample_style"], values["is_range"]
        found.append((type(augmentation), values))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_python_config_reads_images_as_the_yaml_config(name):
    cfg, lazy = resnext_det.get_cfg(name), lazy_config(name)
    for is_train, loader in ((True, lazy.dataloader.train), (False, lazy.dataloader.test)):
        theirs = vars(NamingDatasetMapper(cfg, is_train))
        mapper = instantiate(loader.mapper)
        assert isinstance(mapper, DatasetMapper)
        augmentations = [settings(m["augmentations"]) for m in (theirs, vars(mapper))]
        assert augmentations[0] == augmentations[1]
        for key in ("image_format", "use_keypoint", "recompute_boxes"):
            assert vars(mapper)[key] == theirs[key]
        if is_train:
            assert mapper.use_instance_mask == theirs["use_instance_mask"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run the job on a handful of shapes; returns the exit status."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"shapes_train": 8, "shapes_minival": 4})

    def run(*words, config=QUICK, output="output"):
        overrides = [*words, f"train.output_dir={tmp_path / output}"]
        flags = argument_parser().parse_args(["--config-file", config, *overrides])
        return run_job(train_or_evaluate_lazy, flags)

    return run


FAST = (
    "train.max_iter=2",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
)


def test_it_trains_evaluates_resumes_and_writes_its_files(job, tmp_path, capsys):
    assert job(*FAST) == 0
    output = tmp_path / "output"
    for name in ("metrics.json", "results.json", "config.yaml", "log.txt", "model_final.pth"):
        assert (output / name).is_file()
    printed = capsys.readouterr().out
    assert "AP@0.5" in printed
    if not torch.cuda.is_available():
        assert printed.count("no GPU is visible: running on the CPU") == 1
    results = json.loads((output / "results.json").read_text())
    assert 0 <= results["bbox"]["AP"] <= results["bbox"]["AP50"] <= 100
    assert [json.loads(line)["iteration"] for line in (output / "metrics.json").open()] == [1, 2]

    weights = f"train.init_checkpoint={output / 'model_final.pth'}"
    assert job("--eval-only", weights, output="again") == 0
    assert json.loads((tmp_path / "again/results.json").read_text()) == results

    assert job("--resume", *FAST) == 1
    assert (
        "is finished (iteration 2 of 2): raise the number of iterations" in capsys.readouterr().err
    )
    assert job("--resume", "train.max_iter=3", *FAST[1:]) == 0
    state = torch.load(output / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2
    steps = {s["step"].item() for s in state["trainer"]["optimizer"]["state"].values()}
    assert steps == {3}  # AdamW counts on where the checkpoint left it


@pytest.mark.slow  # with other engines than torch's, which no other test here loads
def test_an_optimised_evaluation_gives_the_same_results(job, tmp_path, capsys):
    assert job(*FAST) == 0
    weights = f"train.init_checkpoint={tmp_path / 'output/model_final.pth'}"
    assert job("--eval-only", "--optimize", "f32", weights, output="fast") == 0
    plain, fast = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("output", "fast")
    )
    assert fast["bbox"]["AP"] == pytest.approx(plain["bbox"]["AP"], abs=0.1, nan_ok=True)
    capsys.readouterr()
    assert job("--eval-only", "--optimize", "int8", weights, output="int8") == 1
    assert "run tools/train_net.py --eval-only --optimize int8" in capsys.readouterr().err


def test_a_low_ap_is_judged_by_the_finished_training_alone(job, tmp_path, capsys):
    words = (*FAST[1:], "train.max_iter=3", "train.eval_period=1")
    assert job(*words) == 0
    printed = capsys.readouterr().out
    told = "the model is probably not trained enough: training had 3 iterations"
    assert printed.count(told) == 1  # of three evaluations that of the end
    assert "for no reason that shows" not in printed

    weights = f"train.init_checkpoint={tmp_path / 'output/model_final.pth'}"
    assert job("--eval-only", weights, "train.max_iter=90000", output="again") == 0
    printed = capsys.readouterr().out
    assert printed.count(told) == 1  # of the run's own schedule
    assert "stopped at iteration" not in printed
    assert job("--eval-only", output="random") == 0
    printed = capsys.readouterr().out
    assert "a model that was not trained in this run has random weights" in printed


def test_a_test_set_that_cannot_be_evaluated_stops_before_the_model_is_built(job, tmp_path, capsys):
    assert job("--eval-only", output="first") == 0  # draws the shapes
    (drawn,) = (tmp_path / "datasets").rglob("shapes_minival.json")
    content = json.loads(drawn.read_text())
    del content["annotations"][0]["area"]
    file = tmp_path / "no_area.json"
    file.write_text(json.dumps(content))
    CustomData.read(str(file), str(tmp_path)).register("no_area")
    capsys.readouterr()
    assert job(*FAST, "dataloader.test.dataset.names=no_area") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: annotation ") and "has no 'area', so bbox cannot" in error
    assert error.count("\n") == 1 and not (tmp_path / "output").exists()


def test_frozen_layers_without_weights_are_an_error(job, capsys):
    assert job("model.backbone.bottom_up.freeze_at=2", *FAST) == 1
    error = capsys.readouterr().err
    assert re.search(r"no weights were named and \d+ random tensors are frozen", error)
    assert "with freeze_at of the backbone 0" in error


def test_sync_bn_without_company_becomes_bn_and_is_said_once(job, capsys):
    norms = ("model.backbone.bottom_up.norm=SyncBN", "model.backbone.norm=SyncBN")
    assert job("--eval-only", *norms) == 0
    assert capsys.readouterr().out.count("SyncBN needs several processes") == 1


@no_gpu
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train.maxiter=3"],
            "unknown config key 'train.maxiter' (+train.maxiter=3 adds it); did you",
        ),
        (["SOLVER.MAX_ITER", "3"], "override 'SOLVER.MAX_ITER' is not of the form key=value"),
        (["model.width=3"], "unknown config key 'model.width'"),
        (["train.device=cuda"], "train.device=cuda: no GPU is visible to torch"),
        (["train.amp.enabled=True"], "train.amp.enabled=True needs a GPU"),
        (["train.max_iter=3", "--resume"], "--resume stands after the key=value overrides"),
        (["model.roi_heads.num_classes=80"], "dataset shapes_train has 5 classes, model.roi_heads"),
        (["dataloader.train.dataset.names=shapes"], "dataset shapes is not registered"),
        (["train.init_checkpoint=nothing.pth"], "nothing.pth does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(job, capsys, words, message):
    assert job(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_image_is_named(job, tmp_path, capsys):
    assert job("--eval-only") == 0
    capsys.readouterr()
    for image in (tmp_path / "datasets").rglob("shapes_minival/*.png"):
        image.unlink()
    for image in (tmp_path / "datasets").rglob("shapes_minival/*.jpg"):
        image.unlink()
    assert job("--eval-only") == 1
    assert capsys.readouterr().err.startswith("error: cannot read image ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("lazy/faster_rcnn_X51_32x4d", "does not exist; did you mean lazy/faster_rcnn_X50_32x4d"),
        ("configs/faster_rcnn_X50_32x4d.yaml", "is not a Python config: tools/train_net.py reads"),
        ("broken.py", "broken.py: "),
        ("empty.py", "empty.py does not define model, dataloader, optimizer"),
    ],
)
def test_an_unusable_config_is_one_line(config, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("model = (")
    (tmp_path / "empty.py").write_text("train = {}")
    file = tmp_path / config if (tmp_path / config).is_file() else config
    file = REPO / config if (REPO / config).is_file() else file
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_lazy_config(str(file))
    assert "\n" not in str(caught.value)


def test_a_plus_adds_a_key():
    cfg = load_lazy_config("lazy/faster_rcnn_X50_32x4d", ["+model.backbone.form=a"])
    assert cfg.model.backbone.form == "a"


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_config_can_be_read_again(name, tmp_path):
    LazyConfig.save(lazy_config(name), str(tmp_path / "config.yaml"))
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]  # and no pickle beside it
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    with torch.device("meta"):
        models = [instantiate(c.model) for c in (again, lazy_config(name))]
    assert str(models[0]) == str(models[1])


def test_python_configs_load_from_a_wheel(wheel, tmp_path):  # noqa: F811
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import resnext_det; from resnext_det.engine.lazy_config import load_lazy_config; "
        f"assert resnext_det.__file__.startswith({str(tmp_path)!r}); "
        f"print([load_lazy_config(f'lazy/{{n}}').train.max_iter > 0 for n in {NAMES!r}])"
    )
    words = ("-W", "ignore", "-c", program)
    done = run_python(sys.executable, *words, path=tmp_path / "site", cwd=tmp_path)
    assert done.stdout.strip() == str([True] * len(NAMES)), done.stderr


def test_the_tool_runs_the_job():
    tool = (REPO / "tools/lazyconfig_train_net.py").read_text()
    assert "train_or_evaluate_lazy, argument_parser().parse_args()" in tool
    command = [sys.executable, "-W", "ignore", REPO / "tools/lazyconfig_train_net.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stderr.split(",")[0]) == (1, "error: --config-file is missing")


def test_the_pages_example_runs(tmp_path):
    page = (REPO / "docs/lazy_configs.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    check = (
        "\nassert type(detector.backbone.bottom_up).__name__ == 'ResNeXt'\n"
        "assert detector.backbone.bottom_up.res2[0].conv2.groups == 32\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", example + check]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_names_every_python_config():
    page = (REPO / "docs/lazy_configs.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"`{name}.py`" in page
