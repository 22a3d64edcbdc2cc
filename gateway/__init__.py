"""Tollkeeper's proxy: identifies, times, prices and explains every call between an application and a model provider."""

__version__ = "0.1.0"
