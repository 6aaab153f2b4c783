"""Checks that the answers are right, and measures how fast they come."""

import fmengine  # noqa: F401 - before ONNX Runtime, whose telemetry it switches off
