"""The demo model: procedural pictures and the training that uses them."""
