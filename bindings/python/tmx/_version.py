__version__ = "0.1.0"              # of the tmx.h that _abi.py mirrors
