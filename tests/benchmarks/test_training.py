"""What training costs: every figure is there, and what is counted is what a step does."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fmengine.errors import DataError, UnavailableError
from fmengine_bench import step_parts
from fmengine_bench import training as bench
from fmengine_bench.step_parts import Part, count, count_flops, count_parts
from fmengine_train.recipe import Recipe
from fmengine_train.trainer import Trainer

CPU = torch.device("cpu")
PARTS = ["data", "augmentation", "forward and backward", "optimiser", "moving average"]
TINY = Recipe(size=32, batch_size=8, precision="fp32", widths=(2, 2, 2, 2, 2), hidden=(4, 4), mixup=0.3, harsh=0.1)
TOTALS = 16  # operations at most, that sum up an epoch's losses


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short turns, and a small product for the peak."""
    monkeypatch.setattr(bench, "TURN", 0.01)
    monkeypatch.setattr(step_parts, "PEAK_SECONDS", 0.01)
    monkeypatch.setattr(step_parts, "SIDES", {"cpu": 64})


@pytest.fixture
def trainer() -> Trainer:
    made = Trainer(TINY, bench.draw_data(TINY, 24), Path(), CPU)
    made.model.train()
    return made


def write_recipe(path: Path) -> Path:
    path.write_text("size = 32\nbatch_size = 8\nwidths = [2, 2, 2, 2, 2]\nhidden = [4, 4]\n", encoding="utf-8")
    return path


def test_every_figure_is_measured() -> None:
    report = bench.measure(TINY, CPU, 24, 0)
    assert report.steps == 2  # 2 of 24 pictures are held out, and 6 are no batch
    assert list(report.step) == [*PARTS, "rest", "whole step"]
    assert all(value > 0 for name, value in report.step.items() if name != "rest")
    assert sum(report.step[name] for name in [*PARTS, "rest"]) == pytest.approx(report.step["whole step"])
    assert list(report.seconds) == ["steps", "evaluation", "snapshot", "whole"]
    assert all(0 < figure.low <= figure.median <= figure.high for figure in report.seconds.values())
    assert report.pictures["steps"].median > report.pictures["whole"].median > 0
    assert report.arithmetic.step > 0
    assert report.arithmetic.peak > 0
    text = bench.as_text(report)
    assert all(f"\n{name} " in text for name in [*PARTS, "rest", "whole step", "evaluation", "snapshot", "peak"])
    assert "nan" not in text


def test_an_evaluation_that_takes_long_is_pointed_out() -> None:
    report = bench.measure(TINY, CPU, 24, 0)
    for share, said in ((0.04, False), (0.06, True)):
        for name in ("evaluation", "snapshot"):
            report.seconds[name] = replace(report.seconds["whole"], median=share * report.seconds["whole"].median)
        assert bench.as_text(report).count("more than the 5% it should be") == said


def test_a_negative_rest_is_explained() -> None:
    report = bench.measure(TINY, CPU, 24, 0)
    report.step["rest"] = -1.0
    assert "rest: negative: other work" in bench.as_text(report)
    report.facts["device"] = "cuda, a GPU"
    assert "that the graph of a step hides" in bench.as_text(report)


def test_json_has_a_report_for_each_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "tiny.toml")
    options = ["--pictures", "12", "--seconds", "0", "--device", "cpu", "--json"]
    done = CliRunner().invoke(bench.training, [str(path), *options], catch_exceptions=False)
    document = json.loads(done.stdout)[str(path)]
    assert document.keys() == {"facts", "steps", "seconds", "pictures", "step", "counts", "arithmetic"}
    assert document["facts"]["model"] == "alexnet-slim, 1×32×32"
    assert document["counts"].keys() == {"cpu", "gpu"}
    assert document["counts"]["gpu"]["augmentation"]["waits"] == 0
    assert document["arithmetic"]["share"].keys() == {"forward and backward", "whole step"}


# What is counted


def test_on_a_gpu_the_host_waits_for_nothing_in_a_step(trainer: Trainer) -> None:
    batches = [trainer.data.train[:8], trainer.data.train[8:16]]
    on_cpu, on_gpu = (count_parts(trainer, batches, kind) for kind in ("cpu", "gpu"))
    assert list(on_cpu) == list(on_gpu) == PARTS
    assert all(part.waits == 0 for part in on_gpu.values())
    assert on_cpu["augmentation"].waits > 0
    assert on_gpu["data"].operations == 4  # gathered there: pictures, targets, answers, hints
    assert on_gpu["optimiser"].operations < on_cpu["optimiser"].operations  # fused
    assert on_gpu["forward and backward"] == on_cpu["forward and backward"]


def test_the_parts_are_the_step(trainer: Trainer) -> None:
    """All that a step as on a GPU does beside them is to sum up the losses."""
    batches = [trainer.data.train[:8]]
    (batch,) = trainer.feed.take(batches)
    steps = type(trainer.steps)(
        *(TINY, trainer.guided, trainer.parallel, trainer.ema, trainer.optimizer, trainer.loss),
        *(trainer.dtype, CPU),
        masked=True,
    )
    step = count(Part(lambda: steps.step(batch)))
    on_cpu, on_gpu = (count_parts(trainer, batches, kind) for kind in ("cpu", "gpu"))
    parts = [on_gpu["augmentation"], *(on_cpu[name] for name in PARTS[2:])]
    assert 0 < step.operations - sum(part.operations for part in parts) <= TOTALS
    assert step.waits == sum(part.waits for part in parts)  # of the optimizer, which counts its steps on a CPU


def test_the_trainers_own_settings_come_back(trainer: Trainer) -> None:
    count_parts(trainer, [trainer.data.train[:8]], "gpu")
    assert [group["fused"] for group in trainer.optimizer.param_groups] == [None, None]


def test_views_are_no_operations_and_values_that_are_read_are_waits() -> None:
    matrix = torch.ones(4, 4)
    counted = count(Part(lambda: (matrix.t().reshape(16).sum().item(), matrix.nonzero())))
    assert (counted.operations, counted.waits) == (4, 2)  # the transposed matrix is copied, summed, and read


def test_flops_are_those_counted_by_hand() -> None:
    images = torch.randn(2, 1, 8, 8)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))
    convolution = 2 * 2 * 4 * 64 * 9  # 2 pictures of 64 pixels, 4 channels, kernels of 9
    linear = 2 * 2 * 256 * 3
    # Backward takes as much again for the weights, and for the input, but not for the pictures.
    assert count_flops(lambda: network(images).sum().backward()) == 2 * convolution + 3 * linear
    with torch.no_grad():
        assert count_flops(lambda: network(images)) == convolution + linear


# What cannot be measured


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"8 pictures, 2 of them held out, are less than a batch of 8; raise --pict"
    ):
        bench.draw_data(TINY, 8)


def test_too_small_an_input_is_refused() -> None:
    with pytest.raises(DataError, match="too small"):
        bench.measure(Recipe(size=2, batch_size=2), CPU, 8, 0)


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="no CUDA device works"):
        CliRunner().invoke(bench.training, ["--device", "cuda"], catch_exceptions=False)


def test_without_a_recipe_it_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Recipe] = []

    def measure(recipe: Recipe, *_: object) -> None:
        asked.append(recipe)
        raise DataError("seen")

    monkeypatch.setattr(bench, "measure", measure)
    for arguments in ([], ["--model", "alexnet", "--batch-size", "32"]):
        CliRunner().invoke(bench.training, [*arguments, "--device", "cpu"])
    slim, full = asked
    assert (slim.model, slim.harsh, slim.batch_size) == ("alexnet-slim", 0.06, 128)
    assert (full.model, full.norm, full.batch_size) == ("alexnet", "batch", 32)
    assert math.isclose(full.augment, 0.5)
