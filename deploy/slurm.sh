#!/bin/bash
# One process a node; jax reads their number and places from SLURM. On nodes with several GPUs one process has them all.
# Submit with: sbatch deploy/slurm.sh --dataset FILE --cohort 4096
# The run is in runs/slurm-ID, or in $RUN_FOLDER; every node sees it. A job that is requeued keeps its id, and so its
# run: it goes on from the newest checkpoint. A new job goes on with an older one's run by its folder:
# RUN_FOLDER=runs/slurm-ID sbatch deploy/slurm.sh --dataset FILE --cohort 4096
#SBATCH --job-name=fedjax-rec
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u

run="${RUN_FOLDER:-runs/slurm-${SLURM_JOB_ID}}"
if [ -e "$run/result.json" ]; then
  echo "$run is done"
  exit 0
fi

# 120 s before the time is up SLURM signals the processes, not this shell (which B:TERM would do, and end it): they save
# the run and end with 75. The first of them to end must not have the others killed, or srun would end with another
# status; where a node is lost they end by themselves, and SLURM requeues the job.
if compgen -G "$run/checkpoints/*/round-*" > /dev/null; then
  srun --kill-on-bad-exit=0 fedjax-rec resume "$run" --distributed --pause-exit-code 75
else
  srun --kill-on-bad-exit=0 fedjax-rec run --distributed --out "$run" --checkpoint-minutes 5 --pause-exit-code 75 "$@"
fi
status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
