"""What is minimised. An objective calls a model through an `apply` function."""

from gptjax.objectives.next_token import NextToken

__all__ = ["NextToken"]
