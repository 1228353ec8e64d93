# syntax=docker/dockerfile:1
# Triton for the chart's gpu.profile "none": the server and the environment that `medvl up` runs and the tests test.
# Build it from the repository's root: see docker/README.md.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
# sha256:...; without it nothing is built.
ARG PYTHON_DIGEST

FROM ${PYTHON_IMAGE}@${PYTHON_DIGEST} AS tools
COPY requirements/lock-image-tools.txt /tools/
RUN python -m venv /tools/venv \
    && /tools/venv/bin/python -m pip install --no-cache-dir --no-deps --only-binary=:all: --require-hashes \
        -r /tools/lock-image-tools.txt

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE CHANGELOG.md /source/
COPY contracts /source/contracts
COPY client /source/client
COPY orchestrator /source/orchestrator
COPY export /source/export
COPY model_repository /source/model_repository
RUN /tools/venv/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation -w /wheel /source

FROM ${PYTHON_IMAGE}@${PYTHON_DIGEST} AS environment
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/lock-triton-cpu.txt /source/
# This pip fetches Triton and does not go along.
RUN python -m venv /opt/medvl \
    && /opt/medvl/bin/python -m pip install --no-cache-dir --no-deps --only-binary=:all: --require-hashes \
        --extra-index-url "${TORCH_INDEX}" -r /source/lock-triton-cpu.txt
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    /opt/medvl/bin/python -m pip install --no-cache-dir --no-deps /wheel/*.whl
RUN MEDVL_HOME=/opt/medvl /opt/medvl/bin/python -m medvl.runtime.triton_home \
    && /opt/medvl/bin/python -m pip uninstall --yes --no-cache-dir pip
COPY --chmod=0755 docker/tritonserver.py /opt/medvl/bin/tritonserver

FROM tools AS sbom
COPY --from=environment /opt/medvl /opt/medvl
RUN /tools/venv/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /opt/medvl/bin/python

FROM ${PYTHON_IMAGE}@${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="medvl-sam2-triton-cpu" \
      org.opencontainers.image.description="MedVL-SAM2: Triton with ONNX Runtime and vLLM on a CPU. Not for diagnosis." \
      org.opencontainers.image.licenses="Apache-2.0"
# vLLM and torch load these two. Nothing else can be installed where it runs. What dpkg knows stays, for scanners.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && python -m pip uninstall --yes --no-cache-dir setuptools wheel pip \
    && rm -rf /usr/local/lib/python3.11/ensurepip \
    && find /usr/bin /usr/sbin -name 'apt*' -delete \
    && find /usr/bin /usr/sbin -name 'dpkg*' -delete
COPY --from=environment /opt/medvl /opt/medvl
COPY --from=sbom /sbom.cdx.json /opt/medvl/sbom.cdx.json
COPY docker/healthcheck.py /opt/medvl/healthcheck.py
ENV PATH=/opt/medvl/bin:$PATH \
    MEDVL_HOME=/opt/medvl \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=1800s \
    CMD ["python", "/opt/medvl/healthcheck.py", "127.0.0.1:8001"]
ENTRYPOINT ["tritonserver"]
CMD ["--model-repository=/store/repository/models", "--model-config-name=cpu", "--model-control-mode=none", "--strict-readiness=true", "--exit-on-error=true", "--allow-http=false", "--allow-metrics=false", "--grpc-port=8001", "--exit-timeout-secs=50"]
