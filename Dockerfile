# The fudlr command, with torch for the CPU; --build-arg CUDA=ON: torch and kernels for NVIDIA GPUs.
#
#   docker build -t fudlr .            # or: --build-arg CUDA=ON -t fudlr-cuda
#   docker run --rm -v "$PWD:/data" fudlr data check my-data
#   docker run --rm --gpus all -v "$PWD:/data" fudlr-cuda doctor
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG CUDA=OFF
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# nvcc of the toolkit's own wheels, and no image of several gigabytes.
RUN if [ "$CUDA" = ON ]; then pip install --no-cache-dir --target /cuda \
    "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" \
    "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cccl==13.0.*"; fi
COPY . /src
RUN CUDA_HOME=/cuda/nvidia/cu13 FUDLR_CUDA=$CUDA pip wheel --no-cache-dir --no-deps --wheel-dir /dist /src

FROM python:${PYTHON}-slim-bookworm
ARG CUDA=OFF
COPY --from=build /dist /dist
RUN if [ "$CUDA" = OFF ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi \
    && pip install --no-cache-dir "$(echo /dist/*.whl)[datasets]" \
    && useradd --uid 1000 --create-home fudlr
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /data
ENTRYPOINT ["fudlr"]
