"""From a picture to stored tensors: the frozen CNN, picture decoding and the HDF5 feature store."""

import os

# Threads that wait for one another sleep meanwhile. Awake, they keep the cores from the very
# threads they wait for: beside other work training falls to a third of its speed or less. OpenMP
# reads this when torch is imported, so every package imports this one before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
