#!/usr/bin/env bash
# On a TPU VM: install the project, and start, watch and stop one job. Called by launch.tpu_vm through ssh.
# It keeps everything in ~/diffussm: source/, venv/, job/{pid,code,log}.
set -euo pipefail
ROOT="$HOME/diffussm"
JOB="$ROOT/job"
GRACE=120 # seconds for a job to save and end

install() { # source.tar.gz lies in $HOME
    mkdir -p "$ROOT/source" "$JOB"
    local sum
    sum=$(sha256sum "$HOME/source.tar.gz" | cut -d' ' -f1)
    if [ "$(cat "$ROOT/installed" 2>/dev/null)" = "$sum" ]; then return; fi
    rm -rf "$ROOT/source" && mkdir "$ROOT/source"
    tar -xzf "$HOME/source.tar.gz" -C "$ROOT/source"
    if [ -z "${DIFFUSSM_PYTHON:-}" ]; then
        make_venv
    fi
    echo "$sum" >"$ROOT/installed"
}

make_venv() { # uv brings its own Python where the machine's is too old
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh >/dev/null
    export PATH="$HOME/.local/bin:$PATH"
    uv venv --quiet --allow-existing --python 3.12 "$ROOT/venv"
    uv pip install --quiet --python "$ROOT/venv/bin/python" -r "$ROOT/source/requirements.txt"
    uv pip install --quiet --python "$ROOT/venv/bin/python" "$ROOT/source[tpu]"
}

is_running() { [ -f "$JOB/pid" ] && kill -0 -- "-$(cat "$JOB/pid")" 2>/dev/null; }

start() { # the command's words
    if is_running; then echo "a job runs already; stop it first" >&2; exit 3; fi
    rm -f "$JOB/pid" "$JOB/code" "$JOB/stopped"
    cd "$ROOT/source"
    export PATH="$ROOT/venv/bin:$PATH" PYTHONPATH="$ROOT/source" JAX_COMPILATION_CACHE_DIR="$ROOT/compiled"
    setsid --fork bash -c 'echo $$ >"$0/pid"; "${@}" >>"$0/log" 2>&1 </dev/null; code=$?
        if [ $code = 75 ] && [ -f "$0/stopped" ]; then code=143; fi; echo $code >"$0/code"' "$JOB" "$@" >/dev/null 2>&1 </dev/null
    for _ in $(seq 100); do [ -f "$JOB/pid" ] && return; sleep 0.1; done
    echo "the job did not start" >&2
    exit 3
}

state() { # one line that launch.tpu_vm reads
    local what="absent"
    if [ -f "$JOB/code" ]; then what="ended $(cat "$JOB/code")"
    elif is_running; then what="running"
    elif [ -f "$JOB/pid" ]; then what="ended 137"; fi
    echo "diffussm-job $(hostname) $what"
}

stop() { # as preemption does: the job saves, then ends; only the job gets the signal, not the shell that keeps its exit code
    if ! is_running; then return; fi
    touch "$JOB/stopped" # so that its 75 is not taken for a preemption, after which it would be started again
    pkill -TERM -P "$(cat "$JOB/pid")" || true
    for _ in $(seq $GRACE); do is_running || return 0; sleep 1; done
    kill -KILL -- "-$(cat "$JOB/pid")"
}

logs() { tail -n "$1" "$JOB/log"; }

"$@"
