"""The engine file: an engine of TensorRT and the model file that it was built from, in one file with a manifest.

An engine says nothing of labels or preprocessing, and what it answers is held against the CPU: both need the model
file, so it travels inside. An engine is executable code. Reading its file runs nothing of it; whoever does run it
calls `require_trust` and `check_machine` first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ModelError, UnavailableError
from ..system.files import read_file
from ..system.manifest import Key, StaleError, pack, read_manifest
from ..system.nvidia import Gpu
from ..system.trust import TrustError, read_private_file

SUFFIX = ".engine"
BACKENDS = ("tensorrt", "tensorrt-rtx")  # that run engines
MAX_BYTES = 2**33
FIELDS = ("library", "gpu", "system", "backend", "capabilities", "max_batch", "model_size")  # that is read here
AHEAD_OF_TIME = "ahead of time"  # in place of the GPU, where an engine is built without one


class UntrustedEngineError(ModelError):
    """An engine could have been written by somebody else, and nobody has said that it is to run all the same."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built before, and what it was built by and for.

    Attributes:
        path: of its file.
        data: the serialised engine.
        manifest: everything that its bytes depend on.
        backend: that runs it.
        capabilities: compute capabilities of the GPUs that it runs on; empty for the library's own choice.
        max_batch: the largest batch that it takes.
        distrust: why somebody else could have written it; empty where only this user can have.
    """

    path: Path
    data: bytes = field(repr=False)
    manifest: Key
    backend: str
    capabilities: Sequence[str]
    max_batch: int
    distrust: str = ""

    def describe(self) -> str:
        """Describe what it was built by and for, as `tensorrt 11.4.0.106 for NVIDIA H200, … on Linux x86_64`."""
        target = self.manifest["gpu"]
        if target == AHEAD_OF_TIME:
            target = f"compute capability {' or '.join(self.capabilities)}" if self.capabilities else "many GPUs"
        return f"{self.manifest['library']} for {target} on {self.manifest['system']}"

    def require_trust(self, *, allow_untrusted: bool) -> None:
        """Refuse to run an engine that somebody else could have written, unless that is allowed.

        Raises:
            UntrustedEngineError: with the reason, and what allowing it means.
        """
        if self.distrust and not allow_untrusted:
            raise UntrustedEngineError(
                f"{self.distrust}. An engine is executable code and runs with all your rights: only if you trust "
                "whoever could have written it as you trust the programs that you install, give "
                "--allow-untrusted-engine (allow_untrusted_engine=True)"
            )

    def check_machine(self, library: str, system: str, gpu: Gpu) -> None:
        """Check that this machine is what it was built for.

        Args:
            library: name and version of the library that is installed.
            system: operating system and processor.
            gpu: that it is to run on.

        Raises:
            UnavailableError: naming both.
        """
        target = self.manifest["gpu"]
        if target == AHEAD_OF_TIME:
            suits = gpu.capability in self.capabilities or not self.capabilities
        else:
            suits = target == gpu.model
        if not suits or (self.manifest["library"], self.manifest["system"]) != (library, system):
            raise UnavailableError(
                f"{self.path} was built by {self.describe()}; here is {library} with {gpu.model} on {system}. "
                f"Build it again here: fmengine export {self.path} --to {self.backend}"
            )


def pack_engine(
    backend: str, key: Key, capabilities: Sequence[str], max_batch: int, engine: bytes, model: bytes
) -> bytes:
    """Make the content of an engine file.

    Args:
        backend: that runs it.
        key: everything that its bytes depend on.
        capabilities: compute capabilities of the GPUs that it runs on; none for the library's own choice.
        max_batch: the largest batch that it takes.
        engine: serialised.
        model: content of the model file that it was built from.
    """
    more = {
        "backend": backend,
        "capabilities": " ".join(capabilities),
        "max_batch": str(max_batch),
        "model_size": str(len(model)),
    }
    return pack({**key, **more}, model + engine)


def read_engine_file(path: Path) -> tuple[BuiltEngine, bytes]:
    """Read an engine file and check that it is whole; nothing of it is run.

    Returns:
        The engine, and the content of the model file that it was built from.

    Raises:
        SourceError: if it cannot be read.
        ModelError: if it is no engine file, or is damaged.
    """
    distrust = ""
    try:
        content = read_private_file(path)
    except TrustError as error:
        content, distrust = read_file(str(path), MAX_BYTES), str(error)
    expected = "expected what `fmengine export --to tensorrt` writes"
    try:
        manifest, data = read_manifest(content)
        return _take_apart(path, manifest, data, distrust)
    except StaleError as error:
        raise ModelError(f"{path} is refused: {error}; {expected}") from error
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} is refused: its manifest is of another form ({error}); {expected}") from error


def _take_apart(path: Path, manifest: Key, data: bytes, distrust: str) -> tuple[BuiltEngine, bytes]:
    """Return engine and model file. Raises KeyError or ValueError for a manifest of another form."""
    manifest = {name: str(manifest[name]) for name in {*FIELDS, *manifest}}
    if manifest["backend"] not in BACKENDS:
        raise ValueError(f"an engine of {manifest['backend']!r}")
    size, max_batch = int(manifest["model_size"]), int(manifest["max_batch"])
    if min(size, max_batch) < 1:
        raise ValueError(f"a model file of {size} bytes, batches of {max_batch}")
    engine = BuiltEngine(
        path=path,
        data=data[size:],
        manifest=manifest,
        backend=manifest["backend"],
        capabilities=manifest["capabilities"].split(),
        max_batch=max_batch,
        distrust=distrust,
    )
    return engine, data[:size]
