# Two stages: one with what builds, one with what runs. tests/integration/test_image.py executes these very steps.
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# What changes rarely comes first. Nothing is compiled here: every dependency is a wheel whose hash is known.
COPY config/requirements.txt config/requirements-build.txt config/
RUN python -m venv /opt/build && /opt/build/bin/pip install --quiet --require-hashes --only-binary=:all: -r config/requirements-build.txt
RUN python -m venv --without-pip /opt/ingestor && /opt/build/bin/pip --python /opt/ingestor/bin/python install --quiet --require-hashes --only-binary=:all: -r config/requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY schemas schemas
COPY ingestor ingestor
RUN /opt/build/bin/python -m hatchling build -t wheel -d /opt/build/dist && /opt/build/bin/pip --python /opt/ingestor/bin/python install --quiet --no-deps --no-index /opt/build/dist/*.whl
RUN /opt/ingestor/bin/python -m compileall -q /opt/ingestor/lib

FROM python:3.11-slim-bookworm
COPY --from=build /opt/ingestor /opt/ingestor
# The only place that has to be writable: mount a volume here when the root file system is read-only. Docker and ECS give
# an empty volume the owner that the folder has in the image. `install` makes missing parents as root, so both are named.
RUN install -d -o 65532 -g 65532 /var/lib/ingestor /var/lib/ingestor/dead-letter
ENV PATH=/opt/ingestor/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number and no name: no home, no shell, nothing to look up, and Kubernetes can verify runAsNonRoot.
USER 65532:65532
WORKDIR /var/lib/ingestor
VOLUME /var/lib/ingestor
EXPOSE 8080
STOPSIGNAL SIGTERM
# Not ready at first is a start, an outage later is no reason to be killed; ECS ignores this line and needs it in the task definition.
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 CMD ["ingestor", "health", "--started"]
ENTRYPOINT ["ingestor"]
CMD ["run", "--config", "production"]
