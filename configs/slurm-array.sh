#!/bin/bash
# Recipe:  a job array of SLURM without Dask: every task is a plain `wsi` command, and all share one run folder. Each
#          takes slides that no other is at; a task that is preempted or lost leaves its slides to the others.
# Command: sbatch --array=0-7 configs/slurm-array.sh run slides.csv --config virchow2 --out run
#          (what follows the file name is what follows `wsi`; in a copy of this file set the lines of #SBATCH below;
#          for GPUs --gres=gpu:1. Start more tasks on the same folder at any time; `wsi status run` tells how it stands)
# Cost:    for each task the processors, memory and time below
# Result:  as one command on one machine. A task ends with 0: all is done; 1: some slides failed, `wsi status` lists
#          them; 2: wrong usage or input; 143: stopped. A task whose time is up is queued again by itself
#SBATCH --job-name=wsi
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=wsi-%A_%a.log

# source /path/to/venv/bin/activate   # where `wsi` is not on the nodes' PATH

wsi "$@" &
command=$!
queue_again=

# the time is nearly up: end well, and go on in a new job; twice as much is not done, as what is done stays done
trap 'queue_again=yes; kill -TERM "$command"' USR1
# preempted or cancelled: SLURM itself queues a preempted job again
trap 'kill -TERM "$command"' TERM INT

wait "$command"
code=$?
while kill -0 "$command" 2>/dev/null; do # a signal ends `wait`, not the command
    wait "$command"
    code=$?
done
if [ "$queue_again" ] && [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
