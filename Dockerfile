# bmif as a container: non-root, CPU torch, Pyfhel built by the recipe in scripts/.
#
#   docker build -t bmif .
#
# Where the build may not reach a package index, hand it what pip needs to know:
#   --build-arg PIP_INDEX_URL=... (or PIP_EXTRA_INDEX_URL, PIP_CERT)   plain settings
#   --secret id=pip.conf,src=/etc/pip.conf                             a configuration with credentials
#   --build-arg WHEELHOUSE=IMAGE   an image of ready wheels (`scripts/setup.py --wheelhouse DIR`, then
#                                  `tar -C DIR -c . | docker import - IMAGE`): pip then needs no network at all
# Needs BuildKit, and of it nothing that a registry would have to deliver (so no `# syntax=` line).

ARG BASE=debian:12-slim
ARG WHEELHOUSE=scratch

FROM ${WHEELHOUSE} AS wheelhouse
WORKDIR /pyfhel

FROM ${BASE} AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
# The compiler is needed only where no ready Pyfhel wheel came along.
RUN --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    ls /wheelhouse/pyfhel/*/pyfhel-*.whl 2>/dev/null \
    || (apt-get update -qq \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ make python3-dev \
        && rm -rf /var/lib/apt/lists/*)
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CERT PIP_TRUSTED_HOST BMIF_TORCH_INDEX
WORKDIR /src
COPY requirements.lock ./
COPY scripts ./scripts
# Dependencies before sources: a change of the code leaves this layer as it is.
RUN --mount=type=bind,from=wheelhouse,target=/wheelhouse \
    --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    BMIF_WHEELHOUSE=/wheelhouse python3 scripts/setup.py --runtime --dependencies-only --venv /opt/bmif
COPY . .
RUN BMIF_WHEELHOUSE=/nowhere /opt/bmif/bin/python -m pip install --no-deps --no-index --no-build-isolation . \
    && /opt/bmif/bin/bmif --help >/dev/null

FROM ${BASE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 bmif && useradd --uid 10001 --gid bmif --create-home bmif \
    && install -d -o bmif -g bmif -m 0700 /node /volumes/node1 /volumes/node2 /volumes/node3 /volumes/node4
COPY --from=build /opt/bmif /opt/bmif
COPY scripts/healthcheck.py /opt/bmif/healthcheck.py
COPY configs /opt/bmif/configs
ENV PATH=/opt/bmif/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
USER bmif
WORKDIR /node
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "/opt/bmif/healthcheck.py", "/node/node.yaml"]
ENTRYPOINT ["bmif"]
CMD ["run", "--config", "/node/node.yaml"]
