"""Stage `doctor`: check the installation and a work directory. It may import every package."""
