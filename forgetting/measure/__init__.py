"""Figures of one model on one set of images: accuracies, calibration, features."""
