#!/usr/bin/env bash
# What tpu_vm.sh starts on each host of a TPU, in the folder of the code there.
#
#   tpu_host.sh setup            install; prints "setup failed: REASON" where that cannot work
#   tpu_host.sh start [FLAG ...] start the run, unless one goes on here, and return at once
#   tpu_host.sh state            the log's last line; then "running", "ended CODE" or "none", or
#                                "other COMMAND" where another one runs or has its results here
#   tpu_host.sh stop             let the run save and end
#
# The run is detached, so that it does not end with the connection that started it. All its
# processes hold .run/lock, which is how a run is known to go on; .run/code is its exit code and
# .run/log what it printed. Exit codes beside those of Python: 3 the bucket cannot be read, 73
# another process has the run, 74 the results could not be uploaded.
#
# Environment: HOST of HOSTS, KIND (study or config), FILE, WORKDIR, BUCKET, DATA (a URL or empty),
# INSTALL (a command or empty), SYNC (seconds between two uploads), COMMAND (all of these that make
# a run what it is, with its flags: for messages, and to tell two runs apart).

set -uo pipefail
mkdir -p .run
GRACE=${GRACE:-300} # seconds to save in
LOCK=.run/lock PID=.run/pid CODE=.run/code LOG=.run/log MOUNT=.run/bucket THIS=.run/command

folder=${BUCKET-}
[[ ${KIND-} == study ]] && folder+=/${HOST}_of_$HOSTS # each host has its own
# Only a run over several hosts needs one folder that all of them see.
mounted=""
[[ ${KIND-} == config && $HOSTS -gt 1 ]] && mounted=yes

# --- setup ---------------------------------------------------------------------------------------

fail() { echo "setup failed: $1"; exit 3; }

try() { # a command; where it fails, its last words from the last error on, in one line
    local said # in no file: the disk may be full
    said=$("$@" 2>&1 | tee >(cat >&2)) && return
    fail "$(echo "$said" | tail -n 30 | awk '
        tolower($0) ~ /^ *(error|fatal|e:|×)|not found/ { text = "" }
        { gsub(/[[:space:]]+/, " "); text = text " " $0 }
        END { print substr(text, 2, 400) }')"
}

install() { # Python by uv: that of the Ubuntu 22.04 of most images is 3.10
    PATH=$HOME/.local/bin:$PATH
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv ||
        curl -LsSf https://astral.sh/uv/install.sh | sh || return
    uv venv --quiet --allow-existing --python 3.12 .venv && uv pip install --quiet -e '.[tpu]'
}

setup() {
    exec 8>.run/setup.lock
    flock 8 # one whose connection broke may still be at work
    command -v gcloud >/dev/null || fail "gcloud is missing on the host"
    if [[ $INSTALL ]]; then try bash -c "$INSTALL"; else try install; fi
    [[ ! $mounted ]] || command -v gcsfuse >/dev/null ||
        fail "gcsfuse is missing on the host: a run over several hosts needs it (--setup=COMMAND \
may install it), one host does not"
    [[ ! $DATA ]] || { mkdir -p DATA && try gcloud storage rsync --recursive "$DATA" DATA; }
    # The folder has to be there for rsync; and it can be written.
    try gcloud storage cp "$FILE" "$folder/"
}

# --- the run -------------------------------------------------------------------------------------

start() {
    exec 9>"$LOCK"
    flock -n 9 || return 0
    rm -f "$CODE" "$PID" .run/stopping
    echo "$COMMAND" >"$THIS" || return
    setsid nohup bash "$0" work "$@" </dev/null >"$LOG" 2>&1 &
}

upload() { # older checkpoints stay there: one serves if the last upload was cut off
    gcloud storage rsync --recursive --exclude='.*orbax-checkpoint-tmp.*' "$WORKDIR" "$folder"
}

end() { echo "$1" >"$CODE.new" && mv "$CODE.new" "$CODE" && exit; }

open_workdir() {
    if [[ $mounted ]]; then
        local path=${BUCKET#gs://}/
        mkdir -p "$MOUNT"
        # Without the limit gcsfuse renames no folder, so that no checkpoint would end.
        mountpoint -q "$MOUNT" || gcsfuse --implicit-dirs --rename-dir-limit=1000000 \
            "${path%%/*}" "$MOUNT" || return
        path=$MOUNT/${path#*/}
        WORKDIR=${path%/}
    else
        # What is newer here was not uploaded before a run was killed.
        mkdir -p "$WORKDIR" && gcloud storage rsync --recursive --skip-if-dest-has-newer-mtime \
            "$folder" "$WORKDIR"
    fi
}

python_words() { # into words, by the flags of the user
    words=(.venv/bin/python -m "cellseg_jax.$([[ $KIND == study ]] && echo study || echo main)"
        "--$KIND=$FILE" "--workdir=$WORKDIR" "$@")
    if [[ $KIND == study ]]; then words+=("--task=$HOST/$HOSTS"); fi
    ((HOSTS > 1)) || return 0
    if [[ $KIND == config ]]; then
        words+=(--distributed) # jax.distributed has the addresses from the metadata of the TPU
    else
        # A host of a slice by itself, with its four chips, or it would wait for the others.
        # shellcheck disable=SC2054 # commas within values
        words=(env TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1
            TPU_VISIBLE_CHIPS=0,1,2,3 CLOUD_TPU_TASK_ID=0 TPU_PROCESS_ADDRESSES=localhost:8476
            TPU_PROCESS_PORT=8476 "${words[@]}")
    fi
}

work() { # detached
    local python sync="" code=0 words
    open_workdir || end 3
    python_words "$@"
    "${words[@]}" &
    python=$!
    echo "$python" >"$PID"
    # Not passed on: a shutdown sends it to all processes, and Python does not save at a second one.
    trap : TERM
    if [[ ! $mounted ]]; then # without the lock: a sleep may outlive the run
        # shellcheck disable=SC2153
        while sleep "$SYNC"; do upload; done >/dev/null 2>&1 9>&- &
        sync=$!
    fi
    while kill -0 "$python" 2>/dev/null; do wait "$python"; done
    wait "$python"
    code=$?
    [[ ! $sync ]] || kill "$sync"
    # A run ends with 2 then, a study with 75.
    if ((code == 2 || code == 75)) && grep -q ' is in use by ' "$LOG"; then code=73; fi
    [[ $mounted ]] || upload || code=74
    end "$code"
}

state() {
    [[ ! -f $LOG ]] || tail -n 1 "$LOG" | cut -c 1-200
    local now=none
    if ! flock -n "$LOCK" true; then now=running
    elif [[ -f $CODE ]]; then now="ended $(<"$CODE")"; fi
    # Results that were not uploaded are on this machine alone.
    if [[ $now == running || $now == "ended 74" ]] && [[ $COMMAND != "$(<"$THIS")" ]]; then
        now="other $(<"$THIS")"
    fi
    echo "$now"
}

stop() { # asked again after GRACE seconds, by force: it may wait for another host
    flock -n "$LOCK" true && return
    if [[ ! -f .run/stopping ]]; then
        touch .run/stopping
        kill -TERM "$(<"$PID")"
    elif (($(date +%s) - $(stat -c %Y .run/stopping) >= GRACE)); then
        kill -KILL "$(<"$PID")"
    fi
}

"$@"
