# Two images from one file; docs/deploy.md says how they are used.
#   docker build --target gateway -t hilum/gateway:0.1.0 .
#   docker build --target triton  -t hilum/triton:0.1.0 .

FROM python:3.11-slim-bookworm AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY inference inference
COPY search search
COPY export export
COPY server server
COPY benchmark benchmark
COPY model_repository model_repository
RUN python -m pip wheel --no-deps --wheel-dir /wheels .
# Wheels only: nothing that a registry serves is run while the image is built.
RUN python -m venv /opt/hilum && \
    set -- /wheels/hilum-*.whl && \
    /opt/hilum/bin/pip install --only-binary=:all: "$1[serve,dicom]" && \
    /opt/hilum/bin/pip check && \
    ! /opt/hilum/bin/python -c 'import torch' 2>/dev/null


FROM python:3.11-slim-bookworm AS gateway
LABEL org.opencontainers.image.title="Hilum gateway" \
      org.opencontainers.image.description="Segments CT and MR volumes over HTTP; research use only, not a medical device." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# The same number in both images, so that they read the same models and may share memory.
RUN groupadd --gid 10001 hilum && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin hilum && \
    install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=builder /opt/hilum /opt/hilum
COPY --chmod=0644 deploy/image/healthy.py /opt/hilum/healthy.py
# Beyond loopback the gateway refuses to start without users or keys, in a container too.
ENV PATH=/opt/hilum/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HILUM_HOST=0.0.0.0 \
    HILUM_PORT=8000 \
    HILUM_DATA=/data
USER 10001:10001
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/opt/hilum/healthy.py", "gateway"]
ENTRYPOINT ["hilum"]
CMD ["serve"]


# Not older than 26.03: before it lie known ways in (see docs/deploy.md). start.py refuses to run an older one.
FROM nvcr.io/nvidia/tritonserver:26.11-py3 AS triton
LABEL org.opencontainers.image.title="Hilum Triton" \
      org.opencontainers.image.description="Triton for Hilum's networks, reached by the gateway alone." \
      org.opencontainers.image.version="0.1.0"
# What model.py of the python-* variants runs on; the other variants need nothing more than the base image has.
RUN python3 -m pip install --no-cache-dir --break-system-packages --only-binary=:all: openvino==2026.4.1 && \
    groupadd --gid 10001 hilum && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin hilum && \
    install -d -o 10001 -g 10001 -m 0700 /cache && \
    install -d /models
COPY --chmod=0644 deploy/image/start.py deploy/image/healthy.py /opt/hilum/
ENV HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CUDA_CACHE_PATH=/cache/cuda
USER 10001:10001
# Where the configurations let TensorRT keep the engines that it builds: they name folders, not places.
WORKDIR /cache
VOLUME ["/cache"]
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=15s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python3", "/opt/hilum/healthy.py", "triton"]
ENTRYPOINT ["python3", "/opt/hilum/start.py"]
