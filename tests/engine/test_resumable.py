"""Jobs of several runs, of any kind: each is brought to its end once."""

import argparse
import json
import os

import pytest
import torch
from detectron2.config import CfgNode

from resnext_det.engine.resumable import Kind, train_or_skip


class Baking:
    """A kind of job that notes how it was called."""

    def __init__(self, folder):
        self.folder, self.calls, self.shown = folder, [], []
        self.kind = Kind(self.run, self.read, self.show)

    def read(self, config_file, overrides):
        assert (config_file, overrides) == ("cake.yaml", ["A", "1"])
        return CfgNode({"OUTPUT_DIR": str(self.folder), "SOLVER": {"MAX_ITER": 10}}), False

    def run(self, args):
        self.calls.append((args.eval_only, args.resume, args.extra))
        return {"cake": {"height": 7.0}}

    def show(self, results, cfg):
        self.shown.append((results, cfg.OUTPUT_DIR))
        return "a cake"

    def go(self, **options):
        args = argparse.Namespace(config_file="cake.yaml", opts=["A", "1"], extra="icing")
        return train_or_skip(args, kind=self.kind, **options)


@pytest.fixture
def baking(tmp_path):
    return Baking(tmp_path)


def checkpoint(folder, iteration):
    torch.save({"model": {}, "iteration": iteration}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")


def test_a_new_run_is_trained(baking):
    assert baking.go() == {"cake": {"height": 7.0}}
    assert baking.calls == [(False, False, "icing")]


def test_a_run_that_was_begun_goes_on(baking, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    baking.go()
    assert baking.calls == [(False, True, "icing")]


def test_one_that_was_trained_for_fewer_iterations_goes_on(baking, tmp_path):
    checkpoint(tmp_path, 4)
    (tmp_path / "results.json").write_text("{}")
    baking.go()
    assert baking.calls == [(False, True, "icing")]


def test_one_that_was_trained_and_not_evaluated_is_evaluated(baking, tmp_path):
    checkpoint(tmp_path, 9)
    assert baking.go() == {"cake": {"height": 7.0}}
    assert baking.calls == [(True, True, "icing")]


def test_results_from_before_the_last_training_do_not_count(baking, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    os.utime(tmp_path / "results.json", (1, 1))
    checkpoint(tmp_path, 9)
    baking.go()
    assert baking.calls == [(True, True, "icing")]


def test_a_finished_run_is_not_touched_and_its_results_are_shown_by_its_kind(baking, tmp_path):
    checkpoint(tmp_path, 9)
    (tmp_path / "results.json").write_text(json.dumps({"cake": {"height": 6.5}}))
    assert baking.go() == {"cake": {"height": 6.5}}
    assert not baking.calls
    assert baking.shown == [({"cake": {"height": 6.5}}, str(tmp_path))]


def test_results_are_not_made_where_nobody_needs_them(baking, tmp_path):
    checkpoint(tmp_path, 9)
    assert baking.go(needs_results=False) == {}
    assert not baking.calls and not baking.shown
