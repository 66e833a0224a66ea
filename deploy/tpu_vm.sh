#!/bin/bash
# The same command on every host of a TPU slice; jax reads their places from the slice.
# Run with: TPU=NAME ZONE=ZONE deploy/tpu_vm.sh --dataset FILE --out RUN
set -euo pipefail

gcloud compute tpus tpu-vm ssh "${TPU:?}" --zone "${ZONE:?}" --worker=all \
  --command "fedjax-rec run --distributed --checkpoint-minutes 5 $(printf '%q ' "$@")"
