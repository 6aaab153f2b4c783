"""Proofs end as passed, failed or not run, and a report with one that was not run has not passed."""

import pytest

from fmengine.check import proofs
from fmengine.check.gate import GateError
from fmengine.check.proofs import Claim, Effort, NotRun, Proof, run_proof, summarise, verify_gpu
from fmengine.errors import DeviceError, UnavailableError
from fmengine.options import BackendOptions


def prove(error: Exception | None = None) -> Proof:
    def run() -> str:
        if error is not None:
            raise error
        return "measured"

    return run_proof(Claim("a claim", run))


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, "passed"),
        (GateError("measured"), "failed"),
        (DeviceError("measured"), "failed"),
        (AssertionError("measured"), "failed"),
        (NotRun("measured"), "not run"),
        (UnavailableError("measured"), "not run"),
    ],
)
def test_a_proof_ends_with_a_verdict_and_its_detail(error: Exception | None, verdict: str) -> None:
    found = prove(error)
    assert found._replace(seconds=0.0) == Proof("a claim", verdict, "measured", 0.0)


def test_an_unforeseen_error_is_no_verdict() -> None:
    with pytest.raises(KeyError):
        prove(KeyError("a bug"))


def test_a_report_has_passed_only_if_every_proof_has() -> None:
    passed, failed, not_run = prove(), prove(AssertionError()), prove(NotRun())
    assert summarise([passed, passed]) == "passed"
    assert summarise([passed, not_run]) == "incomplete"
    assert summarise([]) == "incomplete"
    assert summarise([passed, not_run, failed]) == "failed"


def test_claims_are_proven_in_order_and_reported_as_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    given, reported = [], []

    def list_claims(*arguments: object) -> list[Claim]:
        given.append(arguments)
        return [Claim(name, lambda: str(len(reported))) for name in ("first", "second")]

    monkeypatch.setattr(proofs, "load_object", lambda name: list_claims)
    found = verify_gpu("auto", None, BackendOptions(device=1), Effort(soak=1), reported.append)
    assert given == [("auto", None, BackendOptions(device=1), Effort(soak=1))]
    assert [(proof.name, proof.detail) for proof in found] == [("first", "0"), ("second", "1")]
    assert reported == found


def test_the_gpus_claims_are_found_by_name() -> None:
    pytest.importorskip("onnxruntime")
    claims = proofs.load_object(proofs.GPU_CLAIMS)("auto", None, BackendOptions(), Effort())
    assert len({claim.name for claim in claims}) == len(claims) == 14
