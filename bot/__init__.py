"""frontdesk: one small Qwen model at the front desk of a small business."""

__version__ = "0.1.0"
