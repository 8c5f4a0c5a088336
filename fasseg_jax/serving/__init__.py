"""A web page and an interface over HTTP for segmenting photos: `fasseg serve`."""
