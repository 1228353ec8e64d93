# syntax=docker/dockerfile:1
# The PACS gateway. Build it from the repository's root: see docker/README.md.
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
COPY requirements/lock-gateway.txt /source/
# The environment has no pip of its own.
RUN python -m venv --without-pip /opt/medvl \
    && python -m pip --python /opt/medvl/bin/python install --no-cache-dir --no-deps --only-binary=:all: \
        --require-hashes -r /source/lock-gateway.txt
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    python -m pip --python /opt/medvl/bin/python install --no-cache-dir --no-deps /wheel/*.whl

FROM tools AS sbom
COPY --from=environment /opt/medvl /opt/medvl
RUN /tools/venv/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /opt/medvl/bin/python

FROM ${PYTHON_IMAGE}@${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="medvl-sam2-gateway" \
      org.opencontainers.image.description="MedVL-SAM2: CT series from a PACS, reports and masks back. Not for diagnosis." \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing can be installed where it runs. What dpkg knows stays, for scanners.
RUN python -m pip uninstall --yes --no-cache-dir setuptools wheel pip \
    && rm -rf /usr/local/lib/python3.11/ensurepip \
    && find /usr/bin /usr/sbin -name 'apt*' -delete \
    && find /usr/bin /usr/sbin -name 'dpkg*' -delete
COPY --from=environment /opt/medvl /opt/medvl
COPY --from=sbom /sbom.cdx.json /opt/medvl/sbom.cdx.json
COPY docker/dicom_echo.py /opt/medvl/dicom_echo.py
ENV PATH=/opt/medvl/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 11112
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "/opt/medvl/dicom_echo.py", "127.0.0.1:11112", "MEDVL"]
# Where results go has no default: the options of a site follow.
ENTRYPOINT ["medvl", "pacs", "--spool", "/spool"]
