from tests.integration.conftest import finished, head, overrides, scratch, stopped, tiny

__all__ = ["finished", "head", "overrides", "scratch", "stopped", "tiny"]
