#!/usr/bin/env bash
# Train a study on Slurm: a job array whose tasks share its runs, and one job after it that makes the
# tables.
#
#   launch/slurm.sh --study=FILE --workdir=DIR --tasks=N [options] [-- options of cellseg_jax.study]
#
#   --tasks=N          tasks of the array; task i trains what --task=i/N names
#   --any              each task takes the next run that nobody has (--task=any): then the command
#                      may be given again with another number of tasks, beside the first ones too
#   --parallel=N       tasks that may run at once (default: all)
#   --time=HH:MM:SS    time limit of a task; it saves two minutes before and is queued again
#   --gpus=N           GPUs of a task (default 0)
#   --cpus=N           CPU cores of a task (default 4)
#   --mem=SIZE         memory of a task, such as 16G
#   --partition=NAME   --account=NAME
#   --sbatch=OPTION    any other option of sbatch, such as --sbatch=--constraint=a100; repeatable
#   --restarts=N       how often a task that is killed is started again (default 10); one that saved
#                      and stopped (exit code 75) is always started again
#   --dry-run          print what would be done
#
# PYTHON is the interpreter (default python), such as PYTHON=.venv/bin/python. Logs: DIR/logs.

set -euo pipefail

stop() { echo "error: slurm.sh: $1" >&2; exit 2; }
positive() { [[ $2 =~ ^[1-9][0-9]*$ ]] || stop "$1=$2: expected a whole number from 1 up"; }

study="" workdir="" tasks="" any="" parallel="" restarts=10 dry="" inside=""
resources=() gpus="" cpus=4
for word in "$@"; do
    [[ $word == -- ]] && break
    shift
    value=${word#*=}
    case $word in
        --study=?*) study=$value ;;
        --workdir=?*) workdir=$value ;;
        --tasks=*) tasks=$value; positive --tasks "$value" ;;
        --parallel=*) parallel=%$value; positive --parallel "$value" ;;
        --gpus=0) gpus="" ;;
        --gpus=*) gpus=$value; positive --gpus "$value" ;;
        --cpus=*) cpus=$value; positive --cpus "$value" ;;
        --time=?* | --mem=?* | --partition=?* | --account=?*) resources+=("$word") ;;
        --sbatch=?*) resources+=("$value") ;;
        --restarts=*) restarts=$value; positive --restarts "$value" ;;
        --any) any=--any ;;
        --dry-run) dry=yes ;;
        --inside=?*) inside=$value ;; # the interpreter: this is a task of the array
        --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) stop "$word: not an option with a value; see --help (options of the study follow --)" ;;
    esac
done
[[ ${1-} == -- ]] && shift
[[ $study ]] || stop "--study=FILE is missing, such as --study=configs/studies/nuclei.py"
[[ $workdir ]] || stop "--workdir=DIR is missing, such as --workdir=runs/nuclei"
[[ $tasks ]] || stop "--tasks=N is missing: how many tasks the array has"
python=${inside:-${PYTHON:-python}}
command=("$python" -m cellseg_jax.study "--study=$study" "--workdir=$workdir" "$@")

# --- inside a task -------------------------------------------------------------------------------

run_task() {
    local pid status=0
    # The job id of one of the tasks is the id of the whole array, so tasks go by this name.
    local job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    local share=$SLURM_ARRAY_TASK_ID/$tasks
    [[ $any ]] && share=any
    "${command[@]}" "--task=$share" &
    pid=$!
    # Before the time limit Slurm sends USR1 to this shell alone. TERM it sends to every process of
    # the job: python has it already, and a second one would kill python before it has saved.
    trap 'kill -TERM "$pid" 2>/dev/null || :' USR1
    trap : TERM
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done
    wait "$pid" || status=$?
    echo "task $job: exit code $status, restarts ${SLURM_RESTART_COUNT:-0}, $(date)"
    if ((status == 75 || (status > 128 && ${SLURM_RESTART_COUNT:-0} < restarts))) &&
        # Neither cancelled nor requeued by Slurm itself.
        [[ $(squeue --noheader --job="$job" --format=%T) == RUNNING ]]; then
        scontrol requeue "$job"
    fi
    exit "$status"
}

[[ $inside ]] && run_task

# --- submission ----------------------------------------------------------------------------------

show() { printf '%q ' "$@"; echo; }
name=$(basename "$study" .py)
array=(sbatch --parsable "--job-name=$name" "--array=0-$((tasks - 1))$parallel" --requeue
    --signal=B:USR1@120 --open-mode=append "--output=$workdir/logs/%A_%a.log"
    "--cpus-per-task=$cpus" ${gpus:+"--gres=gpu:$gpus"} "${resources[@]}"
    "$0" "--inside=$python" "--study=$study" "--workdir=$workdir" "--tasks=$tasks"
    ${any:+"$any"} "--restarts=$restarts" -- "$@")
collect=(sbatch --parsable "--job-name=$name-collect" --open-mode=append
    "--output=$workdir/logs/collect.log" "${resources[@]}"
    "--wrap=$(show "${command[@]}" --collect)")

if [[ $dry ]]; then
    show mkdir -p "$workdir/logs"
    show "${array[@]}"
    show "${collect[@]:0:1}" --dependency=afterany:ARRAY "${collect[@]:1}"
    share=i/$tasks
    [[ $any ]] && share=any
    echo "# task i runs: $(show "${command[@]}")--task=$share"
    exit 0
fi
command -v sbatch >/dev/null || stop "sbatch is not on PATH: this is no Slurm login node"
[[ -f $study ]] || stop "--study=$study: no such file"
mkdir -p "$workdir/logs"
id=$("${array[@]}")
id=${id%%;*}
after=$("${collect[@]:0:1}" "--dependency=afterany:$id" "${collect[@]:1}")
echo "job $id: $tasks tasks; job ${after%%;*} makes the tables after them; logs in $workdir/logs"
echo "state: squeue -u \$USER; stop: scancel $id ${after%%;*}; the same command goes on later"
