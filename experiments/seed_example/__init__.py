"""The example that this project grew from: four devices, one dense network, one rule."""
