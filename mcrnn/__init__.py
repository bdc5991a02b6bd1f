"""Training and hyperparameter search for convolutional recurrent forecasters of spatiotemporal fields."""

__version__ = "0.1.0"
