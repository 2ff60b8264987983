"""From somebody's data set to a work directory: formats, caption table, vocabulary, stages."""
