"""From a work directory to captions: models, objectives, reward, search, checkpoints, stages."""
