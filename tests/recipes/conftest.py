from tests.integration.conftest import head, overrides, ray_here, tiny

__all__ = ["head", "overrides", "ray_here", "tiny"]
