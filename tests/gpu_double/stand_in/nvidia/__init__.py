"""Found before NVIDIA's own package of this name, which stays within reach for all else."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
