#!/usr/bin/env bash
# MLflow on PostgreSQL on this machine, as deploy/kubernetes/tracking has it on a cluster, loopback only:
#   bash deploy/local/mlflow.sh [DIRECTORY] [PORT]
# Everything lies in DIRECTORY (~/.rondo/mlflow; as root /var/lib/rondo-mlflow). Runs until Ctrl-C or SIGTERM and stops
# what it started; the next start goes on with the same experiments. PostgreSQL is Debian's: apt-get install postgresql.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
as_owner=()
owner=$(id -un)
home=$HOME/.rondo/mlflow
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root, and its user cannot enter /root
    owner=postgres
    home=/var/lib/rondo-mlflow
    as_owner=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
directory=${1:-$home}
port=${2:-5000}
python=$repository/.venv/bin/python

die() {
    printf 'mlflow.sh: %s\n' "$*" >&2
    exit 1
}

bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || die "no PostgreSQL in /usr/lib/postgresql; run: apt-get install -y postgresql"
"$python" -c 'import mlflow, psycopg' 2>/dev/null || die "MLflow or psycopg is missing; run: make setup"

mkdir -p "$directory/artifacts"
directory=$(cd "$directory" && pwd)
"${as_owner[@]}" test -x "$directory" || die "user $owner may not enter $directory; give another directory"
data=$directory/postgres
sockets=$(mktemp -d /tmp/rondo-mlflow-XXXXXX) # a socket's path must be short
[ ${#as_owner[@]} = 0 ] || chown "$owner" "$sockets"
server=

stop() {
    trap - EXIT INT TERM
    [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server"; } || true
    "${as_owner[@]}" "$bin/pg_ctl" -D "$data" -m fast -w stop >/dev/null 2>&1 || true
    rm -rf "$sockets"
}
trap stop EXIT
trap 'exit 0' INT TERM

password() {
    "$python" -c 'import secrets; print(secrets.token_urlsafe(24))'
}

fresh=
if [ ! -f "$data/PG_VERSION" ]; then
    fresh=yes
    install -d -m 0700 "$data"
    [ ${#as_owner[@]} = 0 ] || chown "$owner" "$data"
    (umask 077 && password >"$directory/mlflow.password")
    # Local connections are the owner's alone; everybody else needs a password.
    (cd / && "${as_owner[@]}" "$bin/initdb" -D "$data" -U "$owner" --auth-local=peer --auth-host=scram-sha-256) >/dev/null
fi
[ -f "$directory/mlflow.password" ] || die "$directory/mlflow.password is missing: move $data away to begin anew"
database_port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
(cd / && "${as_owner[@]}" "$bin/pg_ctl" -D "$data" -w -l "$data/server.log" \
    -o "-c listen_addresses=127.0.0.1 -c port=$database_port -c unix_socket_directories=$sockets" start) >/dev/null ||
    die "PostgreSQL does not start, see $data/server.log"
MLFLOW_PASSWORD=$(cat "$directory/mlflow.password")
export MLFLOW_PASSWORD
if [ -n "$fresh" ]; then
    ANNOTATIONS_PASSWORD=$(password) "${as_owner[@]}" "$bin/psql" -q -h "$sockets" -p "$database_port" -U "$owner" -d postgres \
        -f - <"$repository/deploy/kubernetes/tracking/databases.sql"
fi

cd "$directory"
PGHOST=127.0.0.1 PGPORT=$database_port PGPASSWORD=$MLFLOW_PASSWORD MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    "$repository/.venv/bin/mlflow" server --host=127.0.0.1 --port="$port" --workers=1 \
    --backend-store-uri=postgresql+psycopg://mlflow@/mlflow \
    --artifacts-destination="$directory/artifacts" --serve-artifacts >"$directory/server.log" 2>&1 &
server=$!
"$python" - "$port" "$server" <<'PYTHON' || die "MLflow does not answer, see $directory/server.log"
import os, sys, time, urllib.request

for _ in range(1800):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=1).close()
        sys.exit(0)
    except OSError:
        os.kill(int(sys.argv[2]), 0)
        time.sleep(0.1)
sys.exit(1)
PYTHON
echo "MLflow: http://127.0.0.1:$port   (rondo run ... tracking.uri=http://127.0.0.1:$port; Ctrl-C stops it)"
wait "$server"
