"""The NVIDIA path: the preprocessing kernel, and engines that TensorRT builds."""
