"""The parts of the model.py that draws from an export with PyTorch alone.

`exporting.model_file` puts those that a model needs into one file. They import nothing but PyTorch
and the standard library, and one another.
"""
