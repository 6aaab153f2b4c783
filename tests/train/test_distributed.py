"""Several processes train what one would: over gloo, on the CPU."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fmengine.errors import DataError
from fmengine_train.checkpoint import read_tensors
from fmengine_train.cli import train as command
from fmengine_train.distributed import SyncBatchNorm2d, World, synchronize

RECIPE = """
model = "alexnet-slim"
size = 32
widths = [8, 8, 8, 8, 8]
hidden = [16, 16]
epochs = 2
batch_size = 32
optimizer = "sgd"
learning_rate = 0.02
warmup = 1.0
precision = "fp32"
augment = 0.0
dropout = 0.0
"""


MODULE = ("-m", "--", "fmengine", "train")


def torchrun(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True], ids=["labels", "teacher and hints"])
def test_two_processes_give_the_weights_of_one(
    taught: bool, drawn_faces: Path, tiny_run: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + f"hint_weight = {float(taught)}\n")
    options = [drawn_faces, "--recipe", recipe, "--device", "cpu", *(["--teacher", tiny_run] if taught else [])]
    alone = CliRunner().invoke(command, [*map(str, options), "--run", str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    together = torchrun(2, *MODULE, *options, "--run", tmp_path / "two")
    assert together.returncode == 0, together.stderr
    assert together.stdout == f"{tmp_path / 'two' / 'model.safetensors'}\n"  # one speaks for both
    assert together.stderr.count("epoch 2/2") == 1
    (one, first), (two, second) = (read_tensors(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert first["labels"] == second["labels"]
    # A run of two goes on as a run of one.
    alone = CliRunner().invoke(command, [*map(str, options), "--run", str(tmp_path / "two"), "--resume"])
    assert alone.exit_code == 0, alone.output
    assert "epochs finished: 2 of 2" in alone.stderr


def start_processes(*arguments: str | Path, folder: Path) -> list[tuple[int, str]]:
    """Run two processes without a launcher, which would end the second with the first.

    Each returns its exit code and its stderr. `RANK` among the arguments stands for the rank.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, *(str(argument).replace("RANK", str(rank)) for argument in arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | meeting | {"RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(folder / str(rank))},
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def find_words(error: str) -> str:
    """Return the one line that says what went wrong."""
    (line,) = [line for line in error.splitlines() if line.startswith("fmengine: ")]
    return line


NODES_THAT_DIFFER = """
import os
from fmengine.cli import main
from fmengine_train import cli
rank = os.environ["RANK"]
load = cli.data.load
def other(items, *more, **options):
    return load(items[: len(items) - int(rank)], *more, **options)
cli.data.load = other
main(cli.train)
"""


@pytest.mark.slow
def test_nodes_with_other_pictures_are_refused(drawn_faces: Path, tmp_path: Path) -> None:
    script = tmp_path / "nodes.py"
    script.write_text(NODES_THAT_DIFFER)
    options = ["--run", tmp_path / "run", "--size", "32", "--epochs", "1", "--device", "cpu"]
    for code, error in start_processes(script, drawn_faces, *options, folder=tmp_path):
        assert code == 2
        assert find_words(error).startswith("fmengine: the processes differ in their training data: ")
        assert "expected the same pictures on every node" in error


@pytest.mark.slow
def test_processes_with_another_recipe_are_refused_before_they_read_pictures(
    drawn_faces: Path, tmp_path: Path
) -> None:
    options = ["--seed", "RANK", "--epochs", "1RANK", "--run", tmp_path / "run", "--device", "cpu"]
    for code, error in start_processes("-m", "fmengine", "train", drawn_faces, *options, folder=tmp_path):
        assert code == 2
        words = "fmengine: the processes differ in their recipe: epochs 10 or 11, seed 0 or 1; expected "
        assert find_words(error).startswith(words)
        assert "training and" not in error


ENDS_BADLY_IN_ONE = """
import torch
from pathlib import Path
from fmengine.cli import main
from fmengine.errors import OutputError
from fmengine_train.distributed import join
import click
@click.command()
@click.argument("folder", type=Path)
def command(folder):
    with join(torch.device("cpu"), folder) as (world, _):
        if world.first:
            raise OutputError("the disk is full")
main(command)
"""


@pytest.mark.slow
def test_no_process_ends_well_where_the_first_does_not(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ENDS_BADLY_IN_ONE)
    (first, _), (second, error) = start_processes(script, tmp_path, folder=tmp_path)
    assert (first, second) == (2, 4)
    line = find_words(error)
    assert "another process of this run is gone (" in line
    assert line.endswith("; no epoch was finished: start the run again")
    # torchrun's report shows what it finds here.
    words = [json.loads((tmp_path / rank).read_text())["message"]["message"] for rank in "01"]
    assert words == ["fmengine: the disk is full", line]


def test_every_picture_of_a_batch_belongs_to_one_process() -> None:
    batch = list(range(12))
    shares = [batch[World(rank, 3).slice_batch(12)] for rank in range(3)]
    assert sorted(chain(*shares)) == batch
    assert {len(share) for share in shares} == {4}


@pytest.mark.parametrize("batch_size", [7, 4])
def test_a_share_of_fewer_than_two_pictures_is_refused(batch_size: int) -> None:
    with pytest.raises(DataError, match="cannot be shared by 4 processes; expected a multiple of 4, at least 8"):
        World(0, 4).slice_batch(batch_size)


def test_one_process_changes_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(4))
    synchronize(model, World(), torch.device("cpu"))
    assert type(model[0]) is torch.nn.BatchNorm2d
    assert World().wrap(model, torch.device("cpu")) is model
    assert World().sum(1.5, 2) == [1.5, 2]


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
def test_batch_norm_on_the_cpu_is_pytorchs() -> None:
    torch.manual_seed(3)
    theirs = torch.nn.Sequential(torch.nn.BatchNorm2d(5))
    torch.nn.init.normal_(theirs[0].weight)
    ours = torch.nn.Sequential(torch.nn.BatchNorm2d(5))
    ours.load_state_dict(theirs.state_dict())
    synchronize(ours, World(0, 2), torch.device("cpu"))
    assert isinstance(ours[0], SyncBatchNorm2d)
    x = torch.randn(6, 5, 3, 3, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for module, pictures in ((theirs, x), (ours, y)):
        module(pictures).pow(3).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-4)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
