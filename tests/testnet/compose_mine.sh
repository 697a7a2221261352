#!/usr/bin/env bash
# Mines a short encrypted task on the compose testnet, by the commands its operators would type in the containers:
# node1 drafts and publishes, two hospitals contribute phantoms, node2 and node3 mine to the last milestone.
# COMPOSE holds the compose command; compose.sh sets it.
set -euo pipefail

compose() { ${COMPOSE:-docker compose} "$@"; }
bmif() { # node, arguments...
    local node=$1
    shift
    echo "$node\$ bmif $*" >&2
    compose exec -T "$node" bmif "$@" </dev/null
}
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

draft=$(bmif node1 task draft --title "Compose: phantoms" --steps 24 --loss-openings 13 \
    --clip 0.5 --noise 32 --loss-clip 0.25 --loss-noise 2.5 --json | field draft)
contributions=() first=100
for node in node2 node3; do
    bmif "$node" data encrypt "$draft" --output /node/encrypted --phantoms 6 --first-phantom "$first" \
        --training-batches 1 --validation-batches 1 --validation-patients 2 --json >/dev/null
    id=$(bmif "$node" task contribute /node/encrypted --json | field contribution)
    contributions+=(--contribution "$id")
    first=$((first + 100))
done
task=$(bmif node1 task publish "$draft" "${contributions[@]}" --rung 0.030:1000 --rung 0.020:1000 \
    --batches-per-step 2 --learning-rate 0.115 --loss-every 2 --json | field task)
bmif node4 task watch "$task" --timeout "${BMIF_MINE_TIMEOUT_S:-420}"
[ "$(bmif node4 task show "$task" --json | field status)" = complete ]
