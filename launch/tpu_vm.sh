#!/usr/bin/env bash
# Train on a Cloud TPU from your own machine: create it, copy the code, run on every host of the
# slice, start again after a pre-emption, fetch the results from a bucket, delete the TPU.
#
#   launch/tpu_vm.sh --study=FILE --workdir=DIR --bucket=gs://BUCKET/PATH --name=NAME --zone=ZONE
#                    --type=v5litepod-8 --version=v2-alpha-tpuv5-lite [options] [-- more flags]
#
#   --study=FILE     a study of this repository: host i of n trains what --task=i/n names, alone
#   --config=FILE    instead: one run over all hosts of the slice (cellseg_jax.main --distributed);
#                    its workdir lies in the bucket, which gcsfuse mounts
#   --bucket=URL     where the workdirs are kept between machines, one folder for each host
#   --data=URL       images, copied to DATA beside the code: pass -- --config.data.root=DATA too
#   --spot           pre-emptible; --queued: wait in the queue of queued resources
#   --project=NAME   the project, if it is not gcloud's default
#   --setup=COMMAND  how a host installs the code (default: a venv of python3, which must be 3.11+)
#   --restarts=N     how often it goes on after a pre-emption or a broken connection (default 30)
#   --wait=S         seconds between two looks at what is awaited (default 60)
#   --keep           do not delete the TPU at the end
#   --dry-run        print what would be done
#
# PYTHON is the interpreter here (default python), for the tables of a study at the end.

set -euo pipefail

stop() { echo "error: tpu_vm.sh: $1" >&2; exit 2; }
number() { [[ $2 =~ ^[0-9]+$ ]] || stop "$1=$2: expected a whole number"; }

study="" config="" workdir="" bucket="" data="" name="" type="" version="" restarts=30 pause=60
spot="" queued="" keep="" dry="" place=()
setup='python3 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'
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
        --type=?*) type=$value ;;
        --version=?*) version=$value ;;
        --setup=?*) setup=$value ;;
        --spot) spot=yes ;;
        --queued) queued=yes ;;
        --keep) keep=yes ;;
        --restarts=*) restarts=$value; number --restarts "$value" ;;
        --wait=*) pause=$value; number --wait "$value" ;;
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
file=$(realpath --relative-to="$root" "${study:-$config}")
[[ $file != ../* && ($dry || -f $root/$file) ]] ||
    stop "${study:-$config}: no file of this repository, which is what a host has"

# --- gcloud --------------------------------------------------------------------------------------

show() { printf '%q ' "$@"; }
tpus() { # a gcloud command on this TPU, or what it would be
    local words=(gcloud compute tpus "$1" "$2" "${@:3}" "${place[@]}")
    if [[ $dry ]]; then show "${words[@]}" && echo; else "${words[@]}"; fi
}

store() { # a gcloud command on the bucket
    if [[ $dry ]]; then show gcloud storage "$@" && echo; else gcloud storage "$@"; fi
}

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
        tpus queued-resources delete "$name" --force --quiet
    else
        tpus tpu-vm delete "$name" --quiet
    fi
}

state() { # of the TPU; of its place in the queue while there is none; ABSENT
    tpus tpu-vm describe "$name" '--format=value(state)' 2>/dev/null && return
    [[ $queued ]] && tpus queued-resources describe "$name" '--format=value(state.state)' \
        2>/dev/null && return
    echo ABSENT
}

on() { # host (or all), command
    if [[ $dry ]]; then # not in one line
        show gcloud compute tpus tpu-vm ssh "$name" "--worker=$1" "${place[@]}"
        printf -- "--command='\n%s\n'\n" "$2"
    else
        tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
    fi
}

await_ready() {
    local now before="" tries=$restarts
    while :; do
        now=$(state)
        [[ $now == "$before" ]] || echo "tpu_vm.sh: $name is $now" >&2
        before=$now
        case $now in
            READY) return ;;
            ABSENT) ((tries-- > 0)) || stop "$name cannot be created"; create || sleep "$pause" ;;
            PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) delete || sleep "$pause" ;;
            *) sleep "$pause" ;;
        esac
    done
}

# --- what a host does ----------------------------------------------------------------------------

install() {
    local code=cellseg_jax.tgz folder=""
    if [[ $dry ]]; then
        echo "# $code: the files of $root that git does not ignore"
    else
        folder=$(mktemp -d)
        code=$folder/$code
        (cd "$root" && git ls-files -z --cached --others --exclude-standard |
            tar --null --files-from=- --ignore-failed-read -czf "$code") || return
    fi
    tpus tpu-vm scp "$code" "$name:" --worker=all || return
    rm -rf "$folder"
    on all "mkdir -p cellseg_jax && tar -xzf cellseg_jax.tgz -C cellseg_jax && cd cellseg_jax && \
$setup${data:+ && mkdir -p DATA && gcloud storage rsync --recursive $(show "$data")DATA}"
}

# The next two run on a host. They end with 3 where the program failed, to tell this from a
# connection or a machine that did.
host_study() { # this host's folder in the bucket, workdir, command
    local bucket=$1 workdir=$2 code=75 python sync
    cd cellseg_jax && mkdir -p "$workdir" || exit
    gcloud storage rsync --recursive "$bucket" "$workdir" || exit
    upload() { # older checkpoints stay there: one serves if the last upload was cut off
        gcloud storage rsync --recursive --exclude='.*orbax-checkpoint-tmp.*' "$workdir" "$bucket"
    }
    "${@:3}" &
    python=$!
    trap 'kill -TERM "$python"' TERM HUP
    while sleep 300; do upload; done >/dev/null 2>&1 &
    sync=$!
    while kill -0 "$python" 2>/dev/null; do wait "$python"; done
    wait "$python"
    code=$?
    kill "$sync"
    upload
    exit $((code == 1 || code == 2 ? 3 : code))
}

host_run() { # bucket, folder in it, command
    local mount=/tmp/bucket code=0
    cd cellseg_jax && mkdir -p "$mount" || exit
    mountpoint -q "$mount" || # without this limit gcsfuse renames no folder, so no checkpoint ends
        gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$1" "$mount" || exit
    "${@:3}" "--workdir=$mount/$2" || code=$?
    exit $((code == 1 || code == 2 ? 3 : code))
}

train_study() { # host, hosts
    local alone=()
    # A host of a larger slice would wait for the others.
    (($2 > 1)) && alone=(env "TPU_PROCESS_BOUNDS=1,1,1" "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1")
    on "$1" "$(declare -f host_study)
host_study $(show "$bucket/$1_of_$2" "$workdir" "${alone[@]}" .venv/bin/python \
        -m cellseg_jax.study "--study=$file" "--workdir=$workdir" "${flags[@]}" "--task=$1/$2")"
}

train_run() {
    local path=${bucket#gs://}/
    local folder=${path#*/}
    on all "$(declare -f host_run)
host_run $(show "${path%%/*}" "${folder%/}" .venv/bin/python -m cellseg_jax.main \
        "--config=$file" --distributed "${flags[@]}")"
}

train() {
    local host code=0 jobs=()
    if [[ $config ]]; then train_run; return; fi
    if [[ $dry ]]; then echo "# on host i of n, with --task=i/n:"; else
        hosts=$(tpus tpu-vm describe "$name" \
            '--format=value[delimiter=" "](networkEndpoints[].ipAddress)' | wc -w)
        ((hosts > 0)) || return
    fi
    for ((host = 0; host < hosts; host++)); do
        # Creates the folder, which rsync needs, and records what was run.
        store cp "$root/$file" "$bucket/${host}_of_$hosts/" || return
        train_study "$host" "$hosts" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || code=$?; done
    return "$code"
}

finish() {
    local host
    [[ $keep ]] || delete
    [[ $dry ]] || mkdir -p "$workdir"
    if [[ $config ]]; then
        store rsync --recursive "$bucket" "$workdir"
        return
    fi
    for ((host = 0; host < hosts; host++)); do
        store rsync --recursive "$bucket/${host}_of_$hosts" "$workdir"
    done
    local tables=("${PYTHON:-python}" -m cellseg_jax.study "--study=$study" "--workdir=$workdir"
        "${flags[@]}" --collect)
    if [[ $dry ]]; then show "${tables[@]}" && echo; else "${tables[@]}"; fi
}

flags=("$@") hosts=1
if [[ $dry ]]; then
    create
    install
    train
    echo "# again from the top, at most $restarts times, after a pre-emption, exit code 75 or a" \
        "broken connection; then"
    finish
    exit 0
fi
command -v gcloud >/dev/null || stop "gcloud is not on PATH"
trap 'kill $(jobs -p) 2>/dev/null
    echo "tpu_vm.sh: stopped; $name may still run and cost: the same command goes on" >&2
    exit 75' INT TERM
for ((left = restarts; ; left--)); do
    code=0
    await_ready
    install && train || code=$?
    ((code == 0 || code == 3 || left == 0)) && break
    echo "tpu_vm.sh: exit code $code; going on, $left more times" >&2
    sleep "$pause"
done
finish || code=$?
exit $((code == 3 ? 1 : code))
