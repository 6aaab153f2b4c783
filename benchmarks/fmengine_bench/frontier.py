"""Compares accuracy and cost of model files with the full AlexNet, timed in turn in one run.

    python -m fmengine_bench.frontier models/*.int8.onnx --data faces/val --part select --output frontier

The network alone is timed, from uint8 pictures to probabilities, on ONNX Runtime. Beside it run the full AlexNet
in FP32 in PyTorch (eager), in ONNX Runtime, and in OpenVINO as it comes where that is installed; its weights are
random, which costs the same. Every contender has its turn in every round, so that noise falls on all alike, and
rests in between, for libraries' threads keep spinning for a while.
"""

import csv
import io
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from fmengine.backend.onnxruntime import OnnxRuntimeBackend
from fmengine.cli import main
from fmengine.cli.console import inform, print_data, warn
from fmengine.engine import Engine
from fmengine.model.file import ModelFile
from fmengine.model.spec import ModelSpec
from fmengine.options import BackendOptions
from fmengine.system.files import check_target, write_file
from fmengine_export.export import make_spec
from fmengine_export.fold import fold
from fmengine_export.graph import build_float
from fmengine_train.data import PARTS
from fmengine_train.model import ARCHITECTURES, AlexNet

from .evaluate import evaluate
from .timing import Call, random_inputs, time_in_turn

BATCHES = (1, 32)


@dataclass(frozen=True)
class Point:
    """Holds what one model file costs and how often it is right.

    Attributes:
        name: of the file.
        pixels: rows of its input.
        megabytes: of the file.
        right: answers of `count` that are right, over all data.
        balanced: mean of the data sets' balanced accuracies.
        milliseconds: median of a batch, by batch size.
        times: that the full AlexNet takes of it, `library batch`, each the median over the rounds.
    """

    name: str
    pixels: int
    megabytes: float
    count: int
    right: int
    balanced: float
    milliseconds: dict[int, float]
    times: dict[str, float]

    @property
    def accuracy(self) -> float:
        return self.right / self.count


def make_untrained_alexnet() -> AlexNet:
    """Make the full AlexNet with random weights."""
    torch.manual_seed(0)
    return AlexNet(ARCHITECTURES["alexnet"]).eval()


def make_model_file(model: AlexNet) -> ModelFile:
    """Make an FP32 model file of an untrained network, 228 MB for the full AlexNet."""
    untrained = {"labels": ("happy", "sad"), "fit": "crop", "temperature": 1.0, "unsure_below": 0.5}
    spec = make_spec(model, untrained | {"training_data": "none", "validation": {}}, "alexnet", "fp32")
    return ModelFile(Path("alexnet.fp32.onnx"), build_float(fold(model), spec), spec)


def open_full_alexnet(threads: int) -> dict[str, Callable[[int], Call]]:
    """Open the full AlexNet in FP32 in every library; each entry makes a call that runs a batch of a size."""
    torch.set_num_threads(threads)
    model = make_untrained_alexnet()
    file = make_model_file(model)
    spec, data = file.spec, file.data

    def pytorch(batch: int) -> Call:
        images = torch.from_numpy(random_inputs(spec, batch))

        def call() -> None:
            with torch.inference_mode():
                model(images).softmax(1)

        return call

    plain = OnnxRuntimeBackend.open(file, BackendOptions(threads=threads))
    libraries: dict[str, Callable[[int], Call]] = {"pytorch": pytorch, "onnxruntime": _make_calls(plain, spec)}
    try:
        import openvino
    except ImportError:
        warn("note: OpenVINO is not installed, so it is not measured: pip install openvino")
        return libraries
    core = openvino.Core()
    network = core.compile_model(
        core.read_model(data), "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    )

    def compiled(batch: int) -> Call:
        images = random_inputs(spec, batch)
        return lambda: network({"images": images})

    return libraries | {"openvino": compiled}


def _make_calls(backend: OnnxRuntimeBackend, spec: ModelSpec) -> Callable[[int], Call]:
    def make(batch: int) -> Call:
        images = random_inputs(spec, batch)
        return lambda: backend.run(images)

    return make


def measure(models: list[Path], data: list[tuple[Path, float]], part: str, threads: int) -> list[Point]:
    """Score every model file on data sets, each with the share of it that is held out, and time it."""
    engines = [Engine.load(path, "onnxruntime", threads=threads) for path in models]
    scores = [[evaluate(engine, root, share, part).report for root, share in data] for engine in engines]
    libraries = open_full_alexnet(threads)
    medians: dict[tuple[str, int], float] = {}
    times: dict[str, dict[str, float]] = {path.name: {} for path in models}
    for batch in BATCHES:
        contenders = {name: make(batch) for name, make in libraries.items()}
        for path, engine in zip(models, engines, strict=True):
            assert isinstance(engine.backend, OnnxRuntimeBackend)
            contenders[path.name] = _make_calls(engine.backend, engine.spec)(batch)
        taken = time_in_turn(contenders)
        medians |= {(name, batch): statistics.median(figures) for name, figures in taken.items()}
        for library in libraries:
            inform(f"full AlexNet, {library}, batch {batch}: {medians[library, batch]:.3f} ms")
            for path in models:
                ratios = (full / slim for full, slim in zip(taken[library], taken[path.name], strict=True))
                times[path.name][f"{library} {batch}"] = statistics.median(ratios)
    return [
        Point(
            name=path.name,
            pixels=engine.spec.height,
            megabytes=path.stat().st_size / 1e6,
            count=sum(report.count for report in reports),
            right=sum(round(report.accuracy * report.count) for report in reports),
            balanced=statistics.mean(report.balanced_accuracy for report in reports),
            milliseconds={batch: medians[path.name, batch] for batch in BATCHES},
            times=times[path.name],
        )
        for path, engine, reports in zip(models, engines, scores, strict=True)
    ]


def as_text(points: list[Point]) -> str:
    """Format the figures as a table for a terminal."""
    columns = list(points[0].times)
    heads = "".join(f"{f'ms, {batch}':>8}" for batch in BATCHES) + "".join(f"{c:>16}" for c in columns)
    lines = [f"{'':32}{'accuracy':>9}{'MB':>6}{heads}"]
    for p in points:
        first = f"{p.name:<32}{p.accuracy:9.2%}{p.megabytes:6.2f}" + "".join(
            f"{p.milliseconds[batch]:8.3f}" for batch in BATCHES
        )
        lines.append(first + "".join(f"{p.times[c]:14.0f} ×" for c in columns))
    return "\n".join(lines)


def as_csv(points: list[Point]) -> str:
    """Format the points as CSV, a row for each."""
    rows = [
        {k: v for k, v in asdict(p).items() if not isinstance(v, dict)}
        | {f"milliseconds {batch}": round(value, 4) for batch, value in p.milliseconds.items()}
        | {f"times {name}": round(value, 1) for name, value in p.times.items()}
        for p in points
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_svg(points: list[Point]) -> str:
    """Plot accuracy against milliseconds, a plot for each batch size."""
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    subplots = figure.subplots(1, len(BATCHES), sharey=True, squeeze=False)
    for axes, batch in zip(subplots[0], BATCHES, strict=True):
        for p in points:
            axes.scatter(p.milliseconds[batch], 100 * p.accuracy, s=60 * p.megabytes)
            axes.annotate(
                p.name.split(".")[0], (p.milliseconds[batch], 100 * p.accuracy), (6, 6), textcoords="offset points"
            )
        axes.margins(y=0.15)
        axes.set(xlabel=f"milliseconds, batch {batch}", xlim=(0, 1.3 * max(p.milliseconds[batch] for p in points)))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy, %")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Labelled pictures; may be repeated.")
@click.option(
    "--held-out",
    multiple=True,
    type=(click.Path(path_type=Path), click.FloatRange(0, 1, min_open=True)),
    metavar="DATA SHARE",
    help="Labelled pictures of which training held out a share; may be repeated.",
)
@click.option("--part", type=click.Choice(["all", *PARTS]), default="all")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write OUTPUT.csv and OUTPUT.svg.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
def frontier(
    models: tuple[Path, ...],
    data: tuple[Path, ...],
    held_out: tuple[tuple[Path, float], ...],
    part: str,
    threads: int,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Score and time MODELS beside the full AlexNet."""
    everything = [*((path, 1.0) for path in data), *held_out]
    if not everything:
        raise click.UsageError("nothing to score on: give --data, or --held-out DATA SHARE")
    forms = {} if output is None else {Path(f"{output}.csv"): as_csv, Path(f"{output}.svg"): as_svg}
    for path in forms:
        check_target(path, [path.suffix], overwrite=overwrite)
    points = measure(list(models), everything, part, threads)
    print_data(as_text(points))
    for path, form in forms.items():
        write_file(path, form(points))


if __name__ == "__main__":
    main(frontier, "python -m fmengine_bench.frontier")
