#!/usr/bin/env bash
# The head: the tracking server, unless ~/.mcrnn.env names one elsewhere, and Ray. Arguments go to `ray start`.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${MCRNN_ENVIRONMENT:-$HOME/.mcrnn-environment}/bin:$PATH"
set -a
. ~/.mcrnn.env
if [ -f ~/.mcrnn-postgres.env ]; then . ~/.mcrnn-postgres.env; fi
RAY_AUTH_MODE=token
RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-120} # for a search that is stopped to save in; by default 3
set +a
: "${MCRNN_STORAGE:?~/.mcrnn.env does not set it}"
address=$(python -c 'from ray.util import get_node_ip_address; print(get_node_ip_address())')
if [ -z "${MLFLOW_TRACKING_URI:-}" ]; then
    export MLFLOW_TRACKING_URI="http://$address:${MLFLOW_PORT:-5000}"
    if ! python -c "import urllib.request as r; r.urlopen('$MLFLOW_TRACKING_URI/health', timeout=5)" 2>/dev/null; then
        nohup python cluster/mlflow_server.py --host "$address" --port "${MLFLOW_PORT:-5000}" \
            > ~/mlflow.log 2>&1 < /dev/null &
        for _ in $(seq 120); do
            if grep -q '^tracking server: ' ~/mlflow.log; then break; fi
            if ! kill -0 $! 2>/dev/null; then cat ~/mlflow.log >&2; exit 1; fi
            sleep 1
        done
    fi
fi
unset MCRNN_MLFLOW_DATABASE # which jobs need not know
ulimit -n 65536 2>/dev/null || true
ray start --head --node-ip-address="$address" --dashboard-host=127.0.0.1 "$@"
