#!/bin/bash
# One run for each seed, each on a GPU of its own. From the project's folder:
#
#   sbatch --array=0-9 examples/slurm/seeds.sh --task inpainting --data_root /shared/photographs
#
# Every run has a folder of its own, and a task that is queued again does the rest of its images.
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
set -u
seed="${SLURM_ARRAY_TASK_ID:-0}"
exec python3 sample_condition.py --seed "$seed" --save_dir "${RESULTS:-results}/seed_$seed" "$@"
