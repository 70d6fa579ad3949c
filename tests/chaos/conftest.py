from tests.integration.conftest import finished, head, overrides, stopped, tiny

__all__ = ["finished", "head", "overrides", "stopped", "tiny"]
