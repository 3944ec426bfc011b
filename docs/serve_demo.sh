#!/usr/bin/env bash
# From the workspace of `make demo` to a served model and answers over HTTP:  docs/serve_demo.sh [port]
# Registers the model, lets it serve (alias champion), starts MLflow's scoring server on 127.0.0.1 and asks it things.
# Ends with 0 if every answer was 200 or 4xx with words.
set -euo pipefail
cd "$(dirname "$0")/.."
port="${1:-5055}"
export PATH="$PWD/.venv/bin:$PATH" JAVA_HOME="$(cat .venv/java_home)" MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_TRACKING_URI="sqlite:///$PWD/build/demo/mlflow.db" MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
log=build/demo/server.log

m3rec promote --config m3rec_spark/demo.yaml --workspace build/demo

mlflow models serve -m "models:/m3rec@champion" -h 127.0.0.1 -p "$port" --env-manager local > "$log" 2>&1 &
server=$!
trap 'kill "$server" 2> /dev/null || true; wait "$server" 2> /dev/null || true' EXIT
for _ in $(seq 150); do
    curl -sf "http://127.0.0.1:$port/ping" > /dev/null && break
    kill -0 "$server" 2> /dev/null || { echo "the server ended, see $log" >&2; exit 1; }
    sleep 0.4
done

ask() {  # name, body, what the answer holds
    local status
    status=$(curl -s -m 30 -o build/demo/answer.json -w '%{http_code}' "http://127.0.0.1:$port/invocations" \
        -H 'Content-Type: application/json' -d "$2")
    printf '\n%s\n  %s\n  -> %s %s\n' "$1" "$2" "$status" "$(head -c 300 build/demo/answer.json)"
    [[ $status == 200 || $status == 4* ]] && grep -q "$3" build/demo/answer.json
}
ask "a known user" '{"dataframe_records": [{"market": "M1", "user_id": "M1U000000", "k": 3, "explain": true}]}' '"known"'
ask "a stranger with a history" '{"dataframe_records": [{"market": "M1", "user_id": "new", "history": ["P000010", "P000136"], "k": 3}]}' 'from_history'
ask "a market nobody knows" '{"dataframe_records": [{"market": "atlantis", "user_id": "x", "k": 3}]}' 'unknown_market'
ask "a list of 10^12" '{"dataframe_records": [{"market": "M1", "user_id": "M1U000000", "k": 1000000000000}]}' '"known"'
ask "k below 1" '{"dataframe_records": [{"market": "M1", "k": 0}]}' 'at least'
ask "no JSON" '{"dataframe_records": [' 'valid JSON'
echo
