"""Maps of many images, their scores, and the tables and sanity checks made of them."""
