"""A page in the browser to try a model: what it predicts for a picture, and where its attention looks."""
