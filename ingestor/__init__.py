"""Binance spot market data into AWS Kinesis, so that nothing is missing, and it can be proven."""

__version__ = "0.1.0"
