# Builds with any image that has Python 3.11 or newer with venv: --build-arg BASE=...
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/sollol-proxy
COPY pyproject.toml README.md LICENSE ./
COPY templates ./templates
COPY sollol_proxy ./sollol_proxy
# pip has done its work after this: nothing can be installed into the final image.
RUN /opt/sollol-proxy/bin/python -m pip install --no-cache-dir . \
    && /opt/sollol-proxy/bin/python -m pip uninstall --yes pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="sollol-proxy" \
      org.opencontainers.image.description="One address in front of several Ollama hosts" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/sollol-proxy /opt/sollol-proxy
COPY sollol.yaml /etc/sollol/sollol.yaml
# The environment outranks the file, so a mounted file needs no `listen` of its own.
ENV PATH="/opt/sollol-proxy/bin:${PATH}" \
    PYTHONDONTWRITEBYTECODE=1 \
    SOLLOL_LISTEN=0.0.0.0:11434
USER 65532:65532
EXPOSE 11434
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['SOLLOL_LISTEN'].rpartition(':')[2]), timeout=2); c.request('GET', '/sollol/live'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["sollol-proxy"]
