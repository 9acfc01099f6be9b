"""Many runs of one experiment: cross-validation, nesting, tuning, robustness, explanations."""
