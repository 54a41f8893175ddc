"""Send files of prompts to an asynchronous LLM API; get every answer once, crash or no crash."""

__version__ = "0.1.0"
