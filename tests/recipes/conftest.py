from tests.integration.conftest import head, overrides, ray_here, scratch, tiny

__all__ = ["head", "overrides", "ray_here", "scratch", "tiny"]
