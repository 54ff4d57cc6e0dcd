"""Kinds of priors, one file each; a model config names one by `prior`."""
