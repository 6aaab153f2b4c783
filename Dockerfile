# fmengine on an NVIDIA GPU, from a checkout:
#
#   docker build -t fmengine .
#   docker run --rm --gpus all -v "$PWD/out:/out" fmengine
#
# The second command proves what can only be proven on a GPU, and writes /out/verification.json. Anything else:
#
#   docker run --rm --gpus all -v "$PWD/faces:/faces:ro" fmengine fmengine infer --batch /faces
#
# The development image: pycuda is compiled against its headers, and compute-sanitizer comes with it.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

RUN apt-get update && apt-get install --yes --no-install-recommends python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/fmengine/bin:$PATH CUDA_HOME=/usr/local/cuda
RUN python3 -m venv /opt/fmengine
COPY . /src
# The driver's library comes from the host when the container runs; until then pycuda links against its stub.
RUN LIBRARY_PATH=/usr/local/cuda/lib64/stubs pip install --no-cache-dir --constraint /src/constraints.txt '/src[gpu]'
RUN mkdir /out
CMD ["fmengine", "doctor", "--verify", "--output", "/out/verification.json"]
