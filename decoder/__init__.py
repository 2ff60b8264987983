"""From a work directory to captions: models, objectives, reward, search, checkpoints, stages."""

import features  # noqa: F401 - before torch, see there
