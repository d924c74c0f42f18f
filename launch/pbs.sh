#!/usr/bin/env bash
# Train a study on PBS Pro, OpenPBS or Torque: a job array whose tasks share its runs, and one job
# after it that makes the tables.
#
#   launch/pbs.sh --study=FILE --workdir=DIR --tasks=N [options] [-- options of cellseg_jax.study]
#
#   --tasks=N           tasks of the array; task i trains what --task=i/N names
#   --any               each task takes the next run that nobody has (--task=any): then the command
#                       may be given again with another number of tasks, beside the first ones too
#   --parallel=N        tasks that may run at once (default: all)
#   --time=HH:MM:SS     time limit of a task; it saves two minutes before and is submitted again
#   --gpus=N            GPUs of a task (default 0)
#   --cpus=N            CPU cores of a task (default 4)
#   --mem=SIZE          memory of a task, such as 16gb
#   --queue=NAME        --account=NAME
#   --qsub=OPTION       any other word for qsub, such as --qsub=-W --qsub=umask=027; repeatable
#   --flavour=pro|torque  whose options qsub understands (default: by qsub --version)
#   --restarts=N        how often a worker that saved and stopped early (exit code 75) or was killed
#                       is started again within one job (default 20)
#   --dry-run           print the job scripts and what would be done
#
# PYTHON is the interpreter (default python), such as PYTHON=.venv/bin/python. Logs and the job
# scripts: DIR/logs.

set -euo pipefail

stop() { echo "error: pbs.sh: $1" >&2; exit 2; }
positive() { [[ $2 =~ ^[1-9][0-9]*$ ]] || stop "$1=$2: expected a whole number from 1 up"; }

study="" workdir="" tasks="" any="" parallel="" time="" gpus="" cpus=4 mem="" flavour="" restarts=20 dry=""
options=()
for word in "$@"; do
    [[ $word == -- ]] && break
    shift
    value=${word#*=}
    case $word in
        --study=?*) study=$value ;;
        --workdir=?*) workdir=$value ;;
        --tasks=*) tasks=$value; positive --tasks "$value" ;;
        --parallel=*) parallel=%$value; positive --parallel "$value" ;;
        --time=*)
            time=$value
            [[ $time =~ ^[0-9]+:[0-5][0-9]:[0-5][0-9]$ ]] ||
                stop "$word: expected HH:MM:SS, such as 12:00:00" ;;
        --gpus=0) gpus="" ;;
        --gpus=*) gpus=$value; positive --gpus "$value" ;;
        --cpus=*) cpus=$value; positive --cpus "$value" ;;
        --mem=?*) mem=$value ;;
        --queue=?*) options+=(-q "$value") ;;
        --account=?*) options+=(-A "$value") ;;
        --qsub=?*) options+=("$value") ;;
        --flavour=pro | --flavour=torque) flavour=$value ;;
        --restarts=*) restarts=$value; positive --restarts "$value" ;;
        --any) any=yes ;;
        --dry-run) dry=yes ;;
        --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) stop "$word: not an option with a value; see --help (options of the study follow --)" ;;
    esac
done
[[ ${1-} == -- ]] && shift
[[ $study ]] || stop "--study=FILE is missing, such as --study=configs/studies/nuclei.py"
[[ $workdir ]] || stop "--workdir=DIR is missing, such as --workdir=runs/nuclei"
[[ $tasks ]] || stop "--tasks=N is missing: how many tasks the array has"
if [[ ! $flavour ]]; then
    flavour=pro
    version=$(qsub --version 2>&1 || :)
    [[ $version == *[Vv]ersion:* ]] && flavour=torque
fi
limit=0 # seconds after which a task saves
if [[ $time ]]; then
    IFS=: read -r hours minutes seconds <<<"$time"
    limit=$((3600 * 10#$hours + 60 * 10#$minutes + 10#$seconds - 120))
    ((limit > 0)) || stop "--time=$time: expected more than two minutes, which saving may need"
fi
command=("${PYTHON:-python}" -m cellseg_jax.study "--study=$study" "--workdir=$workdir" "$@")
logs=$workdir/logs

# --- what the jobs run ---------------------------------------------------------------------------

run_task() {
    local status left=$restarts task share
    # In turn: submitted again, PBS Pro, Torque, Slurm's qsub; a single task is no array.
    task=${CELLSEG_TASK:-${PBS_ARRAY_INDEX:-${PBS_ARRAYID:-${SLURM_ARRAY_TASK_ID:-0}}}}
    share=$task/$tasks
    [[ $any ]] && share=any
    exec >>"$logs/$task.log" 2>&1
    local stopped=""
    trap 'stopped=yes' TERM # on qdel or preemption; python receives the signal as well
    while :; do
        status=0
        timeout --foreground --preserve-status --signal=TERM \
            $((limit ? limit - SECONDS : 0)) "${command[@]}" "--task=$share" || status=$?
        echo "task $task of job ${PBS_JOBID-}: exit code $status, $(date)"
        [[ $stopped ]] && exit "$status"
        ((status == 75 || status > 128)) || exit "$status"
        ((limit && SECONDS + 60 > limit)) && break
        ((left-- > 0)) || exit "$status"
        sleep 10
    done
    # PBS has no requeue that a user may ask for: the rest is a job of its own.
    cd "$logs" # Slurm's qsub has no blanks in paths
    collect_after "$("${submit[@]}" -v "CELLSEG_TASK=$task" task.pbs)"
}

collect_after() { "${submit[@]}" -W "depend=$after:$1" collect.pbs; }

head() { printf '#!/bin/bash\ncd %q || exit\n' "$PWD"; }

task_script() {
    head
    declare -p command tasks any logs limit restarts submit after
    declare -f run_task collect_after
    echo run_task
}

collect_script() {
    head
    echo "$(show "${command[@]}" --collect)>>$(show "$logs/collect.log")2>&1"
}

show() { printf '%q ' "$@"; }

# --- submission ----------------------------------------------------------------------------------

if [[ $flavour == pro ]]; then
    resources=select=1:ncpus=$cpus${gpus:+:ngpus=$gpus}${mem:+:mem=$mem}
    resources+=${time:+ -l walltime=$time}
    range=-J after=afterany after_array=afterany
else
    resources=nodes=1:ppn=$cpus${gpus:+:gpus=$gpus}${mem:+,mem=$mem}${time:+,walltime=$time}
    range=-t after=afterany after_array=afteranyarray
fi
read -ra resources <<<"-l $resources"
submit=(qsub -N "$(basename "$study" .py | cut -c1-15)" -j oe -o /dev/null -V -r y "${resources[@]}"
    "${options[@]}")
array=("$range" "0-$((tasks - 1))$parallel")
((tasks > 1)) || array=() after_array=$after # PBS Pro refuses an array of one

if [[ $dry ]]; then
    echo "# $logs/task.pbs:" && task_script
    echo "# $logs/collect.pbs:" && collect_script
    echo "# then:"
    show cd "$logs" && echo
    show "${submit[@]}" "${array[@]}" task.pbs && echo
    show "${submit[@]}" -W "depend=$after_array:ARRAY" collect.pbs && echo
    exit 0
fi
command -v qsub >/dev/null || stop "qsub is not on PATH: this is no PBS login node"
[[ -f $study ]] || stop "--study=$study: no such file"
mkdir -p "$logs"
task_script >"$logs/task.pbs"
collect_script >"$logs/collect.pbs"
cd "$logs"
id=$("${submit[@]}" "${array[@]}" task.pbs) || { echo "$id" >&2; exit 1; }
last=$(after=$after_array collect_after "$id") || { echo "$last" >&2; exit 1; }
echo "job $id: $tasks tasks; job $last makes the tables after them; logs in $logs"
echo "state: qstat; stop: qdel '$id' $last; the same command goes on later"
