"""Run and report the proofs that need the hardware, for `fmengine doctor --verify`.

Each is passed, failed, or not run with the reason; a report with one that was not run has not passed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import BackendError, DeviceError
from ..options import BackendOptions
from ..system.imports import load_object
from .gate import GateError

Verdict = Literal["passed", "failed", "not run"]
Summary = Literal["passed", "failed", "incomplete"]
GPU_CLAIMS = "fmengine.gpu.proofs:list_claims"  # by name, so that nothing of `gpu` is imported before it is needed


class Claim(NamedTuple):
    """What is to be proven, and how.

    Attributes:
        name: for people.
        prove: returns what was measured; raises NotRun, or an error with what is wrong.
    """

    name: str
    prove: Callable[[], str]


class Proof(NamedTuple):
    """One proof, and how it ended.

    Attributes:
        detail: what was measured, what was wrong, or why it was not run.
        seconds: that it took.
    """

    name: str
    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True)
class Effort:
    """How much is tried: with less than the defaults a report is no proof.

    Attributes:
        pictures: random ones through the preprocessing kernel.
        sanitized: the same under compute-sanitizer, which is a hundred times slower.
        soak: seconds.
    """

    pictures: int = 20_000
    sanitized: int = 200
    soak: float = 600.0


class NotRun(Exception):  # noqa: N818
    """A proof cannot be run here; the message gives the reason."""


def verify_gpu(
    backend: str, model: str | None, options: BackendOptions, effort: Effort, report: Callable[[Proof], None]
) -> list[Proof]:
    """Run every proof that needs a GPU, on a GPU of this machine.

    Args:
        backend: one of `GPU_BACKENDS`, or `auto` for the first that works.
        model: a path, the name of a shipped model, or None.
        options: the GPU, and whether an untrusted engine is run.
        effort: how much is tried.
        report: called with each proof as it ends.
    """
    claims: Sequence[Claim] = load_object(GPU_CLAIMS)(backend, model, options, effort)
    proofs = []
    for claim in claims:
        proofs.append(run_proof(claim))
        report(proofs[-1])
    return proofs


def run_proof(claim: Claim) -> Proof:
    """Try to prove a claim, and time it."""
    start = time.monotonic()
    verdict, detail = _try(claim.prove)
    return Proof(claim.name, verdict, detail, round(time.monotonic() - start, 1))


def summarise(proofs: Sequence[Proof]) -> Summary:
    """Summarise a report in one verdict: `failed` if any proof failed, `incomplete` if any was not run."""
    verdicts = {proof.verdict for proof in proofs}
    if "failed" in verdicts:
        return "failed"
    return "incomplete" if "not run" in verdicts or not proofs else "passed"


def _try(prove: Callable[[], str]) -> tuple[Verdict, str]:
    try:
        return "passed", prove()
    except NotRun as reason:
        return "not run", str(reason)
    except (GateError, DeviceError, AssertionError) as error:
        return "failed", str(error)
    except BackendError as error:  # the machine lacks something
        return "not run", str(error)
