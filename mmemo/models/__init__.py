"""Encoders, layer mixes, gates, fusions and heads. Each is an ordinary module, chosen by ``class_path``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
