"""The routes of the inference API and the operator API, and the middleware around them."""
