"""From a source to verified webdataset tars: source index, import, download, decoding, accounting, tars, survey."""
