"""Stage `doctor`: whether the installation and a work directory are sound. It may import all."""
