#!/usr/bin/env bash
# The testnet as containers: builds the image, starts docker-compose.yml, checks by REST that all nodes agree, mines
# a task if tests/testnet/compose_mine.sh is there, parts, kills and heals nodes, has Prometheus scrape them, and takes
# everything down again.
#
#   compose.sh                        the test described above
#   compose.sh reliability [OPTION]   instead: the manifests of benchmarks/reliability, each on containers of its own
#
# With a Docker engine at hand it is a plain `docker compose build` and `up`. Without one (root on Debian or Ubuntu)
# it installs the engine's package, runs one of its own on a private socket, makes the base image with debootstrap,
# and hands the build its wheels in an image, so that nothing is pulled. Whatever it started is gone afterwards.
set -euo pipefail

cd "$(dirname "$0")/../.."
case ${1:-test} in
    test) LIMIT_S=${BMIF_COMPOSE_LIMIT_S:-1080} ;;
    reliability) LIMIT_S=${BMIF_COMPOSE_LIMIT_S:-7200} ;;
    *) echo "usage: $0 [test | reliability [OPTION ...]]" >&2; exit 2 ;;
esac
if [ -z "${BMIF_COMPOSE_INNER:-}" ]; then
    status=0
    BMIF_COMPOSE_INNER=1 timeout --signal=TERM --kill-after=90 "$LIMIT_S" bash "$0" "$@" || status=$?
    [ "$status" -ne 124 ] || echo "compose: not done after $LIMIT_S s" >&2
    exit "$status"
fi

python=$PWD/.venv/bin/python
work=$(mktemp -d "${TMPDIR:-/tmp}/bmif-compose.XXXXXX")
engine= nat= forward= on_memory= compose=()
export COMPOSE_PROJECT_NAME=bmiftest

say() { printf 'compose: %4d s  %s\n' "$SECONDS" "$*"; }

finish() {
    local status=$?
    trap - EXIT INT TERM
    set +e
    if [ "${#compose[@]}" -gt 0 ]; then
        if [ "$status" -ne 0 ]; then
            "${compose[@]}" ps
            "${compose[@]}" logs --no-color --tail 60
        fi
        COMPOSE_PROFILES=observability "${compose[@]}" down --volumes --remove-orphans --timeout 30 >"$work/down.log" 2>&1 || cat "$work/down.log"
    fi
    if [ -n "$engine" ]; then
        kill "$engine" 2>/dev/null
        wait "$engine" 2>/dev/null
        ip link del bmif0 2>/dev/null
        [ -z "$nat" ] || { iptables-restore <"$nat"; echo "$forward" >/proc/sys/net/ipv4/ip_forward; }
        grep " $work/" /proc/mounts | cut -d' ' -f2 | sort -r | while read -r mount; do umount -l "$mount"; done
    fi
    [ -z "$on_memory" ] || umount -l "$work"
    rm -rf "$work"
    say "everything taken down"
    exit "$status"
}
trap finish EXIT
trap 'exit 143' INT TERM

start_engine() {
    [ "$(id -u)" -eq 0 ] && [ -e /etc/debian_version ] || {
        echo "compose: no Docker engine answers, and only root on Debian or Ubuntu can start one here" >&2
        exit 1
    }
    local missing=() package
    for package in docker.io docker-compose debootstrap iptables iproute2; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        say "installing ${missing[*]}"
        # No system service: the engine that this script runs is its own.
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
            >"$work/apt.log" 2>&1 || { tail -20 "$work/apt.log" >&2; exit 1; }
    fi
    # Thousands of small files for minutes: memory, where there is plenty, is kinder than the disk.
    if awk '/MemAvailable/ {exit $2 < 14000000}' /proc/meminfo; then
        mount -t tmpfs -o size=10g,mode=0700 bmif-compose "$work" && on_memory=yes
    fi
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin # Debian's client and engine belong together
    # Listing a table makes it exist, so that it is in what is saved, and restoring empties it again.
    iptables -t nat -S >/dev/null && iptables -t filter -S >/dev/null
    iptables-save >"$work/nat" && nat=$work/nat
    forward=$(cat /proc/sys/net/ipv4/ip_forward)
    ip link add name bmif0 type bridge
    ip address add 172.31.251.1/24 dev bmif0
    ip link set bmif0 up
    export DOCKER_HOST=unix://$work/docker.sock
    dockerd --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/docker.pid" \
        --bridge bmif0 --default-address-pool base=172.31.252.0/22,size=24 >"$work/engine.log" 2>&1 &
    engine=$!
    until docker version >/dev/null 2>&1; do
        kill -0 "$engine" 2>/dev/null || { tail -20 "$work/engine.log" >&2; exit 1; }
        [ "$SECONDS" -lt 180 ] || { echo "compose: the engine does not answer" >&2; exit 1; }
        sleep 0.5
    done
    say "engine $(docker version --format '{{.Server.Version}}') started"
}

make_base() {
    debootstrap --variant=minbase bookworm "$work/rootfs" >"$work/debootstrap.log" 2>&1 \
        || { tail -20 "$work/debootstrap.log" >&2; exit 1; }
    rm -rf "$work"/rootfs/var/cache/apt/archives/*.deb "$work"/rootfs/var/lib/apt/lists/*
    # This machine's certificates and package sources hold inside the build as well.
    local change=()
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
        install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$work/rootfs/etc/ssl/certs/ca-certificates.crt"
        change=(--change "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt")
    fi
    tar -C "$work/rootfs" -c . | docker import "${change[@]}" - debian:12-slim >/dev/null
    rm -rf "$work/rootfs"
    say "base image made"
}

make_wheelhouse() {
    # Wheels of this machine's Python serve the image only if they are of one kind.
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || return 0
    "$python" scripts/setup.py --wheelhouse "$work/wheelhouse" >"$work/wheelhouse.log" 2>&1 \
        || { cat "$work/wheelhouse.log" >&2; exit 1; }
    tar -C "$work/wheelhouse" -c . | docker import - bmif-wheelhouse:local >/dev/null
    rm -rf "$work/wheelhouse"
    export BMIF_WHEELHOUSE_IMAGE=bmif-wheelhouse:local
    say "wheels gathered"
}

make_prometheus() { # The pinned image can't be pulled here: Debian's package under its name
    local image
    image=$(sed -n 's/^ *image: \(prom.*\)$/\1/p' docker-compose.yml)
    docker build -t "$image" - >"$work/prometheus.log" 2>&1 <<'END' || { tail -20 "$work/prometheus.log" >&2; exit 1; }
FROM debian:12-slim
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* && install -d -o nobody -g nogroup /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus"]
END
    say "Prometheus' image made"
}

[ -x "$python" ] || python3 scripts/setup.py
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 BUILDKIT_PROGRESS=plain
if docker info >/dev/null 2>&1; then
    say "using the Docker engine that runs here"
else
    start_engine
    make_base
    make_wheelhouse
fi
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
else
    compose=(docker-compose)
fi

"${compose[@]}" build >"$work/build.log" 2>&1 || { tail -60 "$work/build.log" >&2; exit 1; }
docker run --rm bmif:local --help >/dev/null
[ "$(docker run --rm --entrypoint id bmif:local -u)" != 0 ] || { echo "compose: the image runs as root" >&2; exit 1; }
say "image built: $(docker image inspect --format '{{.Size}}' bmif:local | awk '{printf "%d MB", $1 / 1e6}')"

export COMPOSE=${compose[*]}
if [ "${1:-test}" = reliability ]; then
    shift
    "$python" -m benchmarks.reliability --backend containers "$@"
    exit
fi

"${compose[@]}" up -d >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }
"$python" tests/testnet/compose_check.py --deadline 120
say "testnet up, all nodes agree"

if [ -e tests/testnet/compose_mine.sh ]; then
    bash tests/testnet/compose_mine.sh
    "$python" tests/testnet/compose_check.py --deadline 60 --min-height 2
    say "task mined, all nodes agree"
fi
for node in node1 node2 node3 node4; do
    container=$("${compose[@]}" ps -q "$node")
    health=$(docker inspect --format '{{.State.Health.Status}} {{.RestartCount}}' "$container")
    [ "$health" = "healthy 0" ] || { echo "compose: $node is $health (state, restarts)" >&2; exit 1; }
done
say "all containers healthy, none restarted"

"$python" -m benchmarks.reliability --backend containers --quick --attach
"$python" tests/testnet/compose_check.py --deadline 60 --min-height 2
say "parted, killed and healed, all nodes agree"

# Grafana has no package to make its image of: its queries are evaluated by test_observability.py.
[ -z "$engine" ] || make_prometheus
COMPOSE_PROFILES=observability "${compose[@]}" up -d prometheus >"$work/observe.log" 2>&1 \
    || { cat "$work/observe.log" >&2; exit 1; }
"$python" tests/testnet/compose_observe.py
say "Prometheus scrapes all nodes"
