"""Initial weights: fitted to how pictures differ and how frequent words are."""

import numpy as np
import pytest
import torch

from decoder.data.single_store import SingleStoreReader
from decoder.model import decoders
from decoder.model.options import ModelOptions
from decoder.training.initialisation import initialise, predictive_directions
from features.store import FeatureStore
from pipeline import captions as tables
from pipeline import vocabulary as vocabularies
from pipeline.vocabulary import EOS


def test_the_direction_is_the_one_that_predicts_the_words_not_the_one_that_varies_most():
    torch.manual_seed(0)
    images = 400
    pooled_NC = torch.randn(images, 6) * torch.tensor([5.0, 3, 1, 0.5, 2, 4])
    pooled_NC -= pooled_NC.mean(0)
    shares_WN = torch.stack([(pooled_NC[:, 3] > 0).float(), (pooled_NC[:, 3] < 0.2).float()])
    directions_CK = predictive_directions(pooled_NC, shares_WN.to_sparse(), 1)
    assert directions_CK is not None
    found_N = (pooled_NC @ directions_CK)[:, 0]
    alike = [abs(np.corrcoef(found_N, pooled_NC[:, channel])[0, 1]) for channel in range(6)]
    assert np.argmax(alike) == 3
    assert alike[3] > 0.8


@pytest.mark.parametrize("model_name", ["show_tell", "att2in", "updown"])
def test_units_are_balanced_over_the_training_set_and_frequent_words_likely(
    extracted_shapes, model_name
):
    table = tables.load(extracted_shapes / "captions.json")
    words = vocabularies.load(extracted_shapes / "vocabulary.json")
    store = FeatureStore(extracted_shapes / "features.h5")
    training = SingleStoreReader(store, table, words, 4, 1)
    options = ModelOptions(model=model_name, hidden=17, attention=8)
    torch.manual_seed(0)
    model = decoders.build(options, len(words), store.description["channels"])
    initialise(model, training)

    features = training.features(range(len(training)))
    with torch.inference_mode():
        units = {}
        if model.reads_pooled:
            units["pooled"] = model.pooled_embedding(features.pooled_IC)
        if model.attends:
            units["regions"] = model.region_embedding(features.grid_IRC.flatten(0, 1))
    for unit_NH in units.values():
        assert unit_NH.mean(0).abs().max() < 0.05
        assert (unit_NH.std(0) - 1).abs().max() < 0.05
        assert ((unit_NH > 0).float().mean(0) > 0.1).all(), "a unit is dead from the start"

    written = [token for of_image in training.captions for caption in of_image for token in caption]
    count_V = np.bincount([t - EOS for t in written if t >= EOS], minlength=len(words) - EOS)
    bias_V = model.output.bias.detach().numpy()
    np.testing.assert_allclose(
        np.exp(bias_V) / np.exp(bias_V).sum(), (count_V + 1) / (count_V + 1).sum(), rtol=1e-4
    )


def test_pictures_that_do_not_differ_give_no_direction():
    torch.manual_seed(0)
    assert predictive_directions(torch.zeros(5, 4), torch.rand(3, 5).to_sparse(), 2) is None
    pooled_NC = torch.randn(5, 4)
    pooled_NC -= pooled_NC.mean(0)
    assert predictive_directions(pooled_NC, torch.ones(3, 5).to_sparse(), 2) is None
