"""evoxtral: fine-tune Voxtral Realtime to hear how something was said."""

__version__ = "0.1.0"
