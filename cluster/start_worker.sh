#!/usr/bin/env bash
# A worker: Ray only. Arguments go to `ray start`.
set -euo pipefail
export PATH="${MCRNN_ENVIRONMENT:-$HOME/.mcrnn-environment}/bin:$PATH"
set -a
. ~/.mcrnn.env
RAY_AUTH_MODE=token
set +a
unset MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MCRNN_MLFLOW_DATABASE # which workers need not know
ulimit -n 65536 2>/dev/null || true
ray start "$@"
