"""Classifiers by name: of images, from pixel space to logits, and of graphs, from message plans to logits."""

from dd_bench.models.architecture import Architecture, build, check_fit
from dd_bench.models.classifier import Classifier, count_parameters, images_at_once
from dd_bench.models.families import FAMILIES, Family, GraphFamily
from dd_bench.models.normalizer import Normalizer
from dd_bench.models.whitening import Whitening, encode, encoded_spec, fit_whitening

__all__ = [
    "FAMILIES",
    "Architecture",
    "Classifier",
    "Family",
    "GraphFamily",
    "Normalizer",
    "Whitening",
    "build",
    "check_fit",
    "count_parameters",
    "encode",
    "encoded_spec",
    "fit_whitening",
    "images_at_once",
]
