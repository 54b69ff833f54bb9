"""One HTML page by which a training or predictions can be judged: tables, pictures, curves."""
