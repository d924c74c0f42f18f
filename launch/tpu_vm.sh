#!/usr/bin/env bash
# Train on a Cloud TPU from your own machine: create it, copy the code, run on every host of the
# slice, go on after a pre-emption, fetch the results from a bucket, delete the TPU.
#
#   launch/tpu_vm.sh --study=FILE --workdir=DIR --bucket=gs://BUCKET/PATH --name=NAME --zone=ZONE
#                    --type=v5litepod-8 --version=v2-alpha-tpuv5-lite [options] [-- more flags]
#
#   --study=FILE     a study of this repository: host i of n trains what --task=i/n names, alone
#   --config=FILE    instead: one run (cellseg_jax.main), over all hosts of the slice
#   --bucket=URL     where the workdir is kept between machines; each host of a study has a folder
#   --data=URL       images, copied to DATA beside the code: pass -- --config.data.root=DATA too
#   --spot           pre-emptible; --queued: wait in the queue of queued resources
#   --project=NAME   the project, if it is not gcloud's default
#   --setup=COMMAND  how a host installs the code into .venv (default: uv, with Python 3.12)
#   --restarts=N     how often to try again after a pre-emption, exit code 75 and so on (default 30)
#   --wait=S         seconds between two looks at the TPU (default 60)
#   --sync=S         seconds between two uploads of the workdir (default 300)
#   --keep           do not delete the TPU at the end
#   --dry-run        print what would be done, on a slice of one host
#
# The run does not end with this script or its connection: the same command finds it again, another
# one is refused while it runs. The TPU is deleted only after every host has answered that nothing
# runs there.
#
# Exit codes: 0 done; 1 the program failed; 2 wrong options; 3 the TPU cannot be created or set up,
# which is not tried twice; 75 stopped, or no restart is left. PYTHON is the interpreter here
# (default python), for the tables of a study at the end.

set -uo pipefail

leave() { echo "error: tpu_vm.sh: $2" >&2; exit "$1"; }
stop() { leave 2 "$1"; }
number() { [[ $2 =~ ^[0-9]+$ ]] || stop "$1=$2: expected a whole number"; }

study="" config="" workdir="" bucket="" data="" name="" type="" version="" setup=""
restarts=30 pause=60 sync=300 spot="" queued="" keep="" dry="" place=()
for word in "$@"; do
    [[ $word == -- ]] && break
    shift
    value=${word#*=}
    case $word in
        --study=?*) study=$value ;;
        --config=?*) config=$value ;;
        --workdir=?*) workdir=$value ;;
        --bucket=gs://?*) bucket=${value%/} ;;
        --data=gs://?*) data=${value%/} ;;
        --name=?*) name=$value ;;
        --zone=?* | --project=?*) place+=("$word") ;;
        --type=tpu7x*) stop "$word: the Cloud TPU API ends at v6e; use Compute Engine or GKE" ;;
        --type=?*) type=$value ;;
        --version=?*) version=$value ;;
        --setup=?*) setup=$value ;;
        --spot) spot=yes ;;
        --queued) queued=yes ;;
        --keep) keep=yes ;;
        --restarts=*) restarts=$value; number --restarts "$value" ;;
        --wait=*) pause=$value; number --wait "$value" ;;
        --sync=*) sync=$value; number --sync "$value" ;;
        --dry-run) dry=yes ;;
        --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) stop "$word: not an option with such a value; see --help (further flags follow --)" ;;
    esac
done
[[ ${1-} == -- ]] && shift
[[ $study || $config ]] || stop "--study=FILE or --config=FILE is missing"
[[ $study && $config ]] && stop "--study and --config: expected one of them"
for option in workdir bucket name type version; do
    [[ ${!option} ]] || stop "--$option is missing; see --help"
done
[[ " ${place[*]-}" == *" --zone="* ]] || stop "--zone is missing; see --help"
[[ $workdir != /* ]] || stop "--workdir=$workdir: expected a relative path, such as runs/nuclei"
root=$(cd "$(dirname "$0")/.." && pwd)
file=$(realpath --relative-to="$root" "${study:-$config}") || exit
[[ $file != ../* && ($dry || -f $root/$file) ]] ||
    stop "${study:-$config}: no file of this repository, which is what a host has"

# --- gcloud --------------------------------------------------------------------------------------

show() { printf '%q ' "$@"; }
run() { if [[ $dry ]]; then show "$@" && echo; else "$@"; fi; }
tpus() { run gcloud compute tpus "$@" "${place[@]}" --quiet; }

create() {
    local options=("--accelerator-type=$type" ${spot:+--spot})
    if [[ $queued ]]; then
        tpus queued-resources create "$name" "--node-id=$name" "--runtime-version=$version" \
            "${options[@]}"
    else
        tpus tpu-vm create "$name" "--version=$version" "${options[@]}"
    fi
}

delete() {
    if [[ $queued ]]; then
        tpus queued-resources delete "$name" --force
    else
        tpus tpu-vm delete "$name"
    fi
}

state() { # of the TPU; of its place in the queue while there is none; ABSENT
    tpus tpu-vm describe "$name" '--format=value(state)' 2>/dev/null && return
    [[ $queued ]] && tpus queued-resources describe "$name" '--format=value(state.state)' \
        2>/dev/null && return
    echo ABSENT
}

on() { # host, command
    if [[ $dry ]]; then # not in one line
        show gcloud compute tpus tpu-vm ssh "$name" "--worker=$1" "${place[@]}" --quiet
        printf -- "--command='\n%s\n'\n" "$2"
    else # a dead connection must end, for the next look
        tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2" '--ssh-flag=-o ServerAliveInterval=30'
    fi
}

again() { # why: one restart less; false if none is left
    ((left > 0)) || { echo "tpu_vm.sh: $1; no restart is left" >&2; return 1; }
    echo "tpu_vm.sh: $1; trying again, $((left -= 1)) restarts left" >&2
    sleep "$pause"
}

await_ready() {
    local now said final
    while :; do
        now=$(state)
        [[ $now == "$before" ]] || echo "tpu_vm.sh: $name is $now" >&2
        before=$now
        case $now in
            READY) return ;;
            ABSENT)
                said=$(create 2>&1) && continue
                echo "$said" >&2
                final=$(grep -m 1 -iE 'quota.*exceed|exceed.*quota|PERMISSION_DENIED|INVALID_ARGU' \
                    <<<"$said") && leave 3 "$name cannot be created: $final"
                again "$name could not be created" || exit 75
                ;;
            PREEMPTED | TERMINATED | STOPPED | SUSPENDED)
                delete || again "$name could not be deleted" || exit 75
                ;;
            FAILED) # of the queue, for good
                delete
                again "the queue refused $name" || exit 75
                ;;
            *) sleep "$pause" ;;
        esac
    done
}

# --- the hosts -----------------------------------------------------------------------------------

flags=("$@") hosts=1 left=$restarts before="" shown=""
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
kind=$([[ $study ]] && echo study || echo config)
command=$(show "--$kind=$file" "--workdir=$workdir" "--bucket=$bucket" ${data:+"--data=$data"} \
    ${1+-- "$@"})
command=${command% }
# What tpu_host.sh has to know.
facts=("KIND=$kind" "FILE=$file" "WORKDIR=$workdir" "BUCKET=$bucket" "DATA=$data"
    "INSTALL=$setup" "SYNC=$sync" "COMMAND=$command")

all() { # a command for all hosts at once: prints into $scratch/HOST; false if it fails on one
    local host job jobs=() code=0
    for ((host = 0; host < hosts; host++)); do
        if [[ $dry ]]; then on "$host" "export HOST=$host HOSTS=$hosts; $1"; continue; fi
        on "$host" "export HOST=$host HOSTS=$hosts; $1" >"$scratch/$host" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || code=$?; done
    return "$code"
}

each() { # what tpu_host.sh shall do on all hosts
    all "[ -f cellseg_jax/launch/tpu_host.sh ] || { echo none; exit; }; cd cellseg_jax && \
$(show env "${facts[@]}" bash launch/tpu_host.sh "$@")"
}

look() { # ask all hosts: how many are running, the codes of those that ended; false without an answer
    local host answer line
    running=0 ended=()
    each state
    for ((host = 0; host < hosts; host++)); do
        answer=$(tail -n 1 "$scratch/$host")
        case $answer in
            running) ((running += 1)) ;;
            "ended "*) ended[host]=${answer#ended } ;;
            "other "*)
                leave 2 "$name still has the run of ${answer#other }; not started: $command; use \
another --name, or wait for the first"
                ;;
            none) ;;
            *) return 72 ;;
        esac
    done
    line=$(head -n -1 "$scratch/0")
    [[ $line == "$shown" ]] || echo "host 0: $line" >&2
    shown=$line
}

refused() { # of what ran on all hosts: 3 and its reason if a host says so, 72 if one is silent
    local host failed
    for ((host = 0; host < hosts; host++)); do
        failed=$(grep '^setup failed: ' "$scratch/$host") || continue
        echo "error: tpu_vm.sh: host $host: $failed" >&2
        return 3
    done
    return 72
}

try() { # a command for all hosts, which report it where it fails
    all "said=\$({ $1; } 2>&1) ||
        { echo \"setup failed: \$said\" | head -n 3 | paste -sd' '; exit 3; }" || refused
}

install() {
    local code=cellseg_jax.tgz
    if [[ $dry ]]; then
        echo "# $code: the files of $root that git does not ignore"
    else
        code=$scratch/$code
        (cd "$root" && git ls-files -z --cached --others --exclude-standard |
            tar --null --files-from=- --ignore-failed-read -czf "$code") || return 3
    fi
    if ! tpus tpu-vm scp "$code" "$name:" --worker=all; then # the connection, or a full disk
        try "head -c $(stat -c %s "$code") /dev/zero >cellseg_jax.tgz" || return
        return 72
    fi
    try "mkdir -p cellseg_jax && tar -xzf cellseg_jax.tgz -C cellseg_jax" || return
    each setup || refused
}

judge() { # of a run that has ended on all hosts; what must not be deleted comes first
    local host code result=0
    for ((host = 0; host < hosts; host++)); do
        code=${ended[host]-75} # without a code it was killed
        case $code in
            0) continue ;;
            1 | 2 | 3)
                on "$host" 'tail -n 20 cellseg_jax/.run/log' >&2
                echo "error: tpu_vm.sh: host $host ended with exit code $code" >&2
                code=$((code == 3 ? 3 : 1))
                ;;
            73 | 74) return "$code" ;;
            *) code=75 ;;
        esac
        ((result && result < code)) || result=$code
    done
    return "$result"
}

poll() { # until no host runs
    local silent=0
    while :; do
        if look; then
            silent=0
            ((running)) || break
            # The others of one run wait for the host that ended.
            if [[ $config ]] && ((running < hosts)); then each stop; fi
        else
            [[ $(state) == READY ]] || return 70
            ((silent++ < restarts)) || return 72
        fi
        sleep "$pause"
    done
    judge
}

attempt() { # 0 done, 1 and 3 as this script; 70 to 75: see why
    local code=0
    hosts=$(tpus tpu-vm describe "$name" \
        '--format=value[delimiter=" "](networkEndpoints[].ipAddress)' | wc -w)
    ((hosts > 0)) || return 72
    look || return
    ((running)) || install || code=$?
    # Results that are on this machine alone outweigh what is wrong with it.
    ((code)) && [[ " ${ended[*]-} " == *" 74 "* ]] && code=74
    ((code)) && return "$code"
    # A host on which the run goes on is left alone.
    if [[ $study ]] || ((running == 0)); then each start "${flags[@]}" || return 72; fi
    poll
}

fetch() { # the results, and the tables
    local host
    [[ $dry ]] || mkdir -p "$workdir"
    if [[ $config ]]; then
        run gcloud storage rsync --recursive "$bucket" "$workdir"
        return
    fi
    for ((host = 0; host < hosts; host++)); do
        run gcloud storage rsync --recursive "$bucket/${host}_of_$hosts" "$workdir"
    done
    run "${PYTHON:-python}" -m cellseg_jax.study "--study=$study" "--workdir=$workdir" \
        "${flags[@]}" --collect
}

if [[ $dry ]]; then
    create
    install
    each start "${flags[@]}"
    each state
    echo "# every $pause s, until it has ended; again from the top, at most $restarts times, after" \
        "a pre-emption, exit code 75 or a broken connection; then"
    [[ $keep ]] || delete
    fetch
    exit 0
fi
command -v gcloud >/dev/null || stop "gcloud is not on PATH"
trap 'kill $(jobs -p) 2>/dev/null
    leave 75 "stopped here; $name may still run, and cost: the same command finds it again"' INT TERM
why=([70]="$name was pre-empted or stopped" [72]="$name does not answer" [73]="another process has the run"
    [74]="results could not be uploaded" [75]="the run was stopped")
while :; do
    await_ready
    attempt
    code=$?
    if ((code < 70)) || ! again "${why[code]}"; then break; fi
done
case $code in
    70 | 72 | 73 | 74) leave 75 "$name is not deleted and may cost: the same command finds it again" ;;
esac
[[ $keep ]] || delete || echo "tpu_vm.sh: $name could not be deleted: delete it, or it costs" >&2
((code == 3)) && exit 3
fetch || code=$((code == 0 ? 1 : code))
exit "$code"
