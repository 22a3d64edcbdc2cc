# Tollkeeper in a container: the locked versions, one process, no root, nothing downloaded at start.
#
#   docker build -t tollkeeper .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp -v tollkeeper:/data \
#       -v ./config.yaml:/data/config.yaml:ro -e OPENAI_API_KEY -p 4000:4000 tollkeeper
#
# Without a config.yaml it serves the providers whose keys are in its environment, and prints a first key.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements-image.lock requirements-build.lock ./
RUN python -m venv /build && /build/bin/pip install --no-deps --require-hashes -r requirements-build.lock
RUN python -m venv /app && /app/bin/pip install --no-deps --require-hashes --only-binary :all: -r requirements-image.lock
COPY . .
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .
RUN /app/bin/pip install --no-deps --no-index --no-compile /dist/*.whl && /app/bin/pip uninstall --yes pip setuptools
RUN /app/bin/python -m compileall -q --invalidation-mode unchecked-hash /app/lib
RUN mkdir /data

FROM python:3.11-slim
COPY --from=build /app /app
COPY --from=build --chown=10001:10001 /data /data
ENV PATH=/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('TOLLKEEPER_SERVER__PORT', '4000') + '/healthz', timeout=2)"]
ENTRYPOINT ["tollkeeper"]
CMD ["serve", "--host", "0.0.0.0"]
