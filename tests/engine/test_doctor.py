"""What `doctor` tells of GPUs, from a tool that does not always answer in the same way."""

from pathlib import Path

import pytest

from fmengine.backend.diagnose import describe_environment

SENTENCE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64, 580.159.04, Release Build (a@b, gcc 12.2)"


@pytest.mark.parametrize(("told", "version"), [("570.86.10", "570.86.10"), (SENTENCE, "580.159.04")])
def test_a_driver_is_told_by_its_version(
    told: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some machines answer with a sentence, with commas in it, where others have a number."""
    tool = tmp_path / "nvidia-smi"
    # It answers what it is asked for, in that order.
    tool.write_text(
        "#!/bin/sh\n"
        "for field in $(echo ${1#--query-gpu=} | tr , ' '); do\n"
        f"  case $field in driver_version) value='{told}';; name) value='Card';; *) value=\"<$field>\";; esac\n"
        '  printf "%s%s" "$comma" "$value"; comma=", "\n'
        "done\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    described = describe_environment()["gpu 0"]
    assert described.startswith("Card, memory <memory.total>, compute capability <compute_cap>, PCIe generation ")
    assert described.endswith(f", of at most <clocks.max.sm>, driver {version}")
