"""A static page that draws images with the model, in a browser.

`exporting.subfolder` writes it: the files of `page/`, the model as one ONNX graph (`graph`), the
steps of its samplers as numbers (`recipe`), and ONNX Runtime Web (`runtime`).
"""
