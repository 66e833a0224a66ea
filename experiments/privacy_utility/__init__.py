"""What privacy costs: accuracy by epsilon and cohort."""
