"""Steps as a GPU takes them: nothing waits for the host, and what a GPU does wrong is told in words."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from fmengine.errors import DeviceError, UnavailableError
from fmengine_train import data
from fmengine_train.checkpoint import read_tensors
from fmengine_train.feed import Batch, BlockFeed, Feed, Rows
from fmengine_train.optimize import set_learning_rate
from fmengine_train.recipe import Recipe
from fmengine_train.steps import WARM_UP, CapturedStep, Steps
from fmengine_train.train import train
from fmengine_train.trainer import DivergedError, Trainer

from .test_augment_masked import WAITS, Recorder

SMALL: dict[str, Any] = {
    "size": 32,
    "widths": (8, 8, 8, 8, 8),
    "hidden": (16, 16),
    "batch_size": 32,
    "epochs": 3,
    "warmup": 1.0,
    "precision": "fp32",
    "ema": 0.9,
}
LEARNS: dict[str, Any] = {
    "epochs": 5,
    "widths": (),
    "hidden": (),
    "batch_size": 16,
    "dropout": 0.1,
    "augment": 0.2,
}
CPU = torch.device("cpu")

Make = Callable[..., Trainer]


@pytest.fixture
def make(faces: data.Dataset, tmp_path: Path) -> Make:
    """Makes a trainer on the CPU whose steps are those of a GPU."""

    def trainer(name: str = "run", masked: bool = True, **changes: Any) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        made = Trainer(Recipe(**SMALL | changes), faces, tmp_path / name, CPU)
        of_weights = (made.guided, made.parallel, made.ema, made.optimizer)
        made.steps = Steps(made.recipe, *of_weights, made.loss, made.dtype, CPU, masked=masked)
        return made

    return trainer


def silent(text: str) -> None:
    pass


def read(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "checkpoint.safetensors")[0]


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name, tensor in a.items() if not torch.equal(tensor, b[name])]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_waits_for_nothing_and_takes_as_many_operations_as_the_one_before(
    make: Make, optimizer: str
) -> None:
    """A graph that was captured once can be replayed. `adamw` on a CPU counts its steps there."""
    trainer = make(optimizer=optimizer, mixup=0.5, harsh=0.1)
    trainer.steps.begin_epoch(0)
    trainer.model.train()
    batches = list(trainer.feed.take(trainer._shuffle()))
    trainer.steps.step(batches[0])  # allocates what is kept
    recorded = []
    for batch in batches[1:3]:
        with Recorder() as recorder:
            trainer.steps.step(batch)
        recorded.append(recorder.names)
    own = {"_local_scalar_dense"} if optimizer == "adamw" else set()
    assert WAITS & set(recorded[0]) <= own
    assert recorded[0] == recorded[1]


@pytest.mark.slow
def test_it_learns(make: Make) -> None:
    trainer = make(**LEARNS)
    train(trainer, silent)
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]
    assert max(row["val_accuracy"] for row in trainer.history) >= 0.75


@pytest.mark.slow
def test_a_seed_repeats_and_a_run_goes_on_bit_for_bit(make: Make) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    for name in ("whole", "again"):
        train(make(name), silent)
    train(other := make("other", seed=1), silent)
    with pytest.raises(KeyboardInterrupt):
        train(make("parts"), stop)
    resumed = make("parts")
    resumed.restore()
    assert resumed.epoch == 1
    train(resumed, silent)
    whole = read(resumed.folder.parent / "whole")
    assert differing(whole, read(resumed.folder.parent / "again")) == []
    assert differing(whole, read(resumed.folder)) == []
    assert not torch.equal(whole["model.classifier.1.weight"], read(other.folder)["model.classifier.1.weight"])


# torch.compile


@pytest.mark.parametrize("masked", [True, False], ids=["as-on-a-gpu", "as-on-a-cpu"])
def test_a_compiled_step_computes_the_same_and_its_trial_leaves_no_trace(
    make: Make, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compiler(f, backend="eager", fullgraph=True, **options)
    )
    plain, compiled = (
        make(name, masked=masked, norm="batch", mixup=0.5, harsh=0.1, compile=name == "compiled")
        for name in ("plain", "compiled")
    )
    for trainer in (plain, compiled):
        trainer.train_epoch()
    assert (plain.steps.compiled, compiled.steps.compiled) == (False, True)
    assert not differing(plain.take_snapshot().tensors, compiled.take_snapshot().tensors)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_cannot_be_compiled_runs_as_it_is_and_that_is_said_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    def fail(*_: Any) -> Any:
        raise LookupError("no compiler\nis here")

    def compile_badly(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = function(*args)  # it draws, and BatchNorm counts
            if where == "backward":
                result[0].register_hook(fail)
            return result if where == "backward" and result[0].requires_grad else fail()

        return run if function.__name__ == "_compute_loss" else function

    plain, failing = (make(name, norm="batch", compile=name == "failing") for name in ("plain", "failing"))
    plain.train_epoch()
    monkeypatch.setattr(torch, "compile", compile_badly)
    failing.train_epoch()
    assert not differing(plain.take_snapshot().tensors, failing.take_snapshot().tensors)
    failing.train_epoch()
    assert capsys.readouterr().err.count("a step cannot be compiled (no compiler); training goes on without") == 1


def test_memory_that_ends_while_a_step_is_compiled_is_no_reason_to_go_on_without(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fail)
    with pytest.raises(torch.OutOfMemoryError):
        make(compile=True).train_epoch()


@pytest.mark.integration
def test_pytorchs_compiler_takes_a_step_and_the_run_goes_on_bit_for_bit(make: Make) -> None:
    """Distortions and network, as on a GPU; here it needs a compiler for C++."""

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    recipe = LEARNS | {"norm": "batch", "mixup": 0.5, "compile": True}
    train(whole := make("whole", **recipe), silent)
    assert whole.steps.compiled
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]
    with pytest.raises(KeyboardInterrupt):
        train(make("parts", **recipe), stop)
    resumed = make("parts", **recipe)
    resumed.restore()
    train(resumed, silent)
    assert differing(read(whole.folder), read(resumed.folder)) == []


def test_a_loss_that_is_no_number_is_found_at_the_end_of_the_epoch(make: Make) -> None:
    trainer = make()
    trainer.steps.loss = lambda logits, answers: logits.sum() * math.nan  # type: ignore[assignment]
    with pytest.raises(DivergedError, match="the loss became nan in epoch 1"):
        train(trainer, silent)
    assert list(trainer.folder.iterdir()) == []


class Failing:
    """A feed that fails with an error in its second epoch, some batches in."""

    def __init__(self, feed: Feed, error: RuntimeError, smaller: Feed | None = None) -> None:
        self._feed, self._error, self._smaller, self._epochs = feed, error, smaller, 0

    def take(self, batches: Sequence[Rows]) -> Iterator[Batch]:
        self._epochs += len(batches) == 4  # of training
        for number, batch in enumerate(self._feed.take(batches)):
            if (self._epochs, number) == (2, 2):
                raise self._error
            yield batch

    def shrink(self) -> Feed | None:
        return self._smaller


def test_an_epoch_that_ran_out_of_memory_begins_again_with_less(
    make: Make, faces: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    train(make("whole"), silent)
    trainer = make("poor")
    steps = trainer.steps
    monkeypatch.setattr(trainer, "_make_steps", lambda: steps)
    blocks = BlockFeed((faces.pixels, faces.targets, faces.answers, trainer.hints), CPU, 1 << 16)
    trainer.feed = Failing(trainer.feed, torch.OutOfMemoryError("CUDA out of memory."), blocks)
    train(trainer, said.append)
    (note,) = [text for text in said if text.startswith("note: the GPU")]
    assert "epoch 2 begins again, with pictures that are copied there in smaller blocks" in note
    assert differing(read(trainer.folder.parent / "whole"), read(trainer.folder)) == []


def test_memory_that_is_too_small_whatever_is_done_is_an_error_that_says_what_helps(make: Make) -> None:
    trainer = make()
    trainer.feed = Failing(trainer.feed, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    with pytest.raises(UnavailableError, match=r"ran out of memory in epoch 2 .*2 GiB.*; lower --batch-size"):
        train(trainer, silent)
    assert read_tensors(trainer.folder / "checkpoint.safetensors")[1]["history"][-1]["epoch"] == 1


def test_a_gpu_that_is_lost_is_told_and_the_checkpoint_stays(make: Make) -> None:
    trainer = make()
    trainer.feed = Failing(trainer.feed, RuntimeError("CUDA error: unspecified launch failure\nCompile"))
    with pytest.raises(DeviceError, match=r"the GPU failed in epoch 2 .*launch failure.*; go on from the last"):
        train(trainer, silent)
    assert read_tensors(trainer.folder / "checkpoint.safetensors")[1]["history"][-1]["epoch"] == 1


def test_a_learning_rate_that_a_graph_reads_is_set_in_place(make: Make) -> None:
    trainer = make()
    rates = [torch.tensor(0.0) for _ in trainer.optimizer.param_groups]
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_learning_rate(trainer.optimizer, 0.25)
    assert [float(rate) for rate in rates] == [0.25 * group["scale"] for group in trainer.optimizer.param_groups]


# Graphs, by a double of CUDA's: what is captured does not run, and runs when it is replayed.


class Cuda:
    """Stands in for the parts of `torch.cuda` that capture and replay."""

    def __init__(self, error: RuntimeError | None = None) -> None:
        self.sums: list[float] = []
        self.captured: Batch | None = None
        self.capturing = False
        self.error = error

    def step(self, batch: Batch) -> None:
        if not self.capturing:
            self.sums.append(float(batch[0].sum()))
        elif self.error is not None:
            raise self.error
        else:
            self.captured = batch

    def replay(self) -> None:
        assert self.captured is not None
        self.sums.append(float(self.captured[0].sum()))

    @contextlib.contextmanager
    def graph(self, graph: "Cuda", capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "or what other threads do ends the capture"
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = MagicMock()
        for name, value in {
            "CUDAGraph": lambda: self,
            "graph": self.graph,
            "Stream": lambda: stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda: stream,
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_a_captured_step_sees_every_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)
    step = CapturedStep(cuda.step)
    for number in range(8):
        step([torch.full((4,), float(number))])
    assert cuda.captured is not None
    assert cuda.sums == [4.0 * number for number in range(8)]


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = Cuda(RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"))
    cuda.install(monkeypatch)
    step = CapturedStep(cuda.step)
    for number in range(8):
        step([torch.full((4,), float(number))])
    assert cuda.sums == [4.0 * number for number in range(8)]
    said = capsys.readouterr().err
    assert said.count("cannot be captured in a CUDA graph") == 1
    assert "more" not in said


def test_memory_that_ends_while_a_step_is_captured_is_no_reason_to_go_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(torch.OutOfMemoryError("CUDA out of memory."))
    cuda.install(monkeypatch)
    step = CapturedStep(cuda.step)
    for _ in range(WARM_UP):
        step([torch.ones(4)])
    with pytest.raises(torch.OutOfMemoryError):
        step([torch.ones(4)])
    assert len(cuda.sums) == WARM_UP
