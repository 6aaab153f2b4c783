"""The decode path under atheris, libFuzzer's engine for Python: it keeps what reaches new branches.

python -m tests.fuzz.corpus .cache/fuzz/corpus
python -m tests.fuzz.decode_target .cache/fuzz/corpus -max_total_time=600
"""

import sys

import atheris

with atheris.instrument_imports(include=["PIL", "fmengine"]):
    from .oracle import check


def one_input(data: bytes) -> None:
    if fault := check(data):
        raise AssertionError(f"{fault}\n{data!r}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
