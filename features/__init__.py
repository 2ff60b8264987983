"""From a picture to stored tensors: picture decoding, the frozen CNN and the HDF5 feature store."""

import os

# Let threads sleep while they wait for each other. Spinning, they occupy the cores that the other
# threads need: if other programs run, training falls to a third of its speed or less. OpenMP reads
# this variable when torch is imported, so every package imports this one first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
