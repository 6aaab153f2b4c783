"""The teacher: shapes, sizes, and that it is told apart from what ships."""

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fmengine.errors import ModelError
from fmengine_train.checkpoint import load_model, load_network, save_model
from fmengine_train.keep import keep
from fmengine_train.networks import CONFIGS, build
from fmengine_train.resnet import TEACHERS, Block, ResNet, ResNetConfig

MEGABYTES_OF_A_KEPT_TEACHER = 6


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(CONFIGS[name]).parameters())


@pytest.mark.parametrize("name", list(TEACHERS))
def test_a_teacher_in_half_precision_is_small_enough_to_keep(name: str) -> None:
    assert 2 * parameters(name) < MEGABYTES_OF_A_KEPT_TEACHER * 1e6


@pytest.mark.parametrize("name", list(TEACHERS))
@pytest.mark.parametrize("size", [16, 17, 48, 65])
def test_any_size_from_sixteen_gives_a_logit_a_label(name: str, size: int) -> None:
    config = dataclasses.replace(TEACHERS[name], height=size, width=size + 5, outputs=7)
    assert ResNet(config).eval()(torch.zeros(2, 1, size, size + 5)).shape == (2, 7)


def test_a_smaller_input_is_refused() -> None:
    with pytest.raises(ValueError, match="15×64 pixels; expected 16 or more"):
        ResNet(ResNetConfig(height=15))


def test_a_new_block_is_its_shortcut() -> None:
    block = Block(8, 8, 1).eval()
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), x.relu())


def test_a_kept_teacher_comes_back_with_weights_rounded_to_half(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = ResNet(dataclasses.replace(TEACHERS["resnet-48"], outputs=3)).eval()
    save_model(tmp_path / "teacher.safetensors", teacher, {"labels": ["a", "b", "c"]}, torch.float16)
    loaded, document = load_network(tmp_path / "teacher.safetensors")
    assert document["labels"] == ["a", "b", "c"]
    for name, tensor in loaded.state_dict().items():
        expected = teacher.state_dict()[name]
        assert torch.equal(tensor, expected.half().float() if expected.is_floating_point() else expected), name


def test_a_teacher_is_not_exported(tmp_path: Path) -> None:
    save_model(tmp_path / "teacher.safetensors", ResNet(TEACHERS["resnet-48"]), {})
    with pytest.raises(ModelError, match="holds a ResNet, a teacher; expected an AlexNet"):
        load_model(tmp_path / "teacher.safetensors")


def test_a_run_is_kept_in_half_the_size(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", ResNet(TEACHERS["resnet-48"]), {"labels": ["a", "b"]})
    target = tmp_path / "kept" / "teacher.safetensors"
    result = CliRunner().invoke(keep, [str(tmp_path), str(target)])
    assert result.exit_code == 0, result.exception
    assert load_network(target)[1]["labels"] == ["a", "b"]
    assert target.stat().st_size < 0.55 * (tmp_path / "model.safetensors").stat().st_size
