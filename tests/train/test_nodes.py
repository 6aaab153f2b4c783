"""Two nodes train what one process would, and each says so where it loses the other: over gloo, on CPUs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fmengine_train.checkpoint import format_resume_command, read_document, read_tensors
from fmengine_train.cli import train as command
from fmengine_train.trainer import Trainer

from .machines import Node, join_nodes, make_address
from .test_distributed import RECIPE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("ip") is None, reason="no `ip` on this machine"),
]

Nodes = tuple[Node, Node]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with join_nodes(tmp_path) as both:
        yield both


@pytest.fixture
def options(drawn_faces: Path, tmp_path: Path) -> list[str | Path]:
    """The pictures and the recipe; nothing is drawn at random."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    return [drawn_faces, "--recipe", recipe, "--device", "cpu"]


def run_alone(*arguments: str | Path) -> str:
    """Train in one process, and return what it says."""
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stderr


def count_epochs(run: Path) -> int:
    return len(read_document(run / "checkpoint.safetensors")["history"])


def check_words(node: Node, words: str, run: Path) -> None:
    """Check that a node ended with one line of words, which torchrun's report repeats, and no traceback."""
    assert node.wait() == 1
    lines = [line for line in node.output.splitlines() if line.startswith("fmengine: ")]
    assert len(lines) == 1, node.output
    assert words in lines[0]
    assert f"; go on from the last finished epoch with {format_resume_command(run)}, under torchrun" in lines[0]
    assert "exitcode  : 4 " in node.output
    assert f"traceback : {lines[0]}\n" in node.output
    assert "fmengine_train/" not in node.output


def test_a_node_that_is_killed_leaves_the_weights_of_one_process_which_goes_on(
    nodes: Nodes, options: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options += ["--epochs", "30"]
    for node in nodes:
        node.torchrun(*options, "--run", tmp_path / "two")
    nodes[0].wait_for("epoch 2/")
    nodes[0].kill()  # with it, where the processes meet
    check_words(nodes[1], "another process of this run is gone (", tmp_path / "two")
    assert f"[{make_address(0)}]" in nodes[1].output
    assert "epoch 2/" not in nodes[1].output  # the first one speaks for both
    epochs = count_epochs(tmp_path / "two")
    assert 1 <= epochs < 30  # what was written before the first one was killed
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finished", property(lambda trainer: trainer.epoch == epochs))
        run_alone(*options, "--run", tmp_path / "one")
    one, two = (read_tensors(tmp_path / run / "checkpoint.safetensors")[0] for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    said = run_alone("--resume", "--run", tmp_path / "two", "--device", "cpu")
    assert f"epochs finished: {epochs} of 30\n" in said
    assert "epoch 30/30 " in said


def test_a_network_that_is_cut_is_told_of_by_both_nodes_that_resumed_a_run_of_one(
    nodes: Nodes, options: list[str | Path], tmp_path: Path
) -> None:
    run_alone(*options, "--epochs", "1", "--run", tmp_path / "run")
    for node in nodes:
        node.torchrun("--resume", "--epochs", "5000", "--run", tmp_path / "run", FMENGINE_PEER_TIMEOUT="10")
    nodes[0].wait_for("epoch 3/")
    assert "epochs finished: 1 of 5000\n" in nodes[0].output
    nodes[1].pull_cable()
    for node in nodes:
        check_words(node, "another process of this run did not answer for 10 s: ", tmp_path / "run")
    assert count_epochs(tmp_path / "run") >= 3
