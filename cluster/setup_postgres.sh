#!/usr/bin/env bash
# A head on Debian or Ubuntu: PostgreSQL with a database for MLflow, unless ~/.mcrnn.env names one elsewhere.
set -euo pipefail
if grep -qE '^(MCRNN_MLFLOW_DATABASE|MLFLOW_TRACKING_URI)=' ~/.mcrnn.env; then exit 0; fi
if [ ! -d /usr/lib/postgresql ]; then
    sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq postgresql
fi
sudo systemctl start postgresql
if [ ! -s ~/.mcrnn-postgres.env ]; then # of this machine only: what is in the database is dumped to the storage root
    password=$(openssl rand -hex 24)
    sudo -u postgres psql -qc "DROP ROLE IF EXISTS mcrnn" -c "CREATE ROLE mcrnn LOGIN PASSWORD '$password'" \
        -c "CREATE DATABASE mcrnn OWNER mcrnn"
    (umask 077 && echo "MCRNN_MLFLOW_DATABASE=postgresql://mcrnn:$password@127.0.0.1/mcrnn" > ~/.mcrnn-postgres.env)
fi
