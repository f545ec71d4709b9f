"""Scaling as the publications show it: weak with four layers a device, strong with cycles and with one-shot steps."""
