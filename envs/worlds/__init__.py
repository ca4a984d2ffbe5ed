"""The environments, one a file; their ids are registered in `envs/__init__.py`."""
