"""From a picture to stored tensors: the frozen CNN, picture decoding and the HDF5 feature store."""
