"""The ops of an engine, one folder per op: contract, reference and implementations. Knows no model and no request."""
