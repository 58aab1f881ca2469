"""Distributed hyperparameter search for softmax regression."""
