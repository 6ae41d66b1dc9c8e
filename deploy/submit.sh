#!/usr/bin/env bash
# Submit the demo as a Ray job, to the cluster at $RAY_API_SERVER_ADDRESS or to a head started here for the time of the job.
#
#   deploy/submit.sh RUN_DIR [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
run_dir=${1:?usage: deploy/submit.sh RUN_DIR [key=value ...]}
shift

if [ -z "${RAY_API_SERVER_ADDRESS:-}" ]; then
    port=${RAY_DASHBOARD_PORT:-8265}
    export RAY_API_SERVER_ADDRESS="http://127.0.0.1:$port" RAY_USAGE_STATS_ENABLED=0
    # A password for this head alone. Without one Ray makes a file in the home folder that every later head would demand.
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    log=$(mktemp)
    setsid ray start --head --block --port=0 --dashboard-host=127.0.0.1 --dashboard-port="$port" \
        --object-store-memory=268435456 >"$log" 2>&1 &
    head=$!
    trap 'kill -TERM -- -$head 2>/dev/null; wait $head 2>/dev/null || true; rm -f "$log"' EXIT
    until ray job list >/dev/null 2>&1; do
        kill -0 $head 2>/dev/null || { echo "error: the Ray head did not start:" >&2; tail -5 "$log" >&2; exit 1; }
        sleep 1
    done
fi

# A job runs in a copy of this folder, so its run_dir must be absolute.
ray job submit --working-dir . -- python pipelines/full.py --config configs/demo.yaml "run_dir=$(realpath -m "$run_dir")" "$@"
