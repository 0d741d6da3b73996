"""Deleting a partition's folder, once its topic's deletion is applied. Owns nothing: the work is a request."""

from zbroker.log.requests import DeleteFolder, delete_folder

__all__ = ["DeleteFolder", "delete_folder"]
