"""Pure preference-optimisation core: torch and numpy only. Imports neither ray, vllm, deepspeed nor mlflow."""
