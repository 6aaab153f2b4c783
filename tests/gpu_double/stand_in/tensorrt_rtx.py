"""Found in place of NVIDIA's library by the processes that run these tests, and by no other."""

from tests.gpu_double import tensorrt_double

tensorrt_double.install(__name__, "1.7.1.116")
