"""Benchmarks: proofs that the answers are right."""

import fmengine  # noqa: F401 - before ONNX Runtime, which it tells not to report home
