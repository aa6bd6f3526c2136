"""Understudy: an LLM inference server in which a challenger model shadows the champion."""

__version__ = "0.1.0"
