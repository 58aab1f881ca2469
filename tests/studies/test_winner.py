"""What is saved of a confirmed winner."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from run_folders import finished
from safetensors.numpy import load_file

from tune_softmax.report.evaluation import read_evaluation
from tune_softmax.run import results
from tune_softmax.studies import winner


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run whose trial 3 was saved as the winner."""
    folder = finished(tmp_path_factory.mktemp("saved") / "run")
    winner.save(results.load(folder.path), 3, seed=5, data_dir=None)
    return folder


def test_the_configuration_says_what_the_model_is(saved):
    """Which trial, under which seed, on which images, and what goes in and comes out."""
    content = json.loads(saved.best.configuration.read_text())
    assert (content["trial"], content["seed"]) == (3, 5)
    assert content["hyperparameters"]["num_epochs"] == 4
    assert content["image_shape"] == [8, 8]
    assert content["class_names"] == list("0123456789")
    assert content["trained_on"] == "training and validation images"


def test_the_weights_cannot_run_code(saved):
    """They are safetensors, of the module's own names."""
    shapes = {name: array.shape for name, array in load_file(saved.best.weights).items()}
    assert shapes == {"1.weight": (10, 64), "1.bias": (10,)}


def test_the_report_reads_the_evaluation(saved):
    """Its confusion matrix agrees with its accuracy; the baseline had no weight decay."""
    found = read_evaluation(saved.best.evaluation)
    assert found.confusion.sum() == 359
    assert np.trace(found.confusion) / 359 == pytest.approx(found.accuracy)
    assert found.baseline_confusion.sum() == 359
    assert saved.best.confusion.read_bytes().startswith(b"\x89PNG")


def test_the_wrong_images_are_the_surest_first(saved):
    """At most 24, none of them right, their grey values those of a byte."""
    wrong = json.loads(saved.best.evaluation.read_text())["wrong"]
    probabilities = [image["probability"] for image in wrong]
    assert 0 < len(wrong) <= 24
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(image["label"] != image["predicted"] for image in wrong)
    assert np.max([image["image"] for image in wrong]) == 255


def test_a_removed_winner_is_saved_anew(saved):
    """Without its evaluation there is no winner; to save it again is to the same bytes."""
    before = saved.best.evaluation.read_bytes()
    saved.best.remove()
    assert not saved.best.evaluation.exists()
    winner.save(results.load(saved.path), 3, seed=5, data_dir=None)
    assert saved.best.evaluation.read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tf32")
def test_a_precision_that_is_not_here_is_told(saved, caplog):
    """A winner that was searched in tf32 trains in float32 without a GPU, and the log says so."""
    found = results.load(saved.path)
    model = found.experiment.model.model_copy(update={"precision": "tf32"})
    experiment = found.experiment.model_copy(update={"model": model})
    before = saved.best.weights.read_bytes()
    winner.save(replace(found, experiment=experiment), 3, seed=5, data_dir=None)
    assert saved.best.weights.read_bytes() == before
    assert "no GPU here has tf32; the winner trains in float32" in caplog.text
