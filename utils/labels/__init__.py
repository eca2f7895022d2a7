"""FKD soft labels on disk: formats, drawn views, and the order in which training visits them."""
