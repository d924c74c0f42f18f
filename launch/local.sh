#!/usr/bin/env bash
# Train a study on the devices of this machine, start again what was interrupted, make the tables.
#
#   launch/local.sh --study=FILE --workdir=DIR [options] [-- options of cellseg_jax.study]
#
#   --per-gpu      a process for each GPU, each with its share of the runs, in place of one process
#                  that uses them all; which: CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists
#   --any          with --per-gpu: each process takes the next run that nobody has, in place of a
#                  share that is fixed
#   --restarts=N   how often a process is started again that saved and stopped (exit code 75) or
#                  was killed (default 20)
#   --wait=S       seconds before the first restart, doubled each time up to 5 minutes (default 5)
#   --dry-run      print what would be done
#
# PYTHON is the interpreter (default python), such as PYTHON=.venv/bin/python. Ctrl-C or SIGTERM:
# every process saves and stops; the same command goes on later. Logs of --per-gpu: DIR/logs.

set -euo pipefail

stop() { echo "error: local.sh: $1" >&2; exit 2; }
number() { [[ $2 =~ ^[0-9]+$ ]] || stop "$1=$2: expected a whole number"; }

study="" workdir="" per_gpu="" any="" restarts=20 pause=5 dry=""
for word in "$@"; do
    [[ $word == -- ]] && break
    shift
    value=${word#*=}
    case $word in
        --study=?*) study=$value ;;
        --workdir=?*) workdir=$value ;;
        --per-gpu) per_gpu=yes ;;
        --any) any=yes ;;
        --restarts=*) restarts=$value; number --restarts "$value" ;;
        --wait=*) pause=$value; number --wait "$value" ;;
        --dry-run) dry=yes ;;
        --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) stop "$word: not an option with a value; see --help (options of the study follow --)" ;;
    esac
done
[[ ${1-} == -- ]] && shift
[[ $study ]] || stop "--study=FILE is missing, such as --study=configs/studies/nuclei.py"
[[ $workdir ]] || stop "--workdir=DIR is missing, such as --workdir=runs/nuclei"
[[ ! $any || $per_gpu ]] || stop "--any: expected --per-gpu with it; of one process: -- --task=any"
[[ $dry || -f $study ]] || stop "--study=$study: no such file"
[[ $dry || ${PYTHON:-} ]] || python -c 'import cellseg_jax, absl' 2> /dev/null ||
    stop "python has no cellseg_jax; set PYTHON=.venv/bin/python, or activate its environment"
command=("${PYTHON:-python}" -m cellseg_jax.study "--study=$study" "--workdir=$workdir" "$@")
gpus=()
if [[ $per_gpu ]]; then
    list=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader \
        2>/dev/null | paste -sd, || :)}
    IFS=, read -ra named <<<"${list//[[:blank:]]/}"
    for gpu in ${named[@]+"${named[@]}"}; do # as CUDA, up to the first that names none, such as -1
        [[ $gpu =~ ^([0-9]+|(GPU|MIG)-.+)$ ]] || break
        gpus+=("$gpu")
    done
    why=${CUDA_VISIBLE_DEVICES+CUDA_VISIBLE_DEVICES=\"$CUDA_VISIBLE_DEVICES\" names none}
    ((${#gpus[@]})) || stop "--per-gpu: no GPU; ${why:-nvidia-smi lists none}"
fi
share_of() { [[ $any ]] && echo any || echo "$1/${#gpus[@]}"; } # the --task of a process
log_of() { echo "$workdir/logs/gpu_${1//\//_}.log"; } # names of MIG parts may have a slash

show() { printf '%q ' "$@"; echo; }
if [[ $dry ]]; then
    ((${#gpus[@]})) && show mkdir -p "$workdir/logs"
    for i in "${!gpus[@]}"; do
        echo "CUDA_VISIBLE_DEVICES=${gpus[i]} $(show "${command[@]}" "--task=$(share_of "$i")")>>" \
            "$(show "$(log_of "${gpus[i]}")")2>&1 &"
    done
    ((${#gpus[@]})) || show "${command[@]}"
    echo "# each again after exit code 75, or killed, at most $restarts times; then the tables:"
    show "${command[@]}" --collect
    exit 0
fi

# Job control gives each child a process group of its own: Ctrl-C reaches this shell alone, which
# passes it on once.
set -m
children=() stopped=""
listen() { trap 'stopped=yes; kill -TERM "${children[@]}" 2>/dev/null || :' INT TERM; }
listen

finish() { # the exit code of a child, which signals to this shell do not disturb
    local code=0
    while kill -0 "$1" 2>/dev/null; do wait "$1" 2>/dev/null || :; done
    wait "$1" 2>/dev/null || code=$?
    return "$code"
}

keep_running() { # run a command again after exit code 75 or a kill
    local code left=$restarts
    listen # a background process starts without traps
    while :; do
        code=0
        "$@" &
        children=($!)
        finish "$!" || code=$?
        ((code == 75 || code > 128)) && ((left-- > 0)) && [[ ! $stopped ]] || return "$code"
        echo "local.sh: exit code $code; starting again in $pause s, $left more times" >&2
        sleep "$pause" &
        children=($!)
        finish "$!" || :
        [[ $stopped ]] && return 75
        pause=$((pause * 2 < 300 ? pause * 2 : 300))
    done
}

status=0
if ((${#gpus[@]})); then
    mkdir -p "$workdir/logs"
    tasks=()
    for i in "${!gpus[@]}"; do
        CUDA_VISIBLE_DEVICES=${gpus[i]} keep_running "${command[@]}" "--task=$(share_of "$i")" \
            >>"$(log_of "${gpus[i]}")" 2>&1 &
        tasks+=($!)
        children=("${tasks[@]}")
    done
    for task in "${tasks[@]}"; do finish "$task" || status=$?; done
else
    keep_running "${command[@]}" || status=$?
fi
[[ $stopped ]] && { echo "local.sh: stopped; the same command goes on" >&2; exit 75; }
code=0 # one process that did everything has made its tables
if ((${#gpus[@]} || status)); then "${command[@]}" --collect || code=$?; fi
exit $((status ? status : code))
