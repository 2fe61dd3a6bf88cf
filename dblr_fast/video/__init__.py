"""Video files and folders of pictures: decode, restore, encode."""

from .run import Result, deblur_video

__all__ = ["Result", "deblur_video"]
