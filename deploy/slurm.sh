#!/bin/bash
# One process a node; jax reads their number and places from SLURM. On nodes with several GPUs one process has them all.
# Submit with: sbatch deploy/slurm.sh --dataset FILE --out RUN --cohort 4096
#SBATCH --job-name=fedjax-rec
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log

set -euo pipefail

# A node that is lost ends all the others: start the job again, and it goes on from the newest checkpoint.
out="${RUN_FOLDER:-runs/slurm-${SLURM_JOB_ID}}"
if [ -d "$out/checkpoints" ]; then
  srun --kill-on-bad-exit=1 fedjax-rec resume "$out" --distributed
else
  srun --kill-on-bad-exit=1 fedjax-rec run --distributed --out "$out" --checkpoint-minutes 5 "$@"
fi
