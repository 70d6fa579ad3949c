"""Who plays beside the policy: earlier versions, other models, the data; and the arena where they meet."""
