"""mnmt_scale: multilingual machine translation training on ZeRO-sharded Transformers."""

__version__ = "0.1.0"
