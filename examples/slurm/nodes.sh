#!/bin/bash
# One run, its images divided between the GPUs of several nodes. From the project's folder:
#
#   sbatch examples/slurm/nodes.sh --task motion_deblur --data_root /shared/photographs --fast \
#       --save_dir /shared/results
#
# The results folder has to be seen by all nodes. A minute before the time is over the job stops in
# good order and is queued again; then it does the rest.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
set -u
if command -v scontrol > /dev/null; then
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    launch=(srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
else
    head=localhost # tried by hand, without SLURM
    launch=()
fi
${launch[@]+"${launch[@]}"} torchrun --nnodes="${SLURM_NNODES:-1}" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_id="${SLURM_JOB_ID:-0}" --rdzv_backend=c10d --rdzv_endpoint="$head:${PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}" \
    sample_condition.py "$@" &
job=$!
stopped=
trap 'stopped=yes; kill -TERM $job' TERM
wait $job
status=$?
if [ -n "$stopped" ]; then
    wait $job
    command -v scontrol > /dev/null && scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
