"""Steps of training measured."""
