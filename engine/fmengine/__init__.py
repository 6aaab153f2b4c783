"""fmengine tells a happy face from a sad one, with a calibrated confidence, as fast as the hardware allows.

>>> from fmengine import Engine
>>> engine = Engine.load()
>>> engine.predict("face.jpg").label
'happy'
"""

from .backend.registry import backends
from .engine import Engine
from .errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    DeviceError,
    FmengineError,
    Kind,
    ModelError,
    SourceError,
    UnavailableError,
)
from .model.file import available_models
from .model.spec import ModelSpec
from .options import Isolation, Limits
from .system.telemetry import switch_off
from .types import Face, Failure, Frame, Outputs, Prediction, Reason, Scene, TrackedFace

__all__ = [
    "BusyError",
    "ClosedError",
    "DeadlineError",
    "DeviceError",
    "Engine",
    "Face",
    "Failure",
    "FmengineError",
    "Frame",
    "Isolation",
    "Kind",
    "Limits",
    "ModelError",
    "ModelSpec",
    "Outputs",
    "Prediction",
    "Reason",
    "Scene",
    "SourceError",
    "TrackedFace",
    "UnavailableError",
    "available_models",
    "backends",
]

__version__ = "0.1.0"

switch_off()  # what it concerns is imported late, by whatever needs it
