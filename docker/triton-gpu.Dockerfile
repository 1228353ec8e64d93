# syntax=docker/dockerfile:1
# Triton for the chart's gpu.profile "whole": NVIDIA's server with its TensorRT backend, and our environment beside it.
# Build it from the repository's root: see docker/README.md.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-py3
# sha256:...; without it nothing is built.
ARG TRITON_DIGEST

FROM ${TRITON_IMAGE}@${TRITON_DIGEST} AS tools
COPY requirements/lock-image-tools.txt /tools/
RUN python3 -m venv --without-pip /tools/venv \
    && python3 -m pip --python /tools/venv/bin/python install --no-cache-dir --no-deps --only-binary=:all: \
        --require-hashes -r /tools/lock-image-tools.txt

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE CHANGELOG.md /source/
COPY contracts /source/contracts
COPY client /source/client
COPY orchestrator /source/orchestrator
COPY export /source/export
COPY model_repository /source/model_repository
RUN python3 -m pip --python /tools/venv/bin/python wheel --no-cache-dir --no-deps --no-build-isolation -w /wheel /source

FROM ${TRITON_IMAGE}@${TRITON_DIGEST} AS environment
COPY requirements/lock-triton-gpu.txt /source/
# The environment has no pip of its own. Triton's stub takes the first Python on the PATH, as under `medvl up`.
RUN python3 -m venv --without-pip /opt/medvl \
    && python3 -m pip --python /opt/medvl/bin/python install --no-cache-dir --no-deps --only-binary=:all: \
        --require-hashes -r /source/lock-triton-gpu.txt
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    python3 -m pip --python /opt/medvl/bin/python install --no-cache-dir --no-deps /wheel/*.whl

FROM tools AS sbom
COPY --from=environment /opt/medvl /opt/medvl
RUN /tools/venv/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /opt/medvl/bin/python

FROM ${TRITON_IMAGE}@${TRITON_DIGEST}
LABEL org.opencontainers.image.title="medvl-sam2-triton-gpu" \
      org.opencontainers.image.description="MedVL-SAM2: Triton with TensorRT and vLLM. Not for diagnosis." \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing can be installed where it runs. What dpkg knows stays, for scanners.
RUN rm -rf /usr/lib/python3/dist-packages/pip /usr/local/lib/python3.12/dist-packages/pip /usr/lib/python3.12/ensurepip \
    && find /usr/bin /usr/local/bin -name 'pip*' -delete \
    && find /usr/bin /usr/sbin -name 'apt*' -delete \
    && find /usr/bin /usr/sbin -name 'dpkg*' -delete
COPY --from=environment /opt/medvl /opt/medvl
COPY --from=sbom /sbom.cdx.json /opt/medvl/sbom.cdx.json
COPY docker/healthcheck.py /opt/medvl/healthcheck.py
ENV PATH=/opt/medvl/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=1800s \
    CMD ["python", "/opt/medvl/healthcheck.py", "127.0.0.1:8001"]
ENTRYPOINT ["tritonserver"]
CMD ["--model-repository=/store/repository/models", "--model-control-mode=none", "--strict-readiness=true", "--exit-on-error=true", "--allow-http=false", "--allow-metrics=false", "--grpc-port=8001", "--exit-timeout-secs=50"]
