#!/usr/bin/env bash
# A team's MLflow server: runs and users in PostgreSQL, files in a folder or a bucket, a password for everybody.
# docs/team.md has the commands around it; deploy/mlflow.yaml runs it in a container.
#
# Secrets come by the environment, so that no list of processes shows them.
set -euo pipefail
: "${MLFLOW_BACKEND_STORE_URI:?set it to postgresql+psycopg2://user:password@host/database}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?set it to the first password of the user admin, of 12 letters at least}"
host=${MLFLOW_HOST:-127.0.0.1} port=${MLFLOW_PORT:-5000}

# Signs the forms of MLflow's pages. A new one with each start is as good: open forms are sent again.
export MLFLOW_FLASK_SERVER_SECRET_KEY=${MLFLOW_FLASK_SERVER_SECRET_KEY:-$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')}
export MLFLOW_DISABLE_TELEMETRY=true

# The users' table has its address in a file alone, in which % must be doubled.
umask 077
MLFLOW_AUTH_CONFIG_PATH=$(mktemp -d)/auth.ini
export MLFLOW_AUTH_CONFIG_PATH
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<EOF
[mlflow]
database_uri = ${MLFLOW_BACKEND_STORE_URI//%/%%}
admin_username = admin
default_permission = EDIT
auth_cache_ttl_seconds = 60
EOF

exec mlflow server --app-name basic-auth --host "$host" --port "$port" --workers "${MLFLOW_WORKERS:-4}" \
    --artifacts-destination "${MLFLOW_FILES:-mlflow-files}" \
    --allowed-hosts "${MLFLOW_NAMES:-localhost,127.0.0.1},localhost:$port,127.0.0.1:$port"
