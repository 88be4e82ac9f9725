"""The decoder: weights and ops put together; knows no request, no scheduler and no bundle."""
